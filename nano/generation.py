"""What `chat()` adds to transformers' `generate`: settings, a thinking budget, interrupts, streams.

    with model.chat_stream(tokenizer, "a.jpg", "What is it?", options) as stream:
        for text in stream:
            print(text, end="", flush=True)
    stream.answer, stream.history

The calls themselves are methods of `SkyworkChatModel` (chat.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TextIteratorStreamer,
)
from transformers.utils import logging

from .conversation import THINK_END, Conversation, encode_segments, token_id
from .decoding import requested_cache
from .transformers_compat import (
    EMBEDDINGS_COUNT_IN_MAX_LENGTH,
    NUM_PREFIX_IDS,
    UNREQUESTED_MAX_LENGTH,
    stopping_decision,
)

logger = logging.get_logger(__name__)

# Options of transformers' generate that need the ids of the prompt, with the value that leaves each
# off beside None and False.
NEEDS_PROMPT_IDS = {
    "assistant_early_exit": None,
    "assistant_model": None,
    "constraints": None,
    "dola_layers": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "force_words_ids": None,
    "guidance_scale": 1.0,
    "is_assistant": None,
    "penalty_alpha": None,
    "prefill_chunk_size": None,
    "token_healing": None,
    "use_mtp": None,
}
# Options that ask for something beside the text of an answer.
OUTPUTS_BESIDE_TEXT = (
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
)
# Keywords of generate() that chat() makes itself.
MADE_BY_CHAT = (
    "attention_mask",
    "generation_config",
    "image_token_id",
    "input_ids",
    "inputs_embeds",
    "negative_prompt_ids",
    "pixel_values",
    "visual_features",
)


class ThinkingBudget(LogitsProcessor):
    """Closes the thinking of every row that has not closed it by itself after so many tokens.

    What it does depends on the ids alone, so beams, batches and assisted decoding may call it in
    any order.

    Args:
        budget: number of tokens of thinking, at least 0.
        closing_ids: the tokens that end the thinking, `</think>` among them; each is forced in
            turn.
        think_end_id: the id of `</think>`.
        prompt_length: number of ids before the first generated one in what `generate` hands over.

    Raises:
        ValueError: a budget that is not a number of tokens.
    """

    def __init__(
        self, budget: int, closing_ids: Iterable[int], think_end_id: int, prompt_length: int = 0
    ) -> None:
        if isinstance(budget, bool) or not isinstance(budget, int) or budget < 0:
            raise ValueError(
                f"thinking_budget={budget!r}: expected a number of tokens, at least 0, or None."
            )
        self.budget = budget
        self.closing_ids = list(closing_ids)
        self.think_end_id = think_end_id
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        thinking = input_ids[:, self.prompt_length :]
        step = thinking.shape[1] - self.budget
        if not 0 <= step < len(self.closing_ids):
            return scores
        within_budget = thinking[:, : self.budget]
        closed = (within_budget == self.think_end_id).any(dim=1, keepdim=True)  # (rows, 1)
        # Another processor may have begun to close it a few tokens before, and goes on.
        begun = thinking.new_tensor(self.closing_ids[:step])
        taken_over = (thinking[:, self.budget :] != begun).any(dim=1, keepdim=True)
        return torch.where(closed | taken_over, scores, only(self.closing_ids[step], scores))


class RepetitionLimit(LogitsProcessor):
    """Ends a loop, in which a model writes the same passage again and again.

    Reasoning models fall into loops, above all where they decode greedily, and would fill the
    context. A loop within the thinking closes the thinking, so that an answer follows; a loop in
    the answer ends it. As in `ThinkingBudget`, all depends on the ids alone.

    Args:
        max_repetitions: how often a passage may stand in a row, at least 2. Repetitions that are
            shorter than `MIN_LOOP` tokens together are no loop: tables and numbers have them.
        closing_ids: the tokens that end the thinking; empty where there is none.
        think_end_id: the id of `</think>`, or None.
        stop_id: of the token that ends the answer.
        prompt_length: number of ids before the first generated one in what `generate` hands over.

    Raises:
        ValueError: `max_repetitions` below 2, or no whole number.
    """

    MIN_LOOP = 100  # tokens
    MAX_PERIOD = 400  # tokens of the longest passage that is looked for
    CHECK_EVERY = 16  # tokens: each check makes the host wait for the GPU

    def __init__(
        self,
        max_repetitions: int,
        closing_ids: Iterable[int],
        think_end_id: int | None,
        stop_id: int,
        prompt_length: int = 0,
    ) -> None:
        is_number = isinstance(max_repetitions, int) and not isinstance(max_repetitions, bool)
        if not is_number or max_repetitions < 2:
            raise ValueError(
                f"max_repetitions={max_repetitions!r}: expected a whole number of at least 2, or "
                "None."
            )
        self.max_repetitions = max_repetitions
        self.closing_ids = list(closing_ids)
        self.think_end_id = think_end_id
        self.stop_id = stop_id
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1] - self.prompt_length
        # Tokens since the last check; a thinking that it began to close needs several.
        step = length % self.CHECK_EVERY
        if length < self.MIN_LOOP or step >= max(1, len(self.closing_ids)):
            return scores
        rows = input_ids[:, self.prompt_length :].tolist()
        for index, row in enumerate(rows):
            forced = self._forced_id(row[: length - step], row[length - step :])
            if forced is not None:
                scores = scores.clone()
                scores[index] = only(forced, scores[index])
        return scores

    def _forced_id(self, checked: list[int], since: list[int]) -> int | None:
        """The token that has to follow `checked` and `since`, or None."""
        if not self.is_loop(checked):
            return None
        if not self.closing_ids or self.think_end_id in checked:
            return self.stop_id if not since else None
        if since != self.closing_ids[: len(since)]:
            return None
        return self.closing_ids[len(since)]

    def is_loop(self, ids: list[int]) -> bool:
        """Whether a row ends in more repetitions than are allowed."""
        for period in range(1, self.MAX_PERIOD + 1):
            # One repetition more than is allowed
            needed = max(self.MIN_LOOP, period * (self.max_repetitions + 1))
            if needed > len(ids) or ids[-1] != ids[-1 - period]:
                continue
            if ids[-needed:-period] == ids[period - needed :]:
                return True
        return False


def only(token: int, scores: torch.Tensor) -> torch.Tensor:
    """Scores (..., vocabulary) with which this token is the next one."""
    forced = torch.full_like(scores, float("-inf"))
    forced[..., token] = 0
    return forced


class GenerationMonitor(StoppingCriteria):
    """Keeps the ids that have been generated so far, and stops the generation when asked to.

    Attributes:
        ids: (rows, tokens so far), or None before the first token.
        stop: a `threading.Event`; once it is set, the generation ends with the next token.
    """

    def __init__(self) -> None:
        self.ids: torch.Tensor | None = None
        self.stop = threading.Event()

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor | bool:
        self.ids = input_ids
        return stopping_decision(self.stop.is_set(), input_ids)

    def generated_rows(self, num_questions: int) -> list[list[int]]:
        """The ids generated so far for each question; of several beams those of the best."""
        if self.ids is None:
            return [[] for _ in range(num_questions)]
        beams = len(self.ids) // num_questions
        return self.ids[::beams, NUM_PREFIX_IDS:].tolist()


class SuppressedTokens(LogitsProcessor):
    """Never lets the model write some tokens, such as those of images.

    A completion with image tokens could not be scored: there are no images for them.

    Args:
        ids: of the tokens.
    """

    def __init__(self, ids: Iterable[int]) -> None:
        self.ids = list(ids)
        self._index = torch.tensor(self.ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._index = self._index.to(scores.device)  # copied to a GPU once, not for each token
        return scores.index_fill(1, self._index, float("-inf"))


class CheckedLogits(LogitsProcessor):
    """Raises an error where the logits of the first token are no numbers.

    From NaN the best token is the first of the vocabulary, so that an answer would be "!!!!!!!!".
    Later tokens are not looked at: each look makes the host wait for the GPU.
    """

    def __init__(self) -> None:
        self.is_checked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.is_checked and bool(scores.isnan().any() | scores.isposinf().any()):
            raise ValueError(
                "The model's logits are NaN or infinite. Either a weight is (a file of the "
                "checkpoint is damaged or incomplete: compare its size and hash), or the images "
                "are (image_mean and image_std of preprocessor_config.json), or numbers overflow "
                "the dtype (load in bfloat16 or float32 rather than float16)."
            )
        self.is_checked = True
        return scores


def guarded_processors(
    given: Iterable[LogitsProcessor] | None, never_generated_ids: Iterable[int]
) -> LogitsProcessorList:
    """The caller's logits processors, and after them the two above."""
    added = [CheckedLogits(), SuppressedTokens(never_generated_ids)]
    return LogitsProcessorList([*(given or []), *added])


