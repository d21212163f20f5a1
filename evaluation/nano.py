"""Scores a checkpoint in this process on the nano tasks, on pictures drawn afresh.

    python -m evaluation.nano --model nano --count 500 --seed 12345
    python -m evaluation.nano --model nano --quantization "bitsandbytes nf4"
    python -m evaluation.nano --model runs/nano/reasoning --text

Draws `count` samples of each family (training draws from other generator streams), asks through
`batch_chat`, greedily, and judges the answers: the benchmark of `python -m evaluation` without a
server. With `--text` the pictures are put into words, and a language model alone can be asked; a
few words are misread unless `--exact`. Prints a table with 95 % Wilson intervals, and JSON as the
last line. With `--out` the folder of the run is kept, which a second call goes on from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from evaluation import report, table
from evaluation.families import FamilySet
from evaluation.judging import Judging
from evaluation.local import OPTIONS, LocalModel, load
from evaluation.quantization import QUANTIZATIONS, stored_bytes
from evaluation.results import Results, groups_of, summarize
from evaluation.run import answer_and_judge, prepared_items
from evaluation.run_folder import folder_of_run
from remote_code import conversation
from tasks import samples

NAME = "nano"  # of the benchmark
PARTS = ("vision_model", "mlp1", "language_model")


@contextmanager
def folder(out: Path | None) -> Iterator[Path]:
    """The folder of a run: one that is kept, or a temporary one."""
    if out is not None:
        yield out
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def score(
    model: Any,
    tokenizer: Any,
    families: FamilySet,
    out: Path,
    name: str = NAME,
    batch_size: int = 25,
    options: Mapping[str, Any] | None = None,
) -> Results:
    """Ask a model about samples, and judge its answers.

    Args:
        model, tokenizer: from `local.load`.
        families: the samples.
        out: the folder of the run.
        name: of the model.
        batch_size: samples that are asked at a time.
        options: of transformers' `generate`; by default those of `local.OPTIONS`.

    Raises:
        ValueError: the folder belongs to another run.
    """
    options = dict(options or OPTIONS)
    settings = {"model": name, **dataclasses.asdict(families), "batch_size": batch_size, **options}
    settings["families"] = list(families.families)
    settings["weights"] = weights_of(model.config)
    with folder_of_run(out, settings), Judging() as judging:
        of_benchmark = out / NAME
        items = prepared_items(of_benchmark, lambda: families.items(of_benchmark))
        asked = LocalModel(
            name, model, tokenizer, batch_size, of_benchmark, items, judging, options
        )
        # Twice the batch: the next one begins while EvalScope waits for the last one's threads.
        return answer_and_judge(NAME, asked, 1, 2 * batch_size)


def weights_of(config: transformers.PretrainedConfig) -> dict[str, Any]:
    """What tells the weights of a model from others under the same path: commit, or files."""
    files = {}
    for file in sorted(Path(config.name_or_path or "").glob("*.safetensors")):
        facts = file.stat()
        files[file.name] = [facts.st_size, facts.st_mtime_ns]
    return {"commit": getattr(config, "_commit_hash", None), "files": files}


def shares(results: Results) -> dict[str, dict[str, Any]]:
    """{family: {"right", "total", "interval"}}, rounded, for JSON."""
    shares = {}
    for family in groups_of(results.items):
        summary = summarize(results, family, family)
        if summary.estimate is None:
            raise ValueError(f"{family}: no sample was answered: {set(results.failures.values())}.")
        interval = [round(summary.estimate.low, 4), round(summary.estimate.high, 4)]
        shares[family] = {
            "right": summary.right,
            "total": summary.judged,
            "interval": interval,
        }
    return shares


class Thought(NamedTuple):
    """An answer to a sample, with its thinking.

    Attributes:
        family: of the sample.
        number: of the sample in its family, from 0.
        is_right: whether the answer is.
        is_truncated: whether it was cut at the largest number of tokens.
        thinking: the text of it.
        tokens: of the thinking.
    """

    family: str
    number: int
    is_right: bool
    is_truncated: bool
    thinking: str
    tokens: int


def thoughts(results: Results, tokenizer: Any) -> list[Thought]:
    """The thinking of every answer of a run, in the order of its questions.

    Args:
        results: from `score`.
        tokenizer: that counts the tokens.

    Raises:
        ValueError: answers are missing.
    """
    if not results.is_complete:
        reasons = sorted(set(results.failures.values()))
        raise ValueError(f"answers are missing ({reasons}): run the command again to ask for them.")
    found = []
    for (number, _), answer in sorted(results.answers.items()):
        family, _, place = results.items[number].id.rpartition(" ")
        thinking = conversation.split_thinking(answer.text).thinking
        tokens = len(tokenizer.encode(thinking, add_special_tokens=False))
        is_right = bool(answer.is_right)
        found.append(Thought(family, int(place), is_right, answer.is_truncated, thinking, tokens))
    return found


def evaluate(path: str, count: int, text: bool = False) -> dict[str, dict[str, Any]]:
    """The shares of a checkpoint, for scripts; see `shares`.

    Args:
        path: a directory, or a Hub id.
        count: samples of each family.
        text: whether the pictures are put into words.
    """
    model, tokenizer = load(path, "float32", in_words=text)
    with folder(None) as out:
        families = FamilySet(count, in_words=text)
        return shares(score(model, tokenizer, families, out, batch_size=100))


# -- command line ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="nano", help="a directory or a Hub id")
    parser.add_argument("--count", type=int, default=500, help="the number of samples of a family")
    parser.add_argument(
        "--families",
        nargs="+",
        choices=samples.ALL_FAMILIES,
        default=list(samples.FAMILIES),
        help="the families of samples; by default those that nano was taught",
    )
    parser.add_argument(
        "--seed", type=int, default=12345, help="the seed that samples are drawn from"
    )
    parser.add_argument(
        "--batch-size", type=int, default=25, help="the number of samples that are asked at a time"
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
    parser.add_argument("--out", type=Path, help="folder of the run, with the page of all answers")
    arguments = parser.parse_args()
    if arguments.exact and not arguments.text:
        parser.error("--exact is about pictures put into words: add --text")
    return arguments


def bytes_of_parts(model: Any) -> dict[str, int]:
    """Bytes that the weights of each part of a model take; a language model alone has no parts."""
    sizes = {}
    for part in PARTS:
        if hasattr(model, part):
            sizes[part] = stored_bytes(getattr(model, part))
    return sizes


def main() -> int:
    """Score a checkpoint as the command line asks; returns 1 where answers are missing, else 0."""
    arguments = parse_arguments()
    transformers.logging.set_verbosity_error()
    model, tokenizer = load(
        arguments.model, arguments.dtype, arguments.quantization, arguments.text
    )
    families = FamilySet(
        arguments.count, arguments.seed, arguments.families, arguments.text, arguments.exact
    )
    name = f"{arguments.model} ({arguments.dtype}, quantization {arguments.quantization})"
    begun = time.time()
    with folder(arguments.out) as out:
        results = score(model, tokenizer, families, out, name, arguments.batch_size)
        if arguments.out is None:
            lines = table.summaries([results])
            print(table.text_of(lines, table.notes_on([results], lines, "rule")))
        else:
            report.write(out, [results], "rule", name)
    record = {
        "seed": arguments.seed,
        "seconds": round(time.time() - begun),
        "quantization": arguments.quantization,
        "dtype": arguments.dtype,
        "bytes": bytes_of_parts(model),
        "decoder_layers_bytes": stored_bytes(model.get_decoder().layers),
        "tasks": shares(results),
    }
    print(json.dumps(record))
    return 0 if results.is_complete else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
