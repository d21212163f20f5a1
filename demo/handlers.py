"""What the page does when a visitor asks, stops, edits, asks again, or leaves.

Each method takes the values of components and returns those of others (page.py says which), as
Gradio calls it; the last is always the notice, in which the page says why something cannot be done.
The conversation itself is kept here, in the visitor's session; what a browser sends back of it is
not read.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from demo import conversation, looked, seen
from demo.backend import AnswerFailed, Backend, LooksInside, Reply
from demo.conversation import ANSWERING, DONE, FAILED, STOPPED, THINKING, WAITING, Turn, Turns
from demo.pictures import Limits, check_question
from demo.runs import Runs
from demo.settings import Settings

SECONDS_BETWEEN_UPDATES = 0.06  # of an answer that is being written


class Handlers:
    """The events of the page.

    Args:
        backend: that answers.
        limits: on what visitors send.
    """

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self.backend = backend
        self.limits = limits
        self.runs = Runs()

    def accept(self, asked: dict[str, Any], turns: Turns, *controls: Any) -> tuple[Any, ...]:
        """Take a question into the conversation.

        Args:
            asked: text and files of the box for questions.
            turns: of the conversation.
            controls: values of the settings, in the order of the fields of `Settings`.

        Returns:
            (turns, messages, box, notice). Where the question or a setting is out of bounds, only
            the notice changes, and the box keeps the question.
        """
        text = asked.get("text") or ""
        pictures = asked.get("files") or []
        try:
            num_earlier = len(conversation.images_of(turns))
            check_question(text, pictures, num_earlier, self.limits)
            settings = _settings_of(controls)
        except ValueError as error:
            return refused(error, 3)
        return self._with_question(turns, Turn(text, tuple(pictures), settings))

    def ask_again(
        self, turns: Turns, request: gr.Request, index: int, *controls: Any
    ) -> tuple[Any, ...]:
        """Put a question of the conversation again; what followed it is dropped.

        Args:
            turns: of the conversation.
            index: of one of the messages of the question's turn.
            controls, and what is returned: as for `accept`.
        """
        try:
            number = conversation.turn_of_message(turns, index)
            settings = _settings_of(controls)
        except ValueError as error:
            return refused(error, 3)
        self.runs.stop(_session(request))
        asked = turns[number]
        return self._with_question(turns[:number], Turn(asked.text, asked.images, settings))

    def edit(self, asked: dict[str, Any], turns: Turns, request: gr.Request) -> tuple[Any, ...]:
        """Take the last question, with its pictures, out of the conversation and into the box.

        Args and Returns:
            As for `accept`.
        """
        if not turns:
            return refused("There is no question yet.", 3)
        if asked.get("text") or asked.get("files"):
            return refused("The box is not empty: send or delete what is in it first.", 3)
        self.runs.stop(_session(request))
        last = turns[-1]
        value = {"text": last.text, "files": list(last.images)}
        box = gr.update(value=value, submit_btn=True, stop_btn=False)
        return turns[:-1], conversation.messages_of(turns[:-1]), box, ""

    def _with_question(self, turns: Turns, asked: Turn) -> tuple[Any, ...]:
        turns = (*turns, asked)
        return turns, conversation.messages_of(turns), box_while_answering(), ""

    def answer(self, turns: Turns, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        """Let the model answer the last question.

        Yields:
            (turns, messages, box), as the answer is written, without a notice.
        """
        if not turns or turns[-1].status != WAITING:  # refused, or stopped while others were served
            yield gr.skip(), gr.skip(), box_for_questions()  # without a yield all would be emptied
            return
        session = _session(request)
        *before, asked = turns
        begun = time.monotonic()
        try:
            reply = self.backend.ask(turns, asked.settings)
        except AnswerFailed as error:
            yield self._finished(before, asked.changed(status=FAILED, failure=_sentence(error)))
            return
        self.runs.begin(session, reply)
        try:
            for turn in written_turns(asked, reply, begun):
                if turn.status in (THINKING, ANSWERING):
                    messages = conversation.messages_of([*before, turn])
                    yield gr.skip(), messages, gr.skip()
                else:
                    yield self._finished(before, turn)
        finally:
            reply.stop()
            self.runs.end(session, reply)

    def _finished(self, before: Sequence[Turn], turn: Turn) -> tuple[Any, ...]:
        turns = (*before, turn)
        return turns, conversation.messages_of(turns), box_for_questions()

    def stop(self, turns: Turns, request: gr.Request) -> tuple[Any, ...]:
        """End the answer that is being written, or take back a question that waits for its turn.

        Returns:
            (turns, messages, box), without a notice.
        """
        session = _session(request)
        if self.runs.stop(session):
            return gr.skip(), gr.skip(), gr.skip()  # `answer` shows what there is
        if turns and turns[-1].status == WAITING:
            turns = (*turns[:-1], turns[-1].changed(status=STOPPED))
        return turns, conversation.messages_of(turns), box_for_questions()

    def begin_anew(self, request: gr.Request) -> tuple[Any, ...]:
        """Forget the conversation: (turns, messages, box, what the model saw, notice)."""
        self.runs.stop(_session(request))
        return (), [], box_for_questions(), "", ""

    def leave(self, request: gr.Request) -> None:
        """End what is being written for a visitor who has closed the page."""
        self.runs.leave(_session(request))

    def add_photo(self, asked: dict[str, Any], photo: str | None) -> tuple[Any, ...]:
        """Put a photo of the camera beside the pictures of the question: (box, camera, notice)."""
        if photo is None:
            return refused("There is no photo yet: take one first.", 2)
        files = [*(asked.get("files") or []), photo]
        return {"text": asked.get("text") or "", "files": files}, None, ""

    def as_json(self, turns: Turns) -> str:
        """The conversation as the text of a file."""
        return conversation.as_json(turns, self.backend.name)

    def what_it_saw(self, turns: Turns) -> tuple[Any, ...]:
        """The pictures with their tiles, as HTML: (panel, notice)."""
        try:
            return seen.page_of(turns, self.backend.tiling, self.backend.context), ""
        except ValueError as error:
            return refused(error, 1)

    def where_it_looked(self, turns: Turns) -> tuple[Any, ...]:
        """The pictures with the heat maps of the last answer, as HTML: (panel, notice)."""
        assert isinstance(self.backend, LooksInside)  # otherwise the page has no button for it
        try:
            return looked.page_of(turns, self.backend.where_it_looked), ""
        except ValueError as error:
            return refused(error, 1)


def written_turns(asked: Turn, reply: Reply, begun: float) -> Iterator[Turn]:
    """A turn with more and more of its answer; the last one is complete, stopped or failed.

    The first text and the end of the thinking are yielded at once, everything between at intervals.

    Args:
        asked: the turn as it was asked.
        reply: to it.
        begun: when it was asked, by `time.monotonic()`.
    """
    turn = asked
    shown_at = 0.0
    status, failure = DONE, ""
    try:
        for _ in reply:
            now = time.monotonic()
            if turn.status != ANSWERING or now - shown_at > SECONDS_BETWEEN_UPDATES:
                newer = _updated(turn, reply, now - begun)
                if newer.status != turn.status or now - shown_at > SECONDS_BETWEEN_UPDATES:
                    turn = newer
                    shown_at = now
                    yield turn
    except AnswerFailed as error:
        status, failure = FAILED, _sentence(error)
    seconds = time.monotonic() - begun
    turn = _updated(turn, reply, seconds)
    if status == DONE and reply.is_stopped:
        status = STOPPED
    if status != FAILED:
        turn = turn.changed(counts=reply.counts())
    yield turn.changed(status=status, failure=failure, seconds=seconds)


def _updated(turn: Turn, reply: Reply, seconds: float) -> Turn:
    """A turn with what is there of its reply after so many seconds."""
    written = reply.written
    changes: dict[str, Any] = {
        "raw": written.raw,
        "thinking": written.thinking,
        "answer": written.answer,
        "status": THINKING if written.is_thinking else ANSWERING,
    }
    if written.is_thinking or turn.status != ANSWERING:
        changes["thinking_seconds"] = seconds
    return turn.changed(**changes)


def box_for_questions() -> Any:
    """The box as it is while nothing is being written."""
    return gr.update(submit_btn=True, stop_btn=False)


def box_while_answering() -> Any:
    """The box as it is from a question to the end of its answer: empty, with a button to stop."""
    return gr.update(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)


def _session(request: gr.Request) -> str:
    """The name of a visitor's session; requests without one share one."""
    return request.session_hash or ""


def _settings_of(controls: Sequence[Any]) -> Settings:
    """Settings of the values of the controls.

    Raises:
        ValueError: one is out of bounds.
    """
    thinks, budget, temperature, top_p, penalty, longest, system_message = controls
    return Settings(
        bool(thinks), _whole(budget), temperature, top_p, penalty, _whole(longest),
        system_message or "",
    )  # fmt: skip


def _whole(value: Any) -> Any:
    """A number of tokens, which a control may give as a float; an empty control is 0."""
    if value is None:
        return 0
    return int(value) if isinstance(value, float) else value


def _sentence(error: Exception | str) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split())


def refused(reason: Exception | str, num_outputs: int) -> tuple[Any, ...]:
    """The outputs of an event that cannot be done: only the notice changes, to the reason.

    Args:
        num_outputs: number of outputs besides the notice.
    """
    text = html.escape(_sentence(reason))
    unchanged = [gr.skip() for _ in range(num_outputs)]  # Gradio takes each of them apart
    return (*unchanged, f'<p role="alert">{text}</p>')
