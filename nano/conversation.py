"""Conversation templates of the Skywork-R1V family, and the way from a conversation to token ids.

A prompt is a list of segments `(text, is_control)`. What the template writes may become control
tokens; what a user wrote never does. Joined, the segments are the prompt; `encode_segments` gives
its ids.

    conversation = get_conv_template("skywork-r1v")
    conversation.append_message(conversation.roles[0], "<image>\\nWhat is this?")
    conversation.append_message(conversation.roles[1], None)
    conversation.get_prompt()

A new template is a further entry of `_TEMPLATES`, with its name in `KNOWN_TEMPLATES` of
configuration_skywork_chat.py. For assembling checkpoints with it, it also needs a Jinja file beside
chat_template.jinja, named in `CHAT_TEMPLATES` of training/assembly_plan.py, and a rule in
`choose_template` there. `make nano-code` copies the change into nano/.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from transformers.utils import logging

logger = logging.get_logger(__name__)

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
IMAGE_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
THINK_START, THINK_END = "<think>", "</think>"

Segment = tuple[str, bool]  # a text, and whether it may become control tokens


class Question(str):
    """A user's message that knows how many of its `<image>` stand for images; the rest is text.

    `chat()` returns such questions in the history, so that a word `<image>` in an earlier turn
    stays a word. In a history of plain strings, such as one that went through JSON, images belong
    to the first `<image>` that it has.
    """

    num_images: int

    def __new__(cls, text: str, num_images: int) -> Question:
        question = super().__new__(cls, text)
        question.num_images = num_images
        return question

    def __getnewargs__(self) -> tuple[str, int]:  # for copies and pickles
        return str(self), self.num_images


@dataclasses.dataclass
class Conversation:
    """A template with the messages so far.

    Attributes:
        name: of the template.
        roles: what opens a user's and an assistant's message; the latter opens the thinking too.
        sep: what closes an assistant's message, which is where generation stops.
        user_sep: what closes a user's message.
        begin: the begin-of-sentence token, which `get_prompt` leaves to the tokenizer.
        system_message: its text; empty for none. A template's own is that of every conversation
            in which nobody gives another.
        system_prefix: what stands before a system message.
        system_suffix: what stands after a system message.
        skipped_thinking: what follows the assistant's opening with `mode="no-think"`; empty for
            models that do not think.
        stop_strings: tokens that end an answer, where the vocabulary has them.
        messages: pairs of role and text; a text of None is the answer to be generated.
    """

    name: str
    roles: tuple[str, str]
    sep: str
    user_sep: str = ""
    begin: str = ""
    system_message: str = ""
    system_prefix: str = ""
    system_suffix: str = ""
    skipped_thinking: str = f"\n{THINK_END}\n\n"
    stop_strings: tuple[str, ...] = ()
    messages: list = dataclasses.field(default_factory=list)

    @property
    def opens_thinking(self) -> bool:
        """Whether an answer begins with thinking, which the assistant's role has opened."""
        return THINK_START in self.roles[1]

    def append_message(self, role: str, message: str | None) -> None:
        """Add a message; None is the answer to be generated."""
        self.messages.append([role, message])

    def copy(self) -> Conversation:
        """An independent copy, messages included."""
        return copy.deepcopy(self)

    def segments(self, tokens_of_images: Sequence[int] = ()) -> list[Segment]:
        """The prompt as `(text, is_control)` segments, without the begin-of-sentence token.

        Args:
            tokens_of_images: number of tokens of each image of the conversation, in order. As many
                `<image>` in the users' messages are replaced; any further one is text.

        Raises:
            ValueError: fewer `<image>` than images.
        """
        remaining = list(tokens_of_images)
        segments: list[Segment] = []
        if self.system_message:
            segments.append((self.system_prefix, True))
            segments.append((self.system_message, False))
            segments.append((self.system_suffix, True))
        for role, message in self.messages:
            segments.append((role, True))
            if message is None:
                continue
            if role == self.roles[0]:
                segments += _user_segments(message, remaining)
                segments.append((self.user_sep, True))
            else:
                segments += self._assistant_segments(message)
                segments.append((self.sep, True))
        if remaining:
            given = len(tokens_of_images)
            plural = "s" if given != 1 else ""
            raise ValueError(
                f"{given} image{plural} but {given - len(remaining)} {IMAGE_PLACEHOLDER} in the "
                f"question and history: write one {IMAGE_PLACEHOLDER} where each image belongs."
            )
        return [segment for segment in segments if segment[0]]

    def get_prompt(self) -> str:
        """The prompt as text, without the begin-of-sentence token that the tokenizer adds."""
        return "".join(text for text, _ in self.segments())

    def _assistant_segments(self, message: str) -> list[Segment]:
        """An earlier answer, whose first `</think>` closes the thinking that the role has opened.

        Where no thinking was opened, it is a text like any other.
        """
        if not self.opens_thinking:
            return [(message, False)]
        thinking, mark, answer = message.partition(THINK_END)
        return [(thinking, False), (mark, True), (answer, False)]


