"""The benchmarks of the report: where their data are, and how a row of them becomes a question.

Names of data sets, revisions and subjects are EvalScope's. The prompts are ours, because EvalScope
writes MMMU's and MathVista's into its code, without MathVista's unit and hint.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from answers import extraction
from evaluation import protocol, scope
from evaluation.items import ImageFolder, Item

Row = Mapping[str, Any]
MMMU_IMAGES = 7  # columns image_1 to image_7


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        title: its name in the table.
        evalscope: its name in EvalScope, which knows where its data are.
        stated: the score of the report, in percent.
        split: of the data set.
        item: makes a question of a row, with the number of the row and the folder of images.
        expected_tokens: of an answer, thinking included: an assumption for the estimate before
            anything was answered.
        hub_id: of the data set, where EvalScope knows none on the Hugging Face Hub.
        configs: of the data set; by default those that EvalScope names.
    """

    title: str
    evalscope: str
    stated: float
    split: str
    item: Callable[[Row, int, ImageFolder], Item]
    expected_tokens: int
    hub_id: str | None = None
    configs: tuple[str, ...] | None = None


# -- rows to questions -----------------------------------------------------------------------------


def mmmu_item(row: Row, number: int, images: ImageFolder) -> Item:
    """A question of MMMU: its options and open answers are written as Python lists."""
    stored = []
    for place in range(1, MMMU_IMAGES + 1):
        image = row.get(f"image_{place}")
        if image is not None:
            stored.append(images.add(_bytes_of(image, row["id"])))
    options = tuple(str(option) for option in _python_list(row["options"]))
    kind = "choice" if row["question_type"] == "multiple-choice" else "mathematics"
    text = row["question"]
    golds = [row["answer"]]
    if kind == "choice":
        text += "\n" + protocol.lettered(options)
    else:
        golds = _python_list(row["answer"]) if row["answer"].startswith("[") else golds
    return Item(
        id=row["id"],
        group=_mmmu_subject(row["id"]),
        text=text,
        kind=kind,
        golds=tuple(str(gold) for gold in golds),
        images=tuple(stored),
        options=options if kind == "choice" else (),
        instruction=protocol.instruction(kind),
    )


def math_vista_item(row: Row, number: int, images: ImageFolder) -> Item:
    """A question of MathVista; its `query` has the official hint, the unit and the options."""
    options = tuple(row["choices"] or ())
    kinds = {"integer": "number", "float": "number", "list": "list", "text": "text"}
    kind = "choice" if row["question_type"] == "multi_choice" else kinds[row["answer_type"]]
    gold = row["answer"]
    if kind == "choice" and gold in options:
        gold = chr(ord("A") + options.index(gold))
    precision = row["precision"]
    return Item(
        id=str(row["pid"]),
        group=row["metadata"]["task"],
        text=row["query"],
        kind=kind,
        golds=(gold,),
        images=(images.add(_bytes_of(row["decoded_image"], row["pid"])),),
        options=options,
        precision=None if precision is None else int(precision),
        unit=row["unit"] or "",
        instruction=protocol.instruction(kind),
    )


def math_500_item(row: Row, number: int, images: ImageFolder) -> Item:
    """A question of MATH-500."""
    return _mathematics(row["unique_id"], f"level {row['level']}", row["problem"], row["answer"])


def aime_item(row: Row, number: int, images: ImageFolder) -> Item:
    """A question of AIME; its solution may be the answer in a box."""
    gold = row.get("answer") or extraction.last_box(row["solution"]) or ""
    return _mathematics(str(row.get("id", number)), "", row["problem"], str(gold))


def gpqa_item(row: Row, number: int, images: ImageFolder) -> Item:
    """A question of GPQA: its options get an order that depends on the question alone."""
    answers = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
    question = row["Question"].strip()
    options = [row[column].strip() for column in answers]
    order = sorted(range(len(options)), key=lambda place: _hash(f"{question}/{place}"))
    shuffled = tuple(options[place] for place in order)
    return Item(
        id=str(row.get("Record ID") or number),
        group=row.get("High-level domain") or "",
        text=f"{question}\n{protocol.lettered(shuffled)}",
        kind="choice",
        golds=(chr(ord("A") + order.index(0)),),
        options=shuffled,
        instruction=protocol.CHOICE,
    )


