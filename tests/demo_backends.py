"""Models for the tests of the page: one that writes what it is told to, and a streaming server."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler

from demo.backend import AnswerFailed, Written
from demo.conversation import Counts
from demo.settings import Settings
from remote_code.conversation import THINK_END, split_thinking
from tests.fake_endpoint import serving_on_loopback


class Scripted:
    """A `Backend` that writes given pieces.

    Attributes:
        pieces: of each answer; an exception among them is raised, an event is waited for.
        seconds: between two pieces.
        asked: (turns, settings) of every question.
        replies: all that were begun.
    """

    name = "scripted"
    thinks = True
    context = 1000
    parallel = 1
    defaults = Settings(temperature=0.0)

    def __init__(self, tiling, pieces=("Let me see.", THINK_END, "Yes."), seconds=0.0):
        self.tiling = tiling
        self.pieces = pieces
        self.seconds = seconds
        self.asked = []
        self.replies = []

    def ask(self, turns, settings):
        self.asked.append((turns, settings))
        self.replies.append(ScriptedReply(self.pieces, self.seconds))
        return self.replies[-1]


class ScriptedReply:
    """A `Reply` of given pieces."""

    def __init__(self, pieces, seconds):
        self.pieces = pieces
        self.seconds = seconds
        self.text = ""
        self.is_stopped = False
        self.has_ended = False

    def __iter__(self):
        for piece in self.pieces:
            if self.is_stopped:
                break
            if isinstance(piece, threading.Event):
                piece.wait(60)
                continue
            if isinstance(piece, Exception):
                raise AnswerFailed(str(piece))
            self.text += piece
            yield
            time.sleep(self.seconds)
        self.has_ended = True

    @property
    def written(self):
        thinking, answer = split_thinking(self.text)
        return Written(self.text, thinking, answer, THINK_END not in self.text)

    def stop(self):
        self.is_stopped = self.is_stopped or not self.has_ended

    def counts(self):
        return Counts(100, 7, 3)


class Switch:
    """A `Backend` in front of others: one page, and the model that a test wants."""

    name = "several"
    thinks = True
    context = 4096
    parallel = 1
    defaults = Settings(temperature=0.0)

    def __init__(self, model):
        self.model = model
        self.tiling = model.tiling

    def ask(self, turns, settings):
        return self.model.ask(turns, settings)

    def where_it_looked(self, turns):
        return self.model.where_it_looked(turns)


class StreamingEndpoint:
    """An OpenAI-compatible server on loopback that streams.

    Attributes:
        deltas: of each answer.
        status: other than 200, every request is refused with it.
        seconds: between two deltas.
        has_usage: whether the last chunk tells of tokens.
        bodies: of all requests.
        sent: number of chunks that were sent.
        was_left: set when a client has closed the connection before the end.
    """

    def __init__(self, deltas, status=200, seconds=0.0, has_usage=True):
        self.deltas = deltas
        self.status = status
        self.seconds = seconds
        self.has_usage = has_usage
        self.bodies = []
        self.sent = 0
        self.was_left = threading.Event()

    def serving(self):
        """Its URL, while it runs; a context."""
        return serving_on_loopback(StreamingHandler, self)


class StreamingHandler(BaseHTTPRequestHandler):
    """A request to a `StreamingEndpoint`."""

    endpoint: StreamingEndpoint

    def log_message(self, *arguments):
        """Nothing: pytest shows the rest."""

    def do_GET(self):
        models = [{"id": "served", "object": "model", "max_model_len": 4096}]
        self.send_json(200, {"object": "list", "data": models})

    def do_POST(self):
        endpoint = self.endpoint
        endpoint.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if endpoint.status != 200:
            error = {"message": "This model's maximum context length is 4096 tokens."}
            return self.send_json(endpoint.status, {"error": error})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for delta in endpoint.deltas:
                self.send_chunk({"choices": [{"index": 0, "delta": delta}]})
                time.sleep(endpoint.seconds)
            if endpoint.has_usage:
                usage = {"prompt_tokens": 50, "completion_tokens": 20, "total_tokens": 70}
                self.send_chunk({"choices": [], "usage": usage})
                self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            endpoint.was_left.set()

    def send_chunk(self, content):
        chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "served"}
        self.wfile.write(f"data: {json.dumps({**chunk, **content})}\n\n".encode())
        self.wfile.flush()
        self.endpoint.sent += 1

    def send_json(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
