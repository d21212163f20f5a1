"""The table of all recipes, from what `training.score` and `training.sft` have written.

In the folder of the data, `before` holds the scores of the checkpoint that was not trained, and
each run's folder `after` and `blank`, those of its model on `test.jsonl` and on `blank.jsonl`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import durable
from examples.easy_vqa import recipes
from examples.easy_vqa.questions import FAMILIES
from training.score import SCORE_FILE

NOT_MEASURED = "not measured"
COLUMNS = ("what trains", "asked", *FAMILIES, "all", "minutes")


def table_of(folder: Path) -> str:
    """The figures before, after and on blank pictures, in Markdown.

    Raises:
        ValueError: scores that do not say their families.
    """
    lines = [_row("nothing", "before", folder / "before", "")]
    for name in recipes.NAMES:
        trained = " + ".join(recipes.read(name).train)
        minutes = _minutes(folder / name)
        lines.append(_row(trained, "after", folder / name / "after", minutes))
        lines.append(_row(trained, "blank pictures", folder / name / "blank", ""))
    head = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
    return "\n".join([head, *lines])


def _row(trained: str, asked: str, scores: Path, minutes: str) -> str:
    """A line of the table.

    Args:
        scores: the folder that `training.score` wrote to.
    """
    content = durable.read_json(scores / SCORE_FILE)
    if content is None:
        figures = [NOT_MEASURED] * (len(FAMILIES) + 1)
    else:
        figures = _figures(content, scores / SCORE_FILE)
    return f"| {' | '.join([trained, asked, *figures, minutes])} |"


def _figures(content: dict[str, Any], path: Path) -> list[str]:
    """The share of each family, then that of all."""
    groups = content["groups"]
    if set(groups) != set(FAMILIES):
        raise ValueError(
            f"{path} has the groups {sorted(groups)}; expected {sorted(FAMILIES)}. Score with "
            "--by family."
        )
    figures = []
    for share in (*(groups[family] for family in FAMILIES), content["all"]):
        percent = 100 * share["right"] / share["asked"]
        figures.append(f"{share['right']} of {share['asked']} ({percent:.1f} %)")
    return figures


def _minutes(run: Path) -> str:
    """How long a training took."""
    summary = durable.read_json(run / "summary.json")
    if summary is None:
        return ""
    return f"{summary['seconds'] / 60:.1f}"