def _mathematics(name: str, group: str, problem: str, gold: str) -> Item:
    return Item(name, group, problem, "mathematics", (gold,), instruction=protocol.OPEN)


def _mmmu_subject(name: str) -> str:
    """The subject in an id such as validation_Art_Theory_5."""
    return "_".join(name.split("_")[1:-1])


def _python_list(text: str) -> list[Any]:
    value = ast.literal_eval(text)
    if not isinstance(value, list):
        raise ValueError(f"{text!r}: expected a list in Python's notation.")
    return value


def _bytes_of(image: Mapping[str, Any], name: Any) -> bytes:
    """The bytes of an image column that was not decoded."""
    if image["bytes"] is not None:
        return image["bytes"]
    if not image["path"] or not Path(image["path"]).is_file():
        raise ValueError(f"question {name}: its image is not there ({image['path']}).")
    return Path(image["path"]).read_bytes()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


BENCHMARKS = {
    "mmmu": Benchmark("MMMU (val)", "mmmu", 69.0, "validation", mmmu_item, 4000),
    "math_vista": Benchmark(
        "MathVista (mini)", "math_vista", 67.5, "testmini", math_vista_item, 2500
    ),
    "math_500": Benchmark("MATH-500", "math_500", 94.0, "test", math_500_item, 4000, configs=("",)),
    "aime24": Benchmark("AIME 2024", "aime24", 72.0, "test", aime_item, 12000),
    "gpqa_diamond": Benchmark(
        "GPQA (diamond)",
        "gpqa_diamond",
        61.6,
        "train",
        gpqa_item,
        8000,
        hub_id="Idavidrein/gpqa",
        configs=("gpqa_diamond",),
    ),
}


# -- loading ---------------------------------------------------------------------------------------


def load_items(
    name: str, folder: Path, data: Path | None = None, limit: int | None = None
) -> list[Item]:
    """The questions of a benchmark, in the order of its data set; images go into the folder.

    Args:
        name: one of BENCHMARKS.
        folder: of the run.
        data: directory that has a directory of this name, with the files of the data set's
            repository on the Hub; None loads them from the Hub.
        limit: the first questions of each subject that are taken, or None for all.

    Raises:
        FileNotFoundError: the data set is not in the directory.
        ValueError: a row is not of the benchmark's form.
    """
    benchmark = BENCHMARKS[name]
    images = ImageFolder(folder)
    items = []
    for row in _rows(benchmark, name, data, limit):
        try:
            items.append(benchmark.item(row, len(items), images))
        except KeyError as error:
            raise ValueError(
                f"{name}, row {len(items)}: no column {error}; it has {sorted(row)}."
            ) from error
    return items


def _rows(
    benchmark: Benchmark, name: str, data: Path | None, limit: int | None
) -> Iterator[dict[str, Any]]:
    """The rows of a data set, with images as they are in its files."""
    meta = scope.BENCHMARK_REGISTRY[benchmark.evalscope]
    configs: Sequence[str] = benchmark.configs or meta.subset_list
    source: Any = benchmark.hub_id or meta.hf_dataset_id
    revision = meta.hf_dataset_revision
    if data is not None:
        directory = data / name
        if not directory.is_dir():
            raise FileNotFoundError(
                f"{directory}: no such directory. Expected the files of {source} there, as from "
                f"hf download {source} --repo-type dataset --local-dir {directory}"
            )
        source, revision = str(directory.resolve()), None
    for config in configs:
        chosen = None if config in ("", "default") else config
        rows: Any = datasets.load_dataset(source, chosen, split=benchmark.split, revision=revision)
        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        if limit is not None:
            rows = rows.select(range(min(limit, len(rows))))
        yield from rows
