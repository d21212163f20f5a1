"""The table, the targets and the plot of `training.nano.hybrid`, from the scores of its rows.

Scores are as `hybrid.score_model` gives them, by row and seed: {row: {seed: scores}}.
"""

from __future__ import annotations

import statistics as of_numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.statistics import Estimate, wilson
from tasks import samples
from training.nano.targets import Target
from training.progress import plotting, write_figure

EASY = tuple(samples.FAMILIES)
HARD = tuple(samples.FURTHER_FAMILIES)
LAST_ITERATION = "iteration_4"
STAGES = (("aligned", LAST_ITERATION), (LAST_ITERATION, "grpo"))
LEAST_FORMAT = 0.98
Scores = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Scores]]


# -- figures of a row ------------------------------------------------------------------------------


def mean_share(scores: Scores, families: Sequence[str]) -> Estimate:
    """The mean over families, with an interval of 95 %.

    Every family has as many samples, so that the mean is the share of all of them. Wilson's
    interval of it is a little wider than one that knows the families.

    Args:
        scores: of a row and a seed.
        families: those that count.
    """
    return _estimate([scores["families"][name] for name in families])


def text_share(scores: Scores) -> Estimate:
    """The share of right answers to pictures in words."""
    return _estimate(list(scores["text"].values()))


def _estimate(counts: Sequence[Mapping[str, Any]]) -> Estimate:
    right = sum(count["right"] for count in counts)
    total = sum(count["total"] for count in counts)
    low, high = wilson(right, total)
    return Estimate(right / total, None, low, high)


def over_seeds(seeds: Mapping[str, Scores], families: Sequence[str]) -> Estimate:
    """The mean over seeds, with their spread, of the mean over families.

    All seeds answer the same questions, so the interval is the mean of theirs, not a narrower one.
    """
    estimates = [mean_share(scores, families) for scores in seeds.values()]
    means = [estimate.mean for estimate in estimates]
    spread = None
    if len(means) > 1:
        spread = of_numbers.stdev(means)
    return Estimate(
        of_numbers.fmean(means),
        spread,
        of_numbers.fmean(estimate.low for estimate in estimates),
        of_numbers.fmean(estimate.high for estimate in estimates),
    )


def format_share(scores: Scores) -> float:
    """The share of answers that have the form of one."""
    formed, total = scores["format"]
    return formed / total


# -- the table -------------------------------------------------------------------------------------


def table(rows: Rows, names: Mapping[str, str]) -> str:
    """Two tables in Markdown: the hard variants; the easy families with format and text.

    Args:
        rows: of which each has a line; those with several seeds show the mean over seeds.
        names: of the rows.
    """
    hard = _table(rows, names, {"mean": HARD, **{name: (name,) for name in HARD}}, False)
    easy = _table(rows, names, {"mean": EASY, **{name: (name,) for name in EASY}}, True)
    return f"Hard variants:\n\n{hard}\n\nEasy families:\n\n{easy}"


def _table(
    rows: Rows, names: Mapping[str, str], columns: Mapping[str, Sequence[str]], with_rest: bool
) -> str:
    """A table with a column for each group of families.

    Args:
        with_rest: whether it has format and text, too.
    """
    headings = ["", "seeds", "of a family", *columns]
    if with_rest:
        headings += ["format", "text alone"]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for key, seeds in rows.items():
        cells = [names[key], str(len(seeds)), _counts(seeds)]
        cells += [_cell(over_seeds(seeds, families)) for families in columns.values()]
        if with_rest:
            cells.append(f"{min(map(format_share, seeds.values())):.1%}")
            cells.append(_cell(text_share(next(iter(seeds.values())))))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _counts(seeds: Mapping[str, Scores]) -> str:
    """The numbers of samples of each family that a row was scored on."""
    return ", ".join(map(str, sorted({scores["count"] for scores in seeds.values()})))


def _cell(estimate: Estimate) -> str:
    """A share with its interval, and its spread over seeds where there are several."""
    spread = ""
    if estimate.spread is not None:
        spread = f" ± {100 * estimate.spread:.1f}"
    return f"{estimate.mean:.1%}{spread} ({estimate.low:.1%} to {estimate.high:.1%})"


# -- the targets -----------------------------------------------------------------------------------


def targets(rows: Rows) -> list[Target]:
    """What the rows are to show, and whether they do."""
    found = [_improvement(rows, before, after) for before, after in STAGES]
    if "aligned" not in rows or "grpo" not in rows:
        return found
    return [*found, _format_target(rows), *_easy_targets(rows), _text_target(rows)]


def _improvement(rows: Rows, before: str, after: str) -> Target:
    """A row's mean over the hard variants is above another's by more than an interval's width."""
    name = f"{after} is above {before} on the hard variants by more than the interval's width"
    if before not in rows or after not in rows:
        return Target(name, None, "not scored yet")
    start, end = over_seeds(rows[before], HARD), over_seeds(rows[after], HARD)
    width = max(start.high - start.low, end.high - end.low)
    gain = end.mean - start.mean
    return Target(name, gain > width, f"{100 * gain:+.1f} points, width {100 * width:.1f}")


def _format_target(rows: Rows) -> Target:
    least = min(map(format_share, rows["grpo"].values()))
    name = f"format of at least {LEAST_FORMAT} after GRPO"
    return Target(name, least >= LEAST_FORMAT, f"{least:.3f} in the worst seed")


def _easy_targets(rows: Rows) -> list[Target]:
    """No easy family falls below the interval that it had after stage 1."""
    found = []
    for family in EASY:
        start = over_seeds(rows["aligned"], (family,))
        end = over_seeds(rows["grpo"], (family,))
        figures = f"{end.mean:.1%} after {start.low:.1%} to {start.high:.1%}"
        found.append(Target(f"{family} does not fall", end.mean >= start.low, figures))
    return found


def _text_target(rows: Rows) -> Target:
    """Answers to pictures in words are as often right as after stage 1."""
    start = text_share(next(iter(rows["aligned"].values()))).mean
    ends = [text_share(scores).mean for scores in rows["grpo"].values()]
    figures = f"{start:.1%}, then " + ", ".join(f"{end:.1%}" for end in ends)
    return Target("text alone is unchanged", set(ends) == {start}, figures)


# -- the plot --------------------------------------------------------------------------------------


def plot(rows: Rows, names: Mapping[str, str], path: Path) -> None:
    """Write a plot as PNG: the means over hard and easy families of each row, with intervals.

    A dot is a seed.

    Args:
        rows: in the order of the plot.
        names: of the rows.
    """
    plt = plotting()
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(rows)))
    places = range(len(rows))
    for label, families, color in (("easy", EASY, "C0"), ("hard", HARD, "C1")):
        estimates = [over_seeds(seeds, families) for seeds in rows.values()]
        means = [estimate.mean for estimate in estimates]
        below = [estimate.mean - estimate.low for estimate in estimates]
        above = [estimate.high - estimate.mean for estimate in estimates]
        axes.errorbar(means, places, xerr=[below, above], fmt="|", color=color, label=label)
        for place, seeds in zip(places, rows.values()):
            dots = [mean_share(scores, families).mean for scores in seeds.values()]
            axes.plot(dots, [place] * len(dots), ".", color=color, alpha=0.6)
    axes.set_yticks(list(places), [names[key] for key in rows])
    axes.invert_yaxis()
    axes.set(xlabel="share of right answers, mean over families")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    write_figure(figure, path)