class CandidatesWithoutImages:
    """The guesses of another candidate generator up to their first image token.

    Prompt lookup guesses the next tokens by copying from the prompt, and a guessed image token
    would have no image behind it.

    Args:
        guesses: transformers' candidate generator.
        image_token_id: of the image tokens.
    """

    def __init__(self, guesses: Any, image_token_id: int) -> None:
        self.guesses = guesses
        self.image_token_id = image_token_id

    def get_candidates(self, input_ids: torch.Tensor, *arguments: Any) -> tuple[Any, Any]:
        """(input_ids with the guessed tokens behind them, the logits of those or None)."""
        candidates, logits = self.guesses.get_candidates(input_ids, *arguments)
        length = input_ids.shape[1]
        is_image = (candidates[0, length:] == self.image_token_id).nonzero()
        if len(is_image):
            num_kept = int(is_image[0])
            candidates = candidates[:, : length + num_kept]
            logits = None if logits is None else logits[:, :num_kept]
        return candidates, logits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guesses, name)


class GenerationInterrupted(KeyboardInterrupt):
    """Ctrl-C during `chat()` or `batch_chat()`; it ends a program as any KeyboardInterrupt.

    Attributes:
        answers: what had been generated, for each question.
    """

    def __init__(self, answers: list[str]) -> None:
        super().__init__("generation was interrupted; what had been written is in .answers")
        self.answers = answers