def _user_segments(message: str, remaining: list[int]) -> list[Segment]:
    """A user's message with image tokens in place of each `<image>` that stands for an image.

    Args:
        remaining: number of tokens of each image that has no place yet; those that get one here are
            removed.
    """
    num_images = getattr(message, "num_images", len(remaining))
    segments: list[Segment] = []
    text = str(message)
    for _ in range(min(num_images, len(remaining))):
        if IMAGE_PLACEHOLDER not in text:
            break
        before, text = text.split(IMAGE_PLACEHOLDER, 1)
        image_tokens = IMAGE_START + IMAGE_CONTEXT * remaining.pop(0) + IMAGE_END
        segments.append((before, False))
        segments.append((image_tokens, True))
    segments.append((text, False))
    return segments


_TEMPLATES = (
    Conversation(
        name="skywork-r1v",
        begin="<｜begin▁of▁sentence｜>",
        roles=("<｜User｜>\n", "<｜Assistant｜><think>\n"),
        sep="<｜end▁of▁sentence｜>",
        stop_strings=("<｜end▁of▁sentence｜>", "<|endoftext|>"),
    ),
    Conversation(
        name="skywork-r1v3",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n<think>\n"),
        sep="<|im_end|>\n",
        user_sep="<|im_end|>\n",
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>\n",
        stop_strings=("<|im_end|>", "<|endoftext|>"),
    ),
    Conversation(
        name="qwen2.5",
        roles=("<|im_start|>user\n", "<|im_start|>assistant\n"),
        sep="<|im_end|>\n",
        user_sep="<|im_end|>\n",
        system_message="You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        system_prefix="<|im_start|>system\n",
        system_suffix="<|im_end|>\n",
        skipped_thinking="",
        stop_strings=("<|im_end|>", "<|endoftext|>"),
    ),
)


def get_conv_template(name: str | None = None) -> Conversation:
    """A fresh conversation of the named template; an unknown name gives R1V's, with a warning."""
    for template in _TEMPLATES:
        if template.name == name:
            return template.copy()
    if name is not None:
        known = ", ".join(template.name for template in _TEMPLATES)
        logger.warning_once(
            f"Conversation template {name!r} is unknown (known: {known}); using that of "
            "Skywork-R1V."
        )
    return _TEMPLATES[0].copy()


def checked_turns(history: Sequence | None) -> Sequence:
    """The turns of a history, pairs (question, answer); None is an empty one.

    An answer may be None.

    Raises:
        ValueError: anything else, such as messages with roles, with the number of the turn.
    """
    turns = [] if history is None else history
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"history is {turns!r}: expected a list of (question, answer).")
    for number, turn in enumerate(turns, 1):
        if not _is_turn(turn):
            raise ValueError(
                f"Turn {number} of the history is {turn!r}: expected (question, answer), two texts."
            )
    return turns


def _is_turn(turn: object) -> bool:
    if not isinstance(turn, (list, tuple)) or len(turn) != 2:
        return False
    question, answer = turn
    return isinstance(question, str) and isinstance(answer, (str, type(None)))


def add_image_placeholders(question: str, history: Sequence | None, num_images: int) -> Question:
    """The question with the number of its images.

    Where it has no `<image>` at all, one for each of its images is put in front of it.

    Args:
        history: earlier turns, whose images come first.
        num_images: number of images of the whole conversation.

    Raises:
        ValueError: a history of another form, or fewer images than it is about.
    """
    num_new = num_images
    for earlier, _ in checked_turns(history):
        num_new -= getattr(earlier, "num_images", min(num_new, earlier.count(IMAGE_PLACEHOLDER)))
    if num_new < 0:
        num_earlier = num_images - num_new
        plural = "s" if num_earlier != 1 else ""
        raise ValueError(
            f"The history is about {num_earlier} image{plural}, but {num_images} came with this "
            "question: give all images of the conversation again, in order (encode_images() keeps "
            "them)."
        )
    num_placeholders = question.count(IMAGE_PLACEHOLDER)
    if num_placeholders > num_new:
        logger.warning(
            f"The question has {num_placeholders} {IMAGE_PLACEHOLDER} and {num_new} images (of "
            f"{num_images} given the history accounts for {num_images - num_new}): each "
            f"{IMAGE_PLACEHOLDER} without an image is read as a word. Give the images of earlier "
            "turns as well, in front of the new ones."
        )
    if IMAGE_PLACEHOLDER not in question:
        question = f"{IMAGE_PLACEHOLDER}\n" * num_new + question
    return Question(question, num_new)


