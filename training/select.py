"""Keeps the samples of a data set that a judge model finds best.

    python -m training.select pool.jsonl selected.jsonl --keep 0.5 \\
        --judge runs/nano/mlp_init_1/model
    python -m training.select pool.jsonl selected.jsonl --by rating --at-least 4 --judge MODEL

The report selects the second set of its MLP initialisation with a judge model that it does not name
(section 2.1). Here the judge is any repository of this code. By likelihood, the score of a sample
is the mean log-likelihood of its answer's tokens: what a model that has seen the pictures finds
unlikely is often wrong. By rating, the judge is asked for a number from 0 to 5, as the report's
iterations have it (section 2.2); it has to be a model that can follow such a request. Lines are
copied as they are, in their order, and get a "score".
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

import durable
from training.asking import last_states
from training.rating import LEAST_SHARE_OF_DIGITS, RequestEncoder, digit_ids, rate_answers
from training.sample_encoder import IGNORED, Collator, SampleEncoder
from training.sources import ConversationFile, EncodedSample

logger = logging.get_logger(__name__)

WAYS_TO_JUDGE = ("likelihood", "rating")


@dataclasses.dataclass
class JudgingSettings:
    """How a pool is judged.

    Attributes:
        batch_size: number of samples of a batch.
        max_length: largest number of tokens of a sample; by default the model's context.
        dtype: that of the judge's weights.
        workers: number of dataloader workers.
        image_root: directory of relative image paths; by default that of the pool.
        max_broken_share: largest share of broken lines; exceeding it raises SampleError.
        by: "likelihood" of the answer (nats a token), or "rating" from 0 to 5.

    Raises:
        ValueError: an unknown way to judge.
    """

    batch_size: int = 16
    max_length: int | None = None
    dtype: str = "bfloat16"
    workers: int = 1
    image_root: str | Path | None = None
    max_broken_share: float = 0.0
    by: str = "likelihood"

    def __post_init__(self) -> None:
        if self.by not in WAYS_TO_JUDGE:
            raise ValueError(f"by={self.by!r}; expected one of {', '.join(WAYS_TO_JUDGE)}.")


@dataclasses.dataclass
class Judge:
    """A model that scores answers, with what prepares samples for it.

    Attributes:
        digits: tokens of the ratings, for a judge that rates; None for one of likelihoods.
    """

    model: Any
    encoder: SampleEncoder
    collator: Collator
    digits: list[int] | None = None

    @classmethod
    def load(cls, repository: str | Path, settings: JudgingSettings) -> Judge:
        """The judge of a repository, on GPUs where there are any."""
        processor: Any = AutoProcessor.from_pretrained(repository, trust_remote_code=True)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            repository,
            dtype=getattr(torch, settings.dtype),
            device_map="auto" if torch.cuda.is_available() else None,
            trust_remote_code=True,
        )
        max_length = settings.max_length or model.config.llm_config.max_position_embeddings
        encoder_class = SampleEncoder
        digits = None
        if settings.by == "rating":
            encoder_class = RequestEncoder
            digits = digit_ids(processor.tokenizer)
        encoder = encoder_class(
            model.config, processor.tokenizer, processor.image_processor, max_length
        )
        side = processor.image_processor.size
        collator = Collator(processor.tokenizer.pad_token_id, (3, side, side))
        return cls(model.eval(), encoder, collator, digits)

    def score(self, samples: Sequence[EncodedSample]) -> list[float]:
        """The scores of encoded samples: see `score_answers` and `rate_answers`."""
        batch = self.collator(samples)
        if self.digits is None:
            return score_answers(self.model, batch).tolist()
        ratings = rate_answers(self.model, batch, self.digits)
        share = sum(rating.share_of_digits for rating in ratings) / len(ratings)
        if share < LEAST_SHARE_OF_DIGITS:
            logger.warning_once(
                f"The judge gives the digits 0 to 5 only {share:.0%} of the probability: it does "
                "not follow the request, and its ratings mean little."
            )
        return [rating.value for rating in ratings]


@torch.no_grad()
def score_answers(model: Any, batch: dict[str, torch.Tensor], block: int = 1024) -> torch.Tensor:
    """Mean log-likelihood (nats a token) of each row's answer tokens, float32 (rows,).

    Args:
        batch: what `Collator` gives.
        block: number of tokens whose logits, over 152,064 words at 38B, are in memory at a time.
    """
    # A state predicts the next token: (rows, length - 1, H)
    hidden_states = last_states(model, batch)[:, :-1]
    labels = batch["labels"][:, 1:].to(hidden_states.device)
    is_answer = labels != IGNORED
    rows, places = is_answer.nonzero(as_tuple=True)
    total = torch.zeros(len(labels), device=labels.device)
    for start in range(0, len(rows), block):
        block_rows = rows[start : start + block]
        block_places = places[start : start + block]
        logits = model.get_output_embeddings()(hidden_states[block_rows, block_places])
        log_likelihoods = logits.to(labels.device).float().log_softmax(-1)
        answered = labels[block_rows, block_places].unsqueeze(-1)
        total.index_add_(0, block_rows, log_likelihoods.gather(-1, answered).squeeze(-1))
    return total / is_answer.sum(1)


class _EncodedLines(torch.utils.data.Dataset):
    """The encoded samples of a file; None for those that cannot be used, which are not selected."""

    def __init__(self, data: ConversationFile) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> EncodedSample | None:
        return self.data.encode_line(index)


class Scores:
    """Scores of lines, written to a file as they come, so that an interrupted judging goes on.

    Args:
        path: that of the file. A file of another pool or judge is begun anew.
        identity: what is scored by whom, as JSON can hold it.

    Attributes:
        values: the score of each line, by its number in the pool.
    """

    def __init__(self, path: Path, identity: list[Any]) -> None:
        self.path = path
        self.values: dict[int, float] = {}
        header = json.dumps(identity).encode()
        lines = durable.whole_lines(path)
        if lines and lines[0] == header:
            for line in lines[1:]:
                index, value = json.loads(line)
                self.values[index] = value
        # Only whole lines: what is appended to half a line would be another line's score.
        kept = [header, *(_score_line(index, value) for index, value in self.values.items())]
        with durable.writing(path) as file:
            file.writelines(line + b"\n" for line in kept)

    def add(self, scores: dict[int, float]) -> None:
        """Take scores in, and append them to the file."""
        self.values.update(scores)
        with open(self.path, "ab") as file:
            for index, value in scores.items():
                file.write(_score_line(index, value) + b"\n")


def _score_line(index: int, value: float) -> bytes:
    return json.dumps([index, value]).encode()


def select(
    pool: str | Path,
    output: str | Path,
    judge: str | Path,
    keep: float | None = None,
    settings: JudgingSettings | None = None,
    at_least: float | None = None,
) -> tuple[int, int]:
    """Write the lines that score best: the share `keep`, or those that have `at_least` a score.

    Scores are kept beside the output while it is made; run again after an interruption, it goes on.

    Args:
        pool: JSONL of conversations.
        output: JSONL to write.
        judge: repository of the model that judges.
        keep: share of the scored lines.
        settings: how the pool is judged.
        at_least: lowest score that is kept, in place of `keep`.

    Returns:
        The number of lines selected, and of lines scored.

    Raises:
        ValueError: not one of `keep` and `at_least`, `keep` outside (0, 1], no line with such a
            score, or a pool without usable lines, or with more broken ones than allowed.
    """
    if (keep is None) == (at_least is None):
        raise ValueError(f"keep={keep}, at_least={at_least}: expected one of the two.")
    if keep is not None and not 0 < keep <= 1:
        raise ValueError(f"keep={keep}: expected a share above 0, at most 1.")
    settings = settings or JudgingSettings()
    output = Path(output)
    loaded = Judge.load(judge, settings)
    data = ConversationFile(
        [pool],
        loaded.encoder,
        settings.image_root,
        settings.max_broken_share,
        needs_lengths=True,
    )
    identity = [
        data.fingerprint, str(judge), loaded.encoder.max_length, settings.dtype, settings.by,
    ]  # fmt: skip
    scores = Scores(output.with_name(output.name + ".scores"), identity)
    _score_lines(loaded, data, scores, settings)
    if not scores.values:
        raise ValueError(f"{pool}: no sample could be scored.")
    selected = _best_lines(scores.values, keep, at_least)
    if not selected:
        raise ValueError(
            f"at_least={at_least}: no sample scores that high; the best has "
            f"{max(scores.values.values()):.2f}. The scores stay in {scores.path}."
        )
    _write_lines(data, selected, scores.values, output)
    scores.path.unlink()
    return len(selected), len(scores.values)


def _score_lines(
    judge: Judge, data: ConversationFile, scores: Scores, settings: JudgingSettings
) -> None:
    """Score the lines that have no score yet."""
    batches = _batches_by_length(data, scores, settings.batch_size)
    loader = DataLoader(
        _EncodedLines(data),
        batch_sampler=batches,
        collate_fn=list,
        num_workers=settings.workers,
    )
    progress = tqdm(loader, desc="judge", unit="batch", mininterval=5)
    for indices, encoded in zip(batches, progress):
        usable = {}
        for index, sample in zip(indices, encoded):
            if sample is not None:
                usable[index] = sample
        if usable:
            values = judge.score(list(usable.values()))
            scores.add(dict(zip(usable, values)))


def _batches_by_length(data: ConversationFile, scores: Scores, batch_size: int) -> list[list[int]]:
    """Batches of lines of about the same length, which waste no padding, without scored ones.

    The longest come first: if one does not fit into memory, it is found at once.
    """
    order = sorted(range(len(data)), key=data.length)
    batches = []
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if not scores.values.keys() >= set(batch):
            batches.append(batch)
    return batches[::-1]


def _best_lines(scores: dict[int, float], keep: float | None, at_least: float | None) -> list[int]:
    """The numbers of the best lines, in the order of the pool; of a share at least one."""
    if keep is None:
        lowest = float("-inf") if at_least is None else at_least
        return sorted(index for index, score in scores.items() if score >= lowest)
    ranked = sorted(scores, key=lambda index: (-scores[index], index))
    return sorted(ranked[: max(1, round(keep * len(ranked)))])


def _write_lines(
    data: ConversationFile, selected: list[int], scores: dict[int, float], output: Path
) -> None:
    """Write lines with their scores; the output appears when it is complete."""
    with durable.writing(output) as file:
        for index in selected:
            row = {**data.row(index), "score": round(scores[index], 4)}
            file.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def main() -> None:
    """Select by the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("pool", type=Path, help="JSONL of conversations")
    parser.add_argument(
        "output", type=Path, help="JSONL to write; relative image paths stay as they are"
    )
    parser.add_argument("--judge", required=True, help="repository of the model that judges")
    parser.add_argument(
        "--by",
        choices=WAYS_TO_JUDGE,
        default="likelihood",
        help="what the score is: likelihood of the answer, or a rating from 0 to 5",
    )
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--keep", type=float, help="share of the lines to select")
    kept.add_argument("--at-least", type=float, help="lowest score of the lines to select")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="number of samples that are judged at a time"
    )
    parser.add_argument(
        "--image-root", help="directory of relative image paths; by default that of the pool"
    )
    parser.add_argument(
        "--max-broken-share",
        type=float,
        default=0.0,
        help="largest share of broken lines to skip with a warning; exceeding it is an error",
    )
    arguments = parser.parse_args()
    settings = JudgingSettings(
        batch_size=arguments.batch_size,
        image_root=arguments.image_root,
        max_broken_share=arguments.max_broken_share,
        by=arguments.by,
    )
    try:
        selected, scored = select(
            arguments.pool,
            arguments.output,
            arguments.judge,
            arguments.keep,
            settings,
            arguments.at_least,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{selected} of {scored} samples kept in {arguments.output}")


if __name__ == "__main__":
    main()