# -- settings of a call ----------------------------------------------------------------------------


def copied_keywords(generation_config: Any) -> dict[str, Any]:
    """A copy of the keywords in a generation config that is a dict; else an empty dict.

    The dicts inside are copied too: transformers 4.56 to 5.18 writes into `cache_config`.
    """
    if generation_config is None or isinstance(generation_config, GenerationConfig):
        return {}
    return {
        name: dict(value) if isinstance(value, dict) else value
        for name, value in generation_config.items()
    }


def requested_setting(keywords: dict[str, Any], config: GenerationConfig | None, name: str) -> Any:
    """A setting of a call of `generate`: a keyword counts before the config."""
    value = keywords.get(name)
    return getattr(config, name, None) if value is None else value


def set_stop_and_pad_tokens(
    keywords: dict[str, Any],
    config: GenerationConfig | None,
    tokenizer: PreTrainedTokenizerBase,
    template: Conversation,
) -> None:
    """Complete keywords, in place, by the template's stop tokens and the tokenizer's pad token.

    Tokens that the keywords or the config name are kept.
    """
    for name in ("eos_token_id", "pad_token_id"):
        if keywords.get(name) is None:
            keywords.pop(name, None)
    stops = _stop_ids(tokenizer, template)
    if getattr(config, "eos_token_id", None) is None:
        keywords.setdefault("eos_token_id", stops)
    if getattr(config, "pad_token_id", None) is None:
        pad = tokenizer.pad_token_id
        keywords.setdefault("pad_token_id", stops[0] if pad is None else pad)
    else:
        keywords["pad_token_id"] = config.pad_token_id


def as_set(token_ids: Any) -> set:
    """A set of ids from one id, several or None, as generation configs have them."""
    return set(token_ids) if isinstance(token_ids, (list, tuple, set)) else {token_ids}


def _stop_ids(tokenizer: PreTrainedTokenizerBase, template: Conversation) -> list[Any]:
    """The ids that end an answer: of the template's stop tokens, or the end-of-sentence token."""
    stops = []
    for token in template.stop_strings:
        stop = token_id(tokenizer, token)
        if stop is not None:
            stops.append(stop)
    return stops or [tokenizer.eos_token_id]


def check_prompt_free(keywords: dict[str, Any], config: GenerationConfig | None) -> None:
    """Check that no option needs the ids of the prompt, of which the decoder gets embeddings.

    Raises:
        ValueError: with the option's name.
    """
    for name, neutral in NEEDS_PROMPT_IDS.items():
        value = requested_setting(keywords, config, name)
        if value is not None and value is not False and value != neutral:
            raise ValueError(
                f"{name}={value!r} needs the token ids of the prompt, and here the decoder gets "
                "embeddings: load the checkpoint with AutoModelForImageTextToText, whose "
                "generate() gets ids."
            )