def open_conversation(
    template: Conversation,
    question: str,
    history: Sequence | None = None,
    system_message: str | None = None,
) -> Conversation:
    """A copy of the template with the earlier turns and a question that waits for its answer.

    Args:
        system_message: in place of the template's own; empty for none.
    """
    conversation = template.copy()
    if system_message is not None:
        conversation.system_message = system_message
    for earlier_question, answer in checked_turns(history):
        conversation.append_message(conversation.roles[0], earlier_question)
        conversation.append_message(conversation.roles[1], answer)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return conversation


# -- from text to token ids ------------------------------------------------------------------------


def token_id(tokenizer: Any, token: str) -> int | None:
    """The id of a token, or None where the vocabulary does not have it.

    transformers gives the id of the unknown token there.
    """
    index = tokenizer.convert_tokens_to_ids(token) if token else None
    if index == tokenizer.unk_token_id and token != tokenizer.unk_token:
        return None
    return index


def ids_of_prompts_only(tokenizer: Any, template: Conversation) -> list[int]:
    """The ids of the tokens that a model must not write: of images, and the one that begins."""
    found = [token_id(tokenizer, token) for token in (*IMAGE_TOKENS, template.begin)]
    return [index for index in found if index is not None]


def encode_segments(tokenizer: Any, segments: Sequence[Segment], begin: str = "") -> list[int]:
    """Token ids of a prompt, in which only control segments can hold control tokens.

    The ids are those of tokenizing the joined text, except where a user's text spells out one of
    the tokenizer's added tokens. There it is cut inside that word and tokenized in parts, which
    reads the same to the model and is no control token.

    Args:
        tokenizer: any tokenizer of transformers.
        segments: `(text, is_control)` pairs.
        begin: a token that is put in front, if the vocabulary has it.
    """
    text = "".join(part for part, _ in segments)
    cuts = _positions_to_cut(tokenizer.get_added_vocab(), text, segments)
    edges = [0, *cuts, len(text)]
    begin_id = token_id(tokenizer, begin)
    ids = [] if begin_id is None else [begin_id]
    for start, stop in zip(edges, edges[1:]):
        if start < stop:
            ids += tokenizer(text[start:stop], add_special_tokens=False)["input_ids"]
    return ids


def _positions_to_cut(
    added_tokens: Iterable[str], text: str, segments: Sequence[Segment]
) -> list[int]:
    """Positions inside each added token of `text` that does not lie wholly in a control segment."""
    if not added_tokens:
        return []
    control_spans = _control_spans(segments)
    longest_first = sorted(added_tokens, key=len, reverse=True)
    alternatives = "|".join(re.escape(token) for token in longest_first)
    cuts = set()
    for match in re.finditer(f"(?=({alternatives}))", text):  # a look-ahead finds overlaps, too
        start = match.start()
        stop = start + len(match.group(1))
        is_control = any(low <= start and stop <= high for low, high in control_spans)
        if not is_control:
            cuts.add(start + 1)
    return sorted(cuts)


def _control_spans(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    """(start, stop) of every control segment in the joined text."""
    spans = []
    position = 0
    for part, is_control in segments:
        if is_control:
            spans.append((position, position + len(part)))
        position += len(part)
    return spans


# -- from an answer to its parts -------------------------------------------------------------------


class SplitAnswer(NamedTuple):
    """The two parts of an answer."""

    thinking: str
    answer: str


def split_thinking(text: str, thinking_opened: bool = True) -> SplitAnswer:
    """Split what the model wrote into its thinking and its final answer.

    Args:
        text: an answer of `chat()`; a leading `<think>` is dropped.
        thinking_opened: whether the prompt had opened the thinking (`opens_thinking` of the
            template, unless the prompt closes it again). It decides what a text without `</think>`
            is: a thinking that was not finished (True), or an answer without thinking (False).

    Returns:
        `SplitAnswer(thinking, answer)`, both stripped. The first `</think>` divides; further ones
        stay in the answer.
    """
    text = text.strip()
    if text.startswith(THINK_START):
        text = text[len(THINK_START) :]
        thinking_opened = True
    thinking, mark, answer = text.partition(THINK_END)
    if not mark and not thinking_opened:
        return SplitAnswer("", text.strip())
    return SplitAnswer(thinking.strip(), answer.strip())
