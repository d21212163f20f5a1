"""Scores a checkpoint on the nano tasks, on pictures drawn afresh.

    python -m evaluation.nano --model nano --count 500 --seed 12345
    python -m evaluation.nano --model nano --quantization "bitsandbytes nf4"
    python -m evaluation.nano --model runs/nano/reasoning --text

Draws `count` samples of each family (training draws from other generator streams), asks through
`batch_chat` with PIL images, greedily, and judges the answers. With `--text` the pictures are put
into words, and a language model alone can be asked; a few words are misread unless `--exact`.
Prints a table with 95 % Wilson intervals, and JSON as the last line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from answers.judging import Judge, Question
from evaluation.quantization import QUANTIZATIONS, stored_bytes
from tasks import samples

OPTIONS = {"max_new_tokens": 160, "do_sample": False}
STREAM = 0x5EED  # keeps these pictures apart from those of training, whatever the seed
# The stream of each family's pictures. A new family gets the next number: those that are given
# stand for the pictures of every score that has been published.
FAMILY_STREAMS = {"calculation": 0, "charts": 1, "counting": 2, "two images": 3}
PARTS = ("vision_model", "mlp1", "language_model")

Ask = Callable[[list[samples.Sample]], list[str]]  # the answers to a batch
Progress = Callable[[int, int], None]  # gets the number of samples asked, and of right answers


@dataclasses.dataclass(frozen=True)
class SampleSet:
    """Samples of one family, and how they are asked.

    Attributes:
        family: one of `samples.FAMILIES`.
        count: number of samples.
        seed: that they are drawn from.
        batch_size: samples that are asked at a time.
        exact: whether no words are misread, where pictures are put into words.
    """

    family: str
    count: int
    seed: int
    batch_size: int
    exact: bool = False


class WrongAnswer(NamedTuple):
    """A sample that was answered wrong.

    Attributes:
        index: of the sample in its set.
        sizes: (width, height) of its pictures in pixels.
        expected: the right answer.
        answer: everything that the model said.
    """

    index: int
    sizes: list[tuple[int, int]]
    expected: str
    answer: str


class Score(NamedTuple):
    """The number of right answers, and the wrong ones."""

    right: int
    wrong: list[WrongAnswer]


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (E. B. Wilson, 1927), of 95 % by default.

    Args:
        right: the number of successes.
        total: the number of trials.
        z: the quantile of the normal distribution.
    """
    share = right / total
    spread = z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


# -- asking ----------------------------------------------------------------------------------------


def draw_samples(
    family: str, count: int, seed: int
) -> tuple[np.random.Generator, list[samples.Sample]]:
    """Generator and samples of a family.

    The generator is the one to put them into words with.
    """
    rng = np.random.default_rng([STREAM, seed, FAMILY_STREAMS[family]])
    return rng, [samples.FAMILIES[family](rng) for _ in range(count)]


def compare(
    drawn: list[samples.Sample], ask: Ask, batch_size: int, progress: Progress | None
) -> Score:
    """Ask about samples and count the right answers.

    Args:
        ask: gives the answers to a batch.
        batch_size: samples that are asked at a time.
        progress: is called after every batch.
    """
    right = 0
    wrong = []
    judge = Judge()  # of texts, for which it needs no process
    for start in range(0, len(drawn), batch_size):
        batch = drawn[start : start + batch_size]
        for index, (sample, answer) in enumerate(zip(batch, ask(batch)), start=start):
            question = Question("text", sample.answer)
            if judge.judge(question, answer, thinking_opened=True).is_right:
                right += 1
                continue
            sizes = [drawing.size for drawing in sample.drawings]
            wrong.append(WrongAnswer(index, sizes, sample.answer, answer))
        if progress is not None:
            progress(start + len(batch), right)
    return Score(right, wrong)


def score(
    model: Any, tokenizer: Any, sample_set: SampleSet, progress: Progress | None = None
) -> Score:
    """Ask a repository of this code about pictures; see `compare`."""

    def ask(batch: list[samples.Sample]) -> list[str]:
        """The answers to a batch with its pictures."""
        images = [sample.images for sample in batch]
        questions = [sample.question for sample in batch]
        return model.batch_chat(tokenizer, images, questions, OPTIONS)

    _, drawn = draw_samples(sample_set.family, sample_set.count, sample_set.seed)
    return compare(drawn, ask, sample_set.batch_size, progress)


def score_text(
    model: Any, tokenizer: Any, sample_set: SampleSet, progress: Progress | None = None
) -> Score:
    """Ask a language model, alone or within a repository, about pictures put into words.

    See `compare`.
    """
    rng, drawn = draw_samples(sample_set.family, sample_set.count, sample_set.seed)

    def ask(batch: list[samples.Sample]) -> list[str]:
        """The answers to a batch whose pictures are put into words."""
        prompts = []
        for sample in batch:
            question = samples.described(rng, sample, sample_set.exact)
            prompts.append(f"<｜User｜>\n{question}<｜Assistant｜><think>\n")
        inputs = tokenizer(prompts, return_tensors="pt", padding=True)
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pad_token_id=tokenizer.pad_token_id,
            **OPTIONS,
        )
        prompt_length = inputs["input_ids"].shape[1]
        return tokenizer.batch_decode(output[:, prompt_length:], skip_special_tokens=True)

    return compare(drawn, ask, sample_set.batch_size, progress)


