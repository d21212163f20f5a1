"""Comparing greedy generations that were computed in numerically different ways.

Sums of floating-point numbers depend on the order of their terms. Another batch size, padding, a
cache, a compiler, another attention kernel or another processor therefore changes the last bits of
the logits. Where the two best logits are closer than that, a greedy generation may take either
token, and everything after it differs. So tests of such ways compare like this:

    first = comparison.ask(model.chat, tokenizer, image, question, GREEDY)
    second = comparison.ask(model.batch_chat, tokenizer, [image], [question], GREEDY)
    comparison.assert_same_answers(first, second)

Where the ids are equal, which is the usual case, that costs nothing. Where they are not, the
logits at the first difference are computed once more, and the test fails unless both tokens are
best within the tolerance. A wrong image, a shifted position or a lost system message changes logits
by much more.

Ways that run the same kernels on the same shapes are compared for equality in the tests themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch

# Logits of the checkpoints of these tests are of the order of 10, and float32 gives them to about
# 1e-5 in any order of summation (the golden files' tolerance is 1e-4). Two logits that are this
# close are a tie.
TIE = 1e-3

NextLogits = Callable[[list[int]], torch.Tensor]


def assert_same_greedy(
    next_logits: NextLogits,
    first: Sequence[int],
    second: Sequence[int],
    tolerance: float = TIE,
) -> None:
    """Check that two greedy continuations of one prompt are equal up to their first tie.

    Args:
        next_logits: gives the logits (vocabulary,) of the token after the prompt and some new ids.
            It is called only where the continuations differ, with the ids that they have in common.
        first: new ids.
        second: new ids of the other way.
        tolerance: how far below the best logit a token may be that was taken for the best.
    """
    pairs = zip(first, second)
    position = next((index for index, (one, other) in enumerate(pairs) if one != other), None)
    if position is None:
        assert len(first) == len(second), (
            f"one generation ended after {min(len(first), len(second))} tokens, where the other, "
            f"which began with the same tokens, went on to {max(len(first), len(second))}"
        )
        return
    logits = next_logits(list(first[:position]))
    best = logits.max().item()
    for token in (first[position], second[position]):
        behind = best - logits[token].item()
        assert behind <= tolerance, (
            f"new token {position} is {first[position]} one way and {second[position]} the other, "
            f"and the logit of {token} is {behind:.3g} below the best: more than the {tolerance:g} "
            "of a tie"
        )


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt of one row, without padding, and how to get logits after it.

    Attributes:
        model: either class of this repository.
        input_ids: (1, length).
        images: the row's images as a keyword of `model()`; empty for none.
    """

    model: Any
    input_ids: torch.Tensor
    images: dict[str, torch.Tensor]

    def next_logits(self, new_ids: list[int]) -> torch.Tensor:
        """Logits (vocabulary,) of the token after the prompt and `new_ids`, in one pass."""
        return self.logits_along(new_ids)[-1]

    def logits_along(self, new_ids: list[int]) -> torch.Tensor:
        """Logits (new ids + 1, vocabulary) of each of `new_ids` and of the token after them."""
        added = torch.tensor([new_ids], dtype=self.input_ids.dtype)
        ids = torch.cat([self.input_ids, added.to(self.input_ids.device)], dim=1)
        with torch.no_grad():
            output = self.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                logits_to_keep=len(new_ids) + 1,
                use_cache=False,
                **self.images,
            )
        return output.logits[0].float()


