"""The engine of `serving.offline` that asks OpenAI-compatible endpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from remote_code import conversation
from serving.client import Client, Reply, RequestFailed, image_part
from serving.concurrency import as_finished
from serving.question_file import Entry, Question, answer_entry, error_entry, key_of
from serving.sampling import Sampling


class EndpointEngine:
    """Asks a model behind one or several endpoints, as many questions at a time as they take.

    Args:
        client: that asks them.
        sampling: how answers are drawn.
        thinks: whether the model thinks before it answers.
    """

    def __init__(self, client: Client, sampling: Sampling, thinks: bool = True) -> None:
        self.client = client
        self.sampling = sampling
        self.thinks = thinks

    def answers(self, questions: Sequence[Question]) -> Iterator[Entry]:
        """Entries as they are finished."""
        return as_finished(self._entry, questions, self.client.capacity)

    def _entry(self, question: Question) -> Entry:
        seed = self.sampling.seed_of(*key_of(question))
        try:
            sampling = self.sampling.with_penalty(question.get("repetition_penalty"))
            reply = self.client.ask(messages_of(question), sampling, seed)
        except (RequestFailed, ValueError, OSError) as error:
            return error_entry(question, error)
        text = whole_text(reply)
        tokens = reply.completion_tokens or 0
        return answer_entry(question, text, tokens, reply.finish_reason, self.thinks)


def whole_text(reply: Reply) -> str:
    """A reply with its thinking, as `chat()` gives it, wherever the server has put that."""
    if not reply.reasoning:
        return reply.text.strip()
    text = reply.reasoning.strip()
    if reply.text.strip():
        text += f"\n{conversation.THINK_END}\n\n{reply.text.strip()}"
    return text


def messages_of(question: Question) -> list[dict[str, Any]]:
    """A question with its system message and earlier turns, images where `<image>` stands.

    Raises:
        ValueError: a history about more images than there are.
    """
    images = list(question["images"])
    asked = conversation.add_image_placeholders(
        question["question"], question["history"], len(images)
    )
    messages: list[dict[str, Any]] = []
    if question["system"]:
        messages.append({"role": "system", "content": question["system"]})
    for user, answer in [*question["history"], (asked, None)]:
        parts, images = _parts(str(user), images)
        messages.append({"role": "user", "content": parts})
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
    return messages


def _parts(text: str, images: list[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """(parts of a message, the images that are left).

    The chat template writes a newline behind each image; one that is there already is left out.
    """
    first, *others = text.split(conversation.IMAGE_PLACEHOLDER)
    parts: list[dict[str, Any]] = []
    if first:
        parts.append({"type": "text", "text": first})
    for number, other in enumerate(others):
        if number < len(images):
            parts.append(image_part(images[number]))
            other = other.removeprefix("\n")
        else:
            other = conversation.IMAGE_PLACEHOLDER + other  # a word without an image
        if other:
            parts.append({"type": "text", "text": other})
    return parts, images[len(others) :]
