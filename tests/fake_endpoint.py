"""An OpenAI-compatible server on loopback that fails as real ones do.

It knows a question by its mark, such as Q17, and answers it as it is told to: right or wrong, with
the thinking where servers put it. Faults come before answers; each is sent once.
"""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MARK = re.compile(r"Q\d+\b")
# Where the thinking is returned, by the number of the question.
PLACES = ("reasoning", "reasoning_content", "in the text", "opened by the model")


@contextlib.contextmanager
def serving_on_loopback(handler, endpoint):
    """The URL of a server, while it runs.

    Args:
        handler: a class for its requests, which finds the endpoint as its attribute `endpoint`.
    """
    own = type("Handler", (handler,), {"endpoint": endpoint})
    server = ThreadingHTTPServer(("127.0.0.1", 0), own)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


class FakeEndpoint:
    """What a server is told to do, and what it was asked.

    Attributes:
        answers: by mark, the final answers in the order in which they are given; the last one goes
            on.
        faults: by mark, what happens before it is answered, one of FAULTS each time.
        models: that it says it serves.
        context: tokens that prompt and answer may have.
        reply_to_judge: replies to a prompt of a judge.
        judge_faults: what happens before judges reply, one of FAULTS each time.
        judge_fault_of: what happens to a prompt of a judge each time, one of FAULTS, or None.
        takes_schemas: whether it takes a `response_format`; otherwise it refuses the request.
        asked: requests by mark, answered or not.
        given: answers by mark that were sent whole.
        bodies: of all requests.
        seconds: that each answer takes.
    """

    def __init__(self, answers, faults=None, seconds=0.0):
        self.answers = answers
        self.faults = {mark: list(some) for mark, some in (faults or {}).items()}
        self.models = ["Skywork-R1V-38B", "judge"]
        self.context = 131_072
        self.reply_to_judge = lambda text: "Verdict: WRONG"
        self.judge_faults = []
        self.judge_fault_of = lambda text: None
        self.takes_schemas = True
        self.asked = Counter()
        self.given = Counter()
        self.bodies = []
        self.seconds = seconds
        self.lock = threading.Lock()

    def serving(self):
        """Its URL, while it runs; a context."""
        return serving_on_loopback(Handler, self)

    def fault(self, mark):
        """What is to go wrong with this request, or None; counts the request."""
        with self.lock:
            self.asked[mark] += 1
            faults = self.faults.get(mark)
            if faults:
                return faults[0] if faults[0].startswith("always ") else faults.pop(0)
        return None

    def answer(self, mark):
        """The next final answer to a question."""
        with self.lock:
            answers = self.answers[mark]
            return answers[min(self.given[mark], len(answers) - 1)]


class Handler(BaseHTTPRequestHandler):
    """A request to a `FakeEndpoint`."""

    endpoint: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Nothing: pytest shows the rest."""

    def do_GET(self):
        context = self.endpoint.context
        models = [{"id": name, "max_model_len": context} for name in self.endpoint.models]
        self.send(200, {"object": "list", "data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.endpoint.lock:
            self.endpoint.bodies.append(body)
        text = text_of(body)
        if "response_format" in body and not self.endpoint.takes_schemas:
            return FAULTS["no schemas"](self)
        if body["model"] == "judge":
            fault = self.endpoint.judge_fault_of(text)
            with self.endpoint.lock:
                if self.endpoint.judge_faults:
                    fault = self.endpoint.judge_faults.pop(0)
            if fault is not None:
                return FAULTS[fault](self)
            return self.send(200, completion({"content": self.endpoint.reply_to_judge(text)}))
        mark = MARK.search(text).group()
        fault = self.endpoint.fault(mark)
        time.sleep(self.endpoint.seconds)
        if fault is not None:
            return FAULTS[fault.removeprefix("always ")](self)
        message = message_of(mark, self.endpoint.answer(mark))
        finish = "length" if message.pop("cut", False) else "stop"
        self.send(200, completion(message, finish))
        with self.endpoint.lock:
            self.endpoint.given[mark] += 1

    def send(self, status, content, headers=(), cut=False):
        """Send JSON; cut in the middle if so told."""
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True
            self.connection.close()


def refuse(status, message, headers=()):
    error = {"error": {"message": message, "type": "error", "code": status}}
    return lambda handler: handler.send(status, error, headers)


def answer_slowly(handler):
    time.sleep(0.5)
    handler.send(503, {"error": {"message": "loading"}}, [("retry-after-ms", "10")])


def hang(handler):
    """Reply to nobody: the client has gone by then."""
    time.sleep(HANG_SECONDS)
    with contextlib.suppress(OSError):
        handler.send(200, completion({"content": "too late"}))


HANG_SECONDS = 1.5
FAULTS = {
    "429": refuse(429, "too many requests", [("retry-after-ms", "20")]),
    "500": refuse(500, "internal error", [("retry-after-ms", "10")]),
    "400": refuse(400, "This model's maximum context length is 4096 tokens."),
    "no schemas": refuse(400, "response_format is not supported"),
    "slow": answer_slowly,
    "hang": hang,
    "cut short": lambda handler: handler.send(
        200, completion({"content": '{"reason": "I'}, "length")
    ),
    "cut": lambda handler: handler.send(200, completion({"content": "Answer: 1"}), cut=True),
    "empty": lambda handler: handler.send(200, completion({"content": ""})),
    "no choice": lambda handler: handler.send(200, {**completion({}), "choices": []}),
}
UNCLOSED = "unclosed"  # instead of an answer: the thinking is never closed


def text_of(body):
    """The texts of a request, images left out."""
    parts = []
    for message in body["messages"]:
        content = message["content"]
        parts += [content] if isinstance(content, str) else [p.get("text", "") for p in content]
    return "\n".join(parts)


def message_of(mark, answer):
    """The message of an answer, its thinking where this question's server puts it."""
    thinking = f"Let me see, \\boxed{{{answer}}}? No, a draft: \\boxed{{999}}."
    place = PLACES[int(mark[1:]) % len(PLACES)]
    if answer == UNCLOSED:
        if place.startswith("reasoning"):
            return {"content": None, place: thinking, "cut": True}
        return {"content": thinking, "cut": True}
    final = f"So it is settled.\n\nAnswer: \\boxed{{{answer}}}"
    if place == "in the text":
        return {"content": f"{thinking}\n</think>\n\n{final}"}
    if place == "opened by the model":
        return {"content": f"<think>\n{thinking}\n</think>\n\n{final}"}
    return {"content": final, place: thinking}


def completion(message, finish="stop"):
    """A completion as the API returns it."""
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }
