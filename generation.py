"""What `chat()` adds to generation: a budget for thinking, stopping from outside, streams, image features to keep.

    features = model.encode_images("a.jpg")  # once for all turns
    with model.chat_stream(tokenizer, features, "What is this?", options, thinking_budget=512) as stream:
        for text in stream:
            print(text, end="", flush=True)
    stream.answer, stream.history

The calls are methods of `SkyworkChatModel`; here is what they need besides transformers' own `generate`.
"""

import dataclasses
import threading

import torch
from transformers import LogitsProcessor, StoppingCriteria, TextIteratorStreamer

from .transformers_compat import stopping_decision


@dataclasses.dataclass
class ImageFeatures:
    """Images that have been through the vision tower and the projector; `chat()` takes them in place of pixels.

    Attributes:
        features: (tiles, num_image_token, hidden size of the language model).
        num_patches: tiles of each image.
    """

    features: torch.Tensor
    num_patches: list

    def __add__(self, other):
        """These images and then the others, as a conversation collects them."""
        if not isinstance(other, ImageFeatures):
            return NotImplemented
        features = torch.cat([self.features, other.features.to(self.features)])
        return ImageFeatures(features, [*self.num_patches, *other.num_patches])


class ThinkingBudget(LogitsProcessor):
    """Closes the thinking of every row that has not closed it by itself after so many tokens.

    What it does depends on the ids alone, so that beams, batches and assisted decoding may call it in any order.

    Args:
        budget: tokens of thinking, at least 0.
        closing_ids: what ends the thinking, `</think>` among them, forced one by one.
        think_end_id: the id of `</think>`.
        prompt_length: tokens before the first generated one in the ids that `generate` hands over.
    """

    def __init__(self, budget, closing_ids, think_end_id, prompt_length=0):
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ValueError(f"thinking_budget={budget!r}: expected a number of tokens, at least 0, or None.")
        self.budget = budget
        self.closing_ids = list(closing_ids)
        self.think_end_id = think_end_id
        self.prompt_length = prompt_length

    def __call__(self, input_ids, scores):
        thinking = input_ids[:, self.prompt_length :]
        step = thinking.shape[1] - self.budget
        if not 0 <= step < len(self.closing_ids):
            return scores
        closed = (thinking[:, : self.budget] == self.think_end_id).any(dim=1, keepdim=True)
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self.closing_ids[step]] = 0
        return torch.where(closed, scores, forced)


class Written(StoppingCriteria):
    """Remembers what has been written, so that an interrupt does not lose it, and stops when told to.

    Attributes:
        ids: (batch, tokens so far), or None before the first.
        stop: a `threading.Event`; once set, generation ends with the next token.
    """

    def __init__(self):
        self.ids = None
        self.stop = threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        self.ids = input_ids
        return stopping_decision(self.stop.is_set(), input_ids)


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during `chat()` or `batch_chat()`; ends a program as any KeyboardInterrupt, and nothing is lost.

    Attributes:
        answers: what had been written, for each question.
    """

    def __init__(self, answers):
        super().__init__("generation was interrupted; what had been written is in .answers")
        self.answers = answers


class AnswerStream:
    """An answer as it is written: iterate over pieces of text. Closing it, or leaving the loop, stops generation.

    Attributes:
        answer: the text so far; after the last piece what `chat()` would have returned.
        history: the conversation with this turn, once the answer is complete; None before, and if it was stopped.
    """

    def __init__(self, tokenizer, ask):
        """Start.

        Args:
            ask: called in a thread of its own with (streamer, written); returns (answer, history).
        """
        self.answer, self.history = "", None
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._written = Written()
        self._outcome, self._ended = {}, False
        # The thread must not hold this object: a stream that nobody holds any more is closed by __del__
        self._thread = threading.Thread(
            target=_run, args=(ask, self._streamer, self._written, self._outcome), name="chat_stream", daemon=True
        )
        self._thread.start()

    def __iter__(self):
        """The pieces that are left; closes the stream when the loop over them is left early."""
        try:
            while (piece := next(self, None)) is not None:
                yield piece
        finally:
            self.close()

    def __next__(self):
        """The next piece of text.

        Raises:
            Whatever `chat()` raises; what had been written by then is in `answer`.
        """
        try:
            for piece in () if self._ended else self._streamer:
                if piece:
                    self.answer += piece
                    return piece
        except BaseException:  # Ctrl-C while waiting: the thread must not go on alone
            self.close()
            raise
        self._ended = True
        self._thread.join()
        error = self._outcome.pop("error", None)
        if error is not None:
            raise error
        if "answer" in self._outcome:
            self.answer, history = self._outcome.pop("answer")
            self.history = None if self._written.stop.is_set() else history
        raise StopIteration

    def close(self):
        """Stop generating and wait for the token that is being computed (the first one takes the whole prompt).

        Further iteration gives what is left.
        """
        self._written.stop.set()
        self._thread.join()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def __del__(self):
        if hasattr(self, "_written"):
            self._written.stop.set()


def _run(ask, streamer, written, outcome):
    try:
        outcome["answer"] = ask(streamer, written)
    except BaseException as error:  # handed to the reader, in its own thread
        outcome["error"] = error
        streamer.end()


def check_context(length, max_new_tokens, limit):
    """See that a prompt and its answer fit, before anything expensive runs.

    Args:
        length: tokens of the longest prompt.
        max_new_tokens: the most that may be generated, or None.
        limit: `max_position_embeddings`.

    Raises:
        ValueError: with all three numbers.
    """
    room = limit - length
    if room < 1:
        raise ValueError(
            f"The prompt has {length} tokens and the model's context {limit}: shorten it, or give fewer images or "
            "tiles (max_dynamic_patch in preprocessor_config.json, max_num of the model card's load_image)."
        )
    if max_new_tokens is not None and max_new_tokens > room:
        raise ValueError(
            f"The prompt has {length} tokens, and {max_new_tokens} new ones are allowed (max_new_tokens, or what "
            f"max_length leaves), together more than the model's context of {limit}: set max_new_tokens to at most "
            f"{room}, or shorten the prompt."
        )