def prompts_of(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    visual_features: torch.Tensor | None = None,
    **_: Any,
) -> list[Prompt]:
    """The rows that a call of `generate` continues, each without padding and with its own images.

    Args:
        model: the model whose `generate` is called.
        The others: keywords of `generate`, of which most are not needed.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    name, images, tokens_per_tile = "", None, 1
    if pixel_values is not None:
        name, images = "pixel_values", pixel_values
        tokens_per_tile = model._num_features_per_tile(pixel_values)
    elif visual_features is not None:
        name, images = "image_features", visual_features
        tokens_per_tile = visual_features.shape[1]
    prompts, start = [], 0
    for row, mask in zip(input_ids, attention_mask.bool()):
        ids = row[mask][None]
        stop = start + int((ids == model.img_context_token_id).sum()) // tokens_per_tile
        of_row = {name: images[start:stop]} if images is not None and stop > start else {}
        prompts.append(Prompt(model, ids, of_row))
        start = stop
    return prompts


def assert_same_rows(
    model: Any,
    prompt: dict[str, Any],
    first: torch.Tensor,
    second: torch.Tensor,
    tolerance: float = TIE,
) -> None:
    """Check that two results of `model.generate(**prompt)` are the same greedy tokens, row by row.

    Args:
        prompt: the keywords of `generate` that say what is continued.
        first: (batch, new tokens), or with the prompt in front, as the standard class gives it.
        second: the same of the other way.
    """
    length = prompt["input_ids"].shape[1]
    if not hasattr(model, "chat"):
        assert torch.equal(first[:, :length], second[:, :length]), "the prompts differ"
        first, second = first[:, length:], second[:, length:]
    assert len(first) == len(second) == len(prompt["input_ids"])
    for row, one, other in zip(prompts_of(model, **prompt), first.tolist(), second.tolist()):
        assert_same_greedy(row.next_logits, one, other, tolerance)


# -- answers of a chat -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Row:
    """What one row of a call of `generate` continued, and with which ids (up to its stop token)."""

    prompt: Prompt
    new_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a call answered: its result, the texts in it, and the generation behind each text."""

    result: Any
    texts: list[str]
    rows: list[Row]

    @property
    def text(self) -> str:
        """The answer of a call with one question."""
        assert len(self.texts) == 1
        return self.texts[0]

    def of(self, index: int) -> Answers:
        """One question of a batch, as if it had been asked alone."""
        return Answers(self.texts[index], [self.texts[index]], [self.rows[index]])


def ask(method: Callable, *arguments: Any, **keywords: Any) -> Answers:
    """Call `chat`, `batch_chat` or `chat_stream` of a model, and keep the ids that it generates."""
    with recorded(method.__self__) as rows:
        result = method(*arguments, **keywords)
        if method.__name__ == "chat_stream":
            result = "".join(result).strip()
    answers = result[0] if keywords.get("return_history") else result
    return Answers(result, [answers] if isinstance(answers, str) else list(answers), rows)


def ask_each(
    model: Any, tokenizer: Any, images: Sequence, questions: Sequence[str], *more: Any, **kw: Any
) -> Answers:
    """Ask each question of a batch by itself, by `model.chat`."""
    asked = [
        ask(model.chat, tokenizer, image, question, *more, **kw)
        for image, question in zip(images, questions)
    ]
    texts = [answers.text for answers in asked]
    return Answers(texts, texts, [answers.rows[0] for answers in asked])


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[list[Row]]:
    """A list that gets a `Row` for each row of every greedy `model.generate()` inside."""
    rows: list[Row] = []
    generate = model.generate

    def record(**keywords: Any) -> Any:
        output = generate(**keywords)
        ids = output if hasattr(model, "chat") else output[:, keywords["input_ids"].shape[1] :]
        stops = keywords.get("eos_token_id")
        if stops is None:
            stops = model.generation_config.eos_token_id
        for prompt, new_ids in zip(prompts_of(model, **keywords), ids.tolist()):
            rows.append(Row(prompt, until_stop(new_ids, stops)))
        return output

    with mock.patch.object(model, "generate", record):
        yield rows


def until_stop(new_ids: list[int], stops: int | Sequence[int] | None) -> list[int]:
    """The ids up to the first stop token, without the padding after it."""
    stops = {stops} if stops is None or isinstance(stops, int) else set(stops)
    ends = (place for place, token in enumerate(new_ids, 1) if token in stops)
    return new_ids[: next(ends, len(new_ids))]


def assert_same_answers(first: Answers, second: Answers, tolerance: float = TIE) -> None:
    """Check that two ways to ask gave the same answers, each up to its first tie."""
    assert len(first.texts) == len(second.texts)
    assert len(first.rows) == len(second.rows) == len(first.texts)
    answered = zip(first.texts, second.texts, first.rows, second.rows)
    for text, other_text, row, other_row in answered:
        if text == other_text:
            continue
        assert torch.equal(row.prompt.input_ids, other_row.prompt.input_ids), "the prompts differ"
        assert row.new_ids != other_row.new_ids, (
            f"the same ids became two texts: {text!r} and {other_text!r}"
        )
        assert_same_greedy(row.prompt.next_logits, row.new_ids, other_row.new_ids, tolerance)


def smallest_gap(row: Row) -> float:
    """How far apart the two best logits of a generation are, where they are closest.

    Positions whose token is not the best one are left out: it was forced, by a thinking budget.
    """
    logits = row.prompt.logits_along(row.new_ids)[:-1]
    best, tokens = logits.topk(2)
    chosen = tokens[:, 0] == torch.tensor(row.new_ids, device=tokens.device)
    return (best[:, 0] - best[:, 1])[chosen].min().item()
