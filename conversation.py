"""Conversation templates of the Skywork-R1V family, and the step from a conversation to token ids.

A prompt is a list of segments `(text, is_control)`: what the template writes may become control tokens, what a user
wrote never does. Joined, the segments are the prompt; `encode_segments` gives its ids.

    conversation = get_conv_template("skywork-r1v")
    conversation.append_message(conversation.roles[0], "<image>\\nWhat is this?")
    conversation.append_message(conversation.roles[1], None)
    conversation.get_prompt()
"""

import copy
import dataclasses
import re
from typing import NamedTuple

from transformers.utils import logging

logger = logging.get_logger(__name__)

IMAGE_PLACEHOLDER = "<image>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
IMAGE_TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT)
THINK_END = "</think>"


class Question(str):
    """A user's message that knows how many of its `<image>` stand for images; any further one is text.

    `chat()` returns such questions in the history, so that a word `<image>` in an earlier turn stays a word. A history
    of plain strings (one that went through JSON, say) gives images to the first `<image>` it has.
    """

    def __new__(cls, text, num_images):
        question = super().__new__(cls, text)
        question.num_images = num_images
        return question

    def __getnewargs__(self):  # for copies and pickles
        return str(self), self.num_images


@dataclasses.dataclass
class Conversation:
    """A template with the messages so far.

    Attributes:
        roles: what opens a user's and an assistant's message; the latter opens the thinking as well.
        sep: what closes an assistant's message, which is where generation stops.
        user_sep: what closes a user's message.
        system_prefix, system_suffix: around a system message, where there is one.
        begin: the begin-of-sentence token, which `get_prompt` leaves to the tokenizer.
        skipped_thinking: what follows the assistant's opening where thinking is turned off (`mode="no-think"`).
        stop_strings: tokens that end an answer, where the vocabulary has them.
        messages: pairs of role and text; a text of None is the answer to be generated.
    """

    name: str
    roles: tuple
    sep: str
    user_sep: str = ""
    begin: str = ""
    system_message: str = ""
    system_prefix: str = ""
    system_suffix: str = ""
    skipped_thinking: str = f"\n{THINK_END}\n\n"
    stop_strings: tuple = ()
    messages: list = dataclasses.field(default_factory=list)

    def append_message(self, role, message):
        """Add a message; None is the answer to be generated."""
        self.messages.append([role, message])

    def copy(self):
        """An independent copy, messages included."""
        return copy.deepcopy(self)

    def segments(self, images_tokens=()):
        """The prompt as `(text, is_control)` segments, without the begin-of-sentence token.

        Args:
            images_tokens: for each image of the conversation, in order, how many tokens it takes. As many of the
                literal `<image>` in the users' messages are replaced; any further one is text.

        Raises:
            ValueError: fewer `<image>` than images.
        """
        remaining = list(images_tokens)
        segments = []
        if self.system_message:
            segments += [(self.system_prefix, True), (self.system_message, False), (self.system_suffix, True)]
        for role, message in self.messages:
            segments.append((role, True))
            if message is None:
                continue
            if role == self.roles[0]:
                limit = getattr(message, "num_images", None)
                segments += _expand_placeholders(message, remaining, limit) + [(self.user_sep, True)]
            else:
                segments += _assistant_segments(message) + [(self.sep, True)]
        if remaining:
            given = len(images_tokens)
            raise ValueError(
                f"{given} image{'s' if given != 1 else ''} but {given - len(remaining)} {IMAGE_PLACEHOLDER} in the "
                f"question and history: write one {IMAGE_PLACEHOLDER} where each image belongs."
            )
        return [(text, is_control) for text, is_control in segments if text]

    def get_prompt(self):
        """The prompt as text, without the begin-of-sentence token: the tokenizer adds that one by itself."""
        return "".join(text for text, _ in self.segments())


def _assistant_segments(message):
    """An earlier answer; the first `</think>` closes the thinking that the role has opened, the rest is text."""
    thinking, mark, answer = message.partition(THINK_END)
    return [(thinking, False), (mark, True), (answer, False)]


def _expand_placeholders(text, remaining, limit=None):
    """Segments of a user's message; takes at most `limit` from `remaining`, the token counts of images not placed."""
    segments = []
    limit = len(remaining) if limit is None else min(limit, len(remaining))
    for _ in range(limit):
        if IMAGE_PLACEHOLDER not in text:
            break
        before, text = text.split(IMAGE_PLACEHOLDER, 1)
        segments += [(before, False), (IMAGE_START + IMAGE_CONTEXT * remaining.pop(0) + IMAGE_END, True)]
    return segments + [(text, False)]


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
)


def get_conv_template(name=None):
    """A fresh conversation of the named template; an unknown name gives that of R1V, with one warning."""
    for template in _TEMPLATES:
        if template.name == name:
            return template.copy()
    if name is not None:
        known = ", ".join(template.name for template in _TEMPLATES)
        logger.warning_once(f"Conversation template {name!r} is unknown (known: {known}); using that of Skywork-R1V.")
    return _TEMPLATES[0].copy()