def check_chat_options(keywords: dict[str, Any], config: GenerationConfig | None) -> None:
    """Check that the options of a chat can have an effect on its answer.

    Raises:
        ValueError: with the option's name.
    """
    check_single_answer(keywords, config)
    check_prompt_free(keywords, config)
    for name in OUTPUTS_BESIDE_TEXT:
        if requested_setting(keywords, config, name):
            raise ValueError(
                f"{name}=True has no effect on an answer, which is a text: call generate() for "
                "more than the text."
            )
    for name in MADE_BY_CHAT:
        if keywords.get(name) is not None:
            raise ValueError(
                f"{name} is made of the question and its images here: leave it out, or call "
                "generate()."
            )


def check_single_answer(keywords: dict[str, Any], config: GenerationConfig | None) -> None:
    """Raise a ValueError where more than one answer to a question is asked for."""
    samples = requested_setting(keywords, config, "num_return_sequences") or 1
    if samples != 1:
        raise ValueError(
            f"num_return_sequences={samples}: chat gives one answer to a question; use generate() "
            "for more."
        )


def requested_new_tokens(
    keywords: dict[str, Any], config: GenerationConfig | None, prompt_length: int
) -> int | None:
    """How many tokens a call of `generate` may add to a prompt; None where nobody said.

    That is `max_new_tokens`, or what `max_length` leaves after the prompt.
    """
    new_tokens = requested_setting(keywords, config, "max_new_tokens")
    if new_tokens is not None:
        return new_tokens
    total = requested_setting(keywords, config, "max_length")
    if total is None:
        return None
    if total == UNREQUESTED_MAX_LENGTH and keywords.get("max_length") is None:
        return None
    if EMBEDDINGS_COUNT_IN_MAX_LENGTH:
        return total - prompt_length
    return total - NUM_PREFIX_IDS


def set_length(
    keywords: dict[str, Any], config: GenerationConfig | None, prompt_length: int, context: int
) -> int:
    """Set `max_new_tokens`, in place, to the rest of the context where no length was asked for.

    transformers would stop at 20 tokens.

    Args:
        prompt_length: number of tokens of the longest prompt.
        context: `max_position_embeddings`.

    Returns:
        The most tokens that may be generated.

    Raises:
        ValueError: a static cache without a length, or a prompt that exceeds the context.
    """
    new_tokens = fit_into_context(keywords, config, prompt_length, context)
    if new_tokens is not None:
        return new_tokens
    if "static" in str(requested_cache(keywords, config)):
        raise ValueError(
            "cache_implementation='static' without a length: the whole cache is allocated at once, "
            "and every token attends over all of it. Set max_new_tokens."
        )
    keywords["max_new_tokens"] = context - prompt_length
    return keywords["max_new_tokens"]


def make_thinking_budget(
    tokenizer: PreTrainedTokenizerBase, template: Conversation, budget: int, max_new_tokens: int
) -> ThinkingBudget:
    """A `ThinkingBudget` that closes the thinking with the words of a skipped thinking.

    Raises:
        ValueError: a template without thinking, a tokenizer without `</think>`, or no room for an
            answer after the thinking.
    """
    if not template.opens_thinking:
        raise ValueError(
            f"thinking_budget={budget}: this model does not think (template={template.name!r}). "
            "Leave the budget out."
        )
    closing_ids = encode_segments(tokenizer, [(template.skipped_thinking, True)])
    think_end_id = token_id(tokenizer, THINK_END)
    if think_end_id is None:
        raise ValueError(
            f"thinking_budget={budget}: the tokenizer has no token {THINK_END} that could close a "
            "thinking."
        )
    processor = ThinkingBudget(budget, closing_ids, think_end_id, NUM_PREFIX_IDS)
    if max_new_tokens <= budget + len(closing_ids):
        raise ValueError(
            f"thinking_budget={budget} and max_new_tokens={max_new_tokens}: the thinking and the "
            f"{len(closing_ids)} tokens that close it leave no room for an answer; raise "
            "max_new_tokens or lower the budget."
        )
    return processor


def make_repetition_limit(
    tokenizer: PreTrainedTokenizerBase,
    template: Conversation,
    max_repetitions: int,
    stop_id: int,
    thinks: bool,
) -> RepetitionLimit:
    """A `RepetitionLimit` for answers of this template.

    Args:
        stop_id: of the token that ends an answer.
        thinks: whether the answers begin with a thinking.

    Raises:
        ValueError: `max_repetitions` below 2, or no whole number.
    """
    closing_ids: list[int] = []
    think_end_id = token_id(tokenizer, THINK_END)
    if thinks and template.opens_thinking and think_end_id is not None:
        closing_ids = encode_segments(tokenizer, [(template.skipped_thinking, True)])
    return RepetitionLimit(max_repetitions, closing_ids, think_end_id, stop_id, NUM_PREFIX_IDS)


