"""A run of the evaluation: its folder, its settings, and going on from what is there.

OUT/run.json                 the settings; a run goes on with these only
OUT/<benchmark>/items.jsonl  the questions, with images/ beside them
OUT/<benchmark>/predictions, reviews, reports, logs: EvalScope's
OUT/results.json, OUT/page.html
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import durable
from evaluation.adapter import AskedModel, registered_name
from evaluation.items import Item, digest, read_items, write_items
from evaluation.results import Results, read_answers
from evaluation.scope import (
    OutputsStructure,
    ResolvedBenchmarkSpec,
    TaskConfig,
    build_evaluation_identity,
    build_generated_evaluation_metadata,
    get_benchmark,
    run_task,
)

ITEMS = "items.jsonl"


def prepared_items(folder: Path, load: Callable[[], list[Item]]) -> list[Item]:
    """The questions of a benchmark: those of the run so far, or else loaded and written.

    Args:
        folder: of the benchmark in its run.
        load: loads them.
    """
    items = read_items(folder / ITEMS)
    if not items:
        items = load()
        write_items(folder / ITEMS, items)
    return items


def answer_and_judge(name: str, model: AskedModel, repeats: int, threads: int) -> Results:
    """Ask a model what is not answered yet, and judge what is not judged.

    Args:
        name: of the benchmark.
        model: with the questions; the folder of the benchmark is the model's.
        repeats: answers to each question.
        threads: questions that are asked at a time.
    """
    folder = model.folder
    drop_half_lines(folder)
    config = TaskConfig(
        model=model,
        model_id=re.sub(r"[^\w.-]+", "_", model.model_name),
        eval_type="custom",  # without it EvalScope takes its own greedy settings
        datasets=[registered_name(name)],
        dataset_args={registered_name(name): {"dataset_id": digest(model.items)}},
        repeats=repeats,
        eval_batch_size=threads,
        work_dir=str(folder),
        use_cache=str(folder),
        no_timestamp=True,
        seed=None,  # it would seed this process
        ignore_errors=True,  # one question must not end the run
    )
    with _quiet():
        _record_settings(config)
        run_task(config)
    failures = {}
    for index, reason in model.failures.items():
        failures[index // repeats, index % repeats] = reason
    return Results(name, model.items, repeats, read_answers(folder, repeats), failures)


def drop_half_lines(folder: Path) -> None:
    """Cut what a process that died left at the ends of EvalScope's files.

    EvalScope writes the next line right behind it, and loses both.
    """
    for path in folder.rglob("*.jsonl"):
        if path.name != ITEMS:
            durable.drop_half_line(path)


def _record_settings(config: TaskConfig) -> None:
    """Write EvalScope's record of the settings, as if an earlier run had done it.

    A first run of EvalScope keeps its verdicts beside until it ends, and one that is killed leaves
    none. A run that goes on writes them as they come; this makes each run one. That the settings
    are the same is checked by `folder_of_run` (run_folder.py).
    """
    name = config.datasets[0]
    meta = get_benchmark(name, config).benchmark_meta
    specs = {name: ResolvedBenchmarkSpec.from_meta(meta, config)}
    identity = build_evaluation_identity(specs, {name: meta.evaluation_version}, config)
    outputs = OutputsStructure(outputs_dir=config.work_dir)
    config.dump_yaml(outputs.configs_dir, build_generated_evaluation_metadata(specs, identity))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep EvalScope's log in its file; its progress bar and our table say the rest."""
    logger = logging.getLogger("evalscope")
    consoles = [
        handler
        for handler in logger.handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
    ]
    for handler in consoles:
        handler.addFilter(_reject)
    try:
        yield
    finally:
        for handler in consoles:
            handler.removeFilter(_reject)


def _reject(record: logging.LogRecord) -> bool:
    return False