def load(path: str, dtype: str, quantization: str = "none", text: bool = False) -> tuple[Any, Any]:
    """(model, tokenizer) of a repository of this code or, for text alone, of a language model.

    Args:
        dtype: of the weights that are not quantized, such as "float32".
        quantization: one of QUANTIZATIONS.
        text: whether only the language model will be asked.
    """
    auto_class = AutoModel
    if text:
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        auto_class = AutoModelForCausalLM
        if hasattr(config, "vision_config"):
            auto_class = AutoModelForImageTextToText
    model = auto_class.from_pretrained(
        path,
        torch_dtype=getattr(torch, dtype),
        trust_remote_code=True,
        **QUANTIZATIONS[quantization](),
    )
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
    return model.eval(), tokenizer


def evaluate(
    path: str,
    count: int = 500,
    seed: int = 12345,
    batch_size: int = 100,
    dtype: str = "float32",
    text: bool = False,
    families: Iterable[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """{family: {"right", "total", "interval"}} of a checkpoint, for scripts.

    Args:
        path: a directory, or a Hub id.
        count: samples of each family.
        seed: that they are drawn from.
        batch_size: samples that are asked at a time.
        dtype: of the weights.
        text: whether the pictures are put into words.
        families: of `samples.FAMILIES`; all by default.
    """
    model, tokenizer = load(path, dtype, text=text)
    score_family = score
    if text:
        score_family = score_text
    results = {}
    for family in families or samples.FAMILIES:
        sample_set = SampleSet(family, count, seed, batch_size)
        results[family] = result(score_family(model, tokenizer, sample_set).right, count)
    return results


def result(right: int, count: int) -> dict[str, Any]:
    """The number of right answers with the interval of their share, rounded, for JSON."""
    low, high = wilson(right, count)
    return {"right": right, "total": count, "interval": [round(low, 4), round(high, 4)]}


# -- command line ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help="a directory or a Hub id")
    parser.add_argument("--count", type=int, default=500, help="the number of samples of a family")
    parser.add_argument(
        "--families",
        nargs="+",
        choices=samples.FAMILIES,
        default=list(samples.FAMILIES),
        help="the families of samples; all by default",
    )
    parser.add_argument(
        "--seed", type=int, default=12345, help="the seed that samples are drawn from"
    )
    parser.add_argument(
        "--batch-size", type=int, default=25, help="the number of samples that are asked at a time"
    )
    parser.add_argument(
        "--show-wrong", type=int, default=0, help="print so many wrong answers of each family"
    )
    parser.add_argument(
        "--text",
        action="store_true",
        help="put the pictures into words, so that a language model alone can be asked",
    )
    parser.add_argument("--exact", action="store_true", help="with --text: misread no words")
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="none",
        help="how the decoder layers are quantized",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="the dtype of everything that is not quantized",
    )
    arguments = parser.parse_args()
    if arguments.exact and not arguments.text:
        parser.error("--exact is about pictures put into words: add --text")
    return arguments


def score_and_print(
    model: Any, tokenizer: Any, family: str, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Score a family as the command line asks, and print it; returns its `result`."""

    def progress(done: int, right: int) -> None:
        """Show how far it is on a terminal."""
        if sys.stderr.isatty():
            print(f"\r{family}: {right}/{done}", end="", file=sys.stderr)

    count = arguments.count
    sample_set = SampleSet(family, count, arguments.seed, arguments.batch_size, arguments.exact)
    score_family = score
    if arguments.text:
        score_family = score_text
    right, wrong = score_family(model, tokenizer, sample_set, progress)
    scored = result(right, count)
    low, high = scored["interval"]
    share = f"{right}/{count} = {right / count:.1%}"
    print(f"{family:12} {share}  (95 %: {low:.1%} to {high:.1%})")
    for index, sizes, expected, answer in wrong[: arguments.show_wrong]:
        print(f"  #{index} {sizes}: expected {expected}, said {answer!r}")
    return scored


def bytes_of_parts(model: Any) -> dict[str, int]:
    """Bytes that the weights of each part of a model take; a language model alone has no parts."""
    sizes = {}
    for part in PARTS:
        if hasattr(model, part):
            sizes[part] = stored_bytes(getattr(model, part))
    return sizes


def main() -> None:
    """Score a checkpoint as the command line asks; print the table, and JSON as the last line."""
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    model, tokenizer = load(
        arguments.model, arguments.dtype, arguments.quantization, arguments.text
    )
    begun = time.time()
    results = {}
    for family in arguments.families:
        results[family] = score_and_print(model, tokenizer, family, arguments)
    record = {
        "seed": arguments.seed,
        "seconds": round(time.time() - begun),
        "quantization": arguments.quantization,
        "dtype": arguments.dtype,
        "bytes": bytes_of_parts(model),
        "decoder_layers_bytes": stored_bytes(model.get_decoder().layers),
        "tasks": results,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