def checked_turns(history):
    """The turns of a history, a list of (question, answer); None is an empty one. An answer may be None.

    Raises:
        ValueError: anything else, such as messages with roles, by its place.
    """
    turns = [] if history is None else history
    if not isinstance(turns, (list, tuple)):
        raise ValueError(f"history is {turns!r}: expected a list of (question, answer).")
    for number, turn in enumerate(turns, 1):
        is_pair = isinstance(turn, (list, tuple)) and len(turn) == 2
        if not is_pair or not isinstance(turn[0], str) or not isinstance(turn[1], (str, type(None))):
            raise ValueError(f"Turn {number} of the history is {turn!r}: expected (question, answer), two texts.")
    return turns


def place_images(question, history, num_images):
    """The question with the number of its images, and an `<image>` in front for each if it has none at all.

    Args:
        history: earlier turns, whose images count first.
        num_images: images of the whole conversation.

    Raises:
        ValueError: a history that is none, or fewer images than it is about.
    """
    own = num_images
    for earlier, _ in checked_turns(history):
        own -= getattr(earlier, "num_images", min(own, earlier.count(IMAGE_PLACEHOLDER)))
    if own < 0:
        raise ValueError(
            f"The history is about {num_images - own} image{'s' if num_images - own != 1 else ''}, but {num_images} "
            "came with this question: give all images of the conversation again, in order (encode_images() keeps them)."
        )
    if not own and num_images and IMAGE_PLACEHOLDER in question:
        logger.warning(
            f"The question has an {IMAGE_PLACEHOLDER}, but the history accounts for all {num_images} images given: it "
            "is read as a word. Give the images of earlier turns as well, in front of the new ones."
        )
    if IMAGE_PLACEHOLDER not in question:
        question = f"{IMAGE_PLACEHOLDER}\n" * own + question
    return Question(question, own)


def open_conversation(template, question, history=None, system_message=""):
    """A copy of the template with the earlier turns and a question that waits for its answer."""
    conversation = template.copy()
    conversation.system_message = system_message
    for earlier_question, answer in checked_turns(history):
        conversation.append_message(conversation.roles[0], earlier_question)
        conversation.append_message(conversation.roles[1], answer)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    return conversation


def token_id(tokenizer, token):
    """The id of a token, or None where the vocabulary does not have it (transformers gives that of `unk`)."""
    index = tokenizer.convert_tokens_to_ids(token) if token else None
    return None if index == tokenizer.unk_token_id and token != tokenizer.unk_token else index


def encode_segments(tokenizer, segments, begin=""):
    """Token ids of a prompt, in which only control segments can hold control tokens.

    The ids are those of tokenizing the joined text, except where a user's text spells out one of the tokenizer's
    added tokens: there it is cut inside that word and tokenized in parts, which reads the same to the model and is
    no control token.

    Args:
        tokenizer: any transformers tokenizer.
        segments: `(text, is_control)` pairs.
        begin: a token put in front of all, if the vocabulary has it.

    Returns:
        A list of ids.
    """
    text = "".join(part for part, _ in segments)
    edges = [0, *_cuts(tokenizer.get_added_vocab(), text, segments), len(text)]
    begin_id = token_id(tokenizer, begin)
    ids = [] if begin_id is None else [begin_id]
    for start, stop in zip(edges, edges[1:]):
        if start < stop:
            ids += tokenizer(text[start:stop], add_special_tokens=False)["input_ids"]
    return ids


def _cuts(added_tokens, text, segments):
    """Positions inside every added token of `text` that does not lie wholly in a control segment, ascending."""
    if not added_tokens:
        return []
    trusted, position = [], 0
    for part, is_control in segments:
        if is_control:
            trusted.append((position, position + len(part)))
        position += len(part)
    # A look-ahead finds overlapping tokens too
    longest_first = sorted(added_tokens, key=len, reverse=True)
    pattern = re.compile("(?=(" + "|".join(re.escape(token) for token in longest_first) + "))")
    cuts = set()
    for match in pattern.finditer(text):
        start, stop = match.start(), match.start() + len(match.group(1))
        if not any(low <= start and stop <= high for low, high in trusted):
            cuts.add(start + 1)
    return sorted(cuts)


class SplitAnswer(NamedTuple):
    """The two halves of an answer."""

    thinking: str
    answer: str


def split_thinking(text, thinking_opened=True):
    """Split what the model wrote into its thinking and its final answer.

    Args:
        text: an answer of `chat()`; a leading `<think>` is dropped.
        thinking_opened: whether the prompt had opened the thinking, as both templates do; decides what a text without
            `</think>` is: thinking that was not finished (True), or an answer given without thinking (False).

    Returns:
        `SplitAnswer(thinking, answer)`, both stripped. The first `</think>` divides; further ones stay in the answer.
    """
    text = text.strip()
    if text.startswith("<think>"):
        text, thinking_opened = text[len("<think>") :], True
    thinking, mark, answer = text.partition(THINK_END)
    if not mark and not thinking_opened:
        thinking, answer = "", text
    return SplitAnswer(thinking.strip(), answer.strip())