def fit_into_context(
    keywords: dict[str, Any], config: GenerationConfig | None, prompt_length: int, context: int
) -> int | None:
    """Set `max_new_tokens`, in place, to the rest of the context where more was asked for.

    Scripts send one number for all models, so that is a warning and no error. Positions beyond the
    context were never trained.

    Args:
        prompt_length: number of tokens of the longest prompt.
        context: `max_position_embeddings`.

    Returns:
        The most tokens that may be generated, or None where nobody said.

    Raises:
        ValueError: a prompt that leaves no room for an answer.
    """
    room = context - prompt_length
    if room < 1:
        raise ValueError(
            f"The prompt has {prompt_length} tokens and the model's context {context}: shorten it, "
            "or give fewer images or tiles (max_dynamic_patch in preprocessor_config.json, max_num "
            "of the model card's load_image)."
        )
    new_tokens = requested_new_tokens(keywords, config, prompt_length)
    if new_tokens is None or new_tokens <= room:
        return new_tokens
    logger.warning(
        f"The prompt has {prompt_length} tokens, and {new_tokens} new ones are allowed "
        "(max_new_tokens, or what max_length leaves), together more than the model's context of "
        f"{context}: the answer ends after {room} tokens."
    )
    keywords.pop("max_length", None)
    keywords["max_new_tokens"] = room
    return room


# -- streams ---------------------------------------------------------------------------------------


class AnswerStream:
    """An answer as it is generated; iterate over it for pieces of text.

    Closing the stream, or leaving the loop over it, stops the generation.

    Attributes:
        answer: the text so far; after the last piece what `chat()` would have returned.
        history: the conversation with this turn, once the answer is complete. None before that, and
            where the stream was stopped.

    Args:
        ask: called in a thread of its own with the streamer and the monitor of the generation; it
            returns (answer, history).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ask: Callable[[TextIteratorStreamer, GenerationMonitor], tuple[str, list]],
    ) -> None:
        self.answer = ""
        self.history: list | None = None
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._monitor = GenerationMonitor()
        self._outcome: dict[str, Any] = {}
        self._ended = False
        # The thread must not hold this object: __del__ closes a stream that nobody holds any more.
        self._thread = threading.Thread(
            target=_run,
            args=(ask, self._streamer, self._monitor, self._outcome),
            name="chat_stream",
            daemon=True,
        )
        self._thread.start()

    def __iter__(self) -> Iterator[str]:
        """The pieces that are left; leaving the loop over them early closes the stream."""
        try:
            while (piece := next(self, None)) is not None:
                yield piece
        finally:
            self.close()

    def __next__(self) -> str:
        """The next piece of text.

        Raises:
            Whatever `chat()` raises; what had been generated by then is in `answer`.
        """
        piece = self._wait_for_piece()
        if piece is not None:
            self.answer += piece
            return piece
        self._ended = True
        self._thread.join()
        error = self._outcome.pop("error", None)
        if error is not None:
            raise error
        if "answer" in self._outcome:
            self.answer, history = self._outcome.pop("answer")
            self.history = None if self._monitor.stop.is_set() else history
        raise StopIteration

    def _wait_for_piece(self) -> str | None:
        """The next piece that is not empty, or None at the end."""
        if self._ended:
            return None
        try:
            return next((piece for piece in self._streamer if piece), None)
        except BaseException:  # Ctrl-C while waiting: the thread must not go on alone
            self.close()
            raise

    def close(self) -> None:
        """Stop the generation and wait for the token that is being computed.

        The first token takes as long as reading the whole prompt. Further iteration gives the
        pieces that are left.
        """
        self._monitor.stop.set()
        self._thread.join()

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_monitor"):
            self._monitor.stop.set()


def _run(
    ask: Callable[[TextIteratorStreamer, GenerationMonitor], tuple[str, list]],
    streamer: TextIteratorStreamer,
    monitor: GenerationMonitor,
    outcome: dict[str, Any],
) -> None:
    try:
        outcome["answer"] = ask(streamer, monitor)
    except BaseException as error:  # the reader raises it in its own thread
        outcome["error"] = error
        streamer.end()
