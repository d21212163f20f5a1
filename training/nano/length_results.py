"""What thinking costs and what it gives, by the difficulty of the question, and how models compare.

Every model answers the same questions, so that they are compared question by question. Intervals
are of 95 %: Wilson's of shares, the bootstrap's of means and of differences
(`evaluation.statistics`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.statistics import bootstrap, wilson
from training.nano.targets import Target
from training.progress import plotting, write_figure

# From where on a question belongs to a group, by its difficulty from 0 to 10 (training.nano.data)
GROUPS = {"easy": (0.0, 4.0), "middle": (4.0, 8.0), "hard": (8.0, math.inf)}
SHORTER = 0.25  # than with P = 1 on easy questions: the target

Score = dict[str, Any]  # of some answers, as `summary` gives it


class Measured(NamedTuple):
    """What is measured of an answer.

    Attributes:
        family: of the question.
        difficulty: of the question, from 0 to 10.
        is_right: whether the answer is.
        is_truncated: whether it was cut at the largest number of tokens.
        tokens: of the thinking.
        checks: sentences of the thinking that begin a check.
    """

    family: str
    difficulty: float
    is_right: bool
    is_truncated: bool
    tokens: int
    checks: int


Answers = Sequence[Measured]
Models = Mapping[str, Answers]  # the answers of each, to the same questions in the same order


def group_of(difficulty: float) -> str:
    """The group of a question."""
    for name, (low, high) in GROUPS.items():
        if low <= difficulty < high:
            return name
    raise ValueError(f"difficulty {difficulty}: expected a number of at least 0.")


def in_group(answers: Answers, group: str) -> list[Measured]:
    """The answers to questions of a group."""
    return [answer for answer in answers if group_of(answer.difficulty) == group]


def of_family(answers: Answers, family: str) -> list[Measured]:
    """The answers to questions of a family."""
    return [answer for answer in answers if answer.family == family]


def parts_of(answers: Answers) -> dict[str, list[Measured]]:
    """The answers by group, and then by family; groups without a question are left out."""
    parts = {}
    for group in GROUPS:
        parts[group] = in_group(answers, group)
    for family in dict.fromkeys(answer.family for answer in answers):
        parts[family] = of_family(answers, family)
    return {name: part for name, part in parts.items() if part}


def summary(answers: Answers) -> Score:
    """Accuracy, mean length and mean number of checks of some answers, at least one."""
    total = len(answers)
    right = sum(answer.is_right for answer in answers)
    tokens = [float(answer.tokens) for answer in answers]
    return {
        "answers": total,
        "right": round(right / total, 4),
        "right interval": _rounded(wilson(right, total)),
        "tokens": round(statistics.fmean(tokens), 2),
        "tokens interval": _rounded(bootstrap(tokens), 2),
        "checks": round(statistics.fmean(answer.checks for answer in answers), 3),
        "truncated": sum(answer.is_truncated for answer in answers),
    }


def compared(answers: Answers, others: Answers) -> dict[str, Any]:
    """What a model has more of than another, over the same questions.

    Returns:
        The differences of accuracy and of mean length, and the latter as a share of the other's
        length; each with its interval.

    Raises:
        ValueError: they are not about the same questions.
    """
    asked = [(answer.family, answer.difficulty) for answer in answers]
    if asked != [(other.family, other.difficulty) for other in others]:
        raise ValueError(f"{len(answers)} and {len(others)} answers: not to the same questions.")
    right = _differences(answers, others, lambda answer: float(answer.is_right))
    tokens = _differences(answers, others, lambda answer: float(answer.tokens))
    length = max(statistics.fmean(other.tokens for other in others), 1e-9)
    interval = bootstrap(tokens)
    return {
        "right": round(statistics.fmean(right), 4),
        "right interval": _rounded(bootstrap(right)),
        "tokens": round(statistics.fmean(tokens), 2),
        "tokens interval": _rounded(interval, 2),
        "share of tokens": round(statistics.fmean(tokens) / length, 4),
        "share of tokens interval": _rounded((interval[0] / length, interval[1] / length)),
    }


def _differences(
    answers: Answers, others: Answers, value: Callable[[Measured], float]
) -> list[float]:
    return [value(answer) - value(other) for answer, other in zip(answers, others)]


def _rounded(interval: tuple[float, float], digits: int = 4) -> list[float]:
    return [round(interval[0], digits), round(interval[1], digits)]


# -- what adaptive length is to give ---------------------------------------------------------------


def targets(adaptive: Answers, one: Answers, constant: Answers) -> list[Target]:
    """Whether adaptive length gives what it is for, each target with the figures that decide it.

    Accuracies are equal where the interval of their difference has 0 in it.

    Args:
        adaptive: of the model trained on chains under the adaptive P.
        one: of the model trained on chains under P = 1.
        constant: of the model trained on chains under one P, the adaptive run's mean.

    Raises:
        ValueError: no question is easy or none is hard, or the questions are not the same.
    """
    lengths = {}
    with_one = {}
    with_constant = {}
    for group in ("easy", "hard"):
        own = in_group(adaptive, group)
        if not own:
            raise ValueError(f"no question is {group}: ask more questions, of all families.")
        lengths[group] = summary(own)
        with_one[group] = compared(own, in_group(one, group))
        with_constant[group] = compared(own, in_group(constant, group))
    easy = with_one["easy"]
    hard = with_constant["hard"]
    shorter = with_constant["easy"]["tokens interval"][1] < 0
    longer = hard["tokens interval"][0] > 0
    return [
        Target(
            "easy questions: at least 25 % shorter than with P = 1, no less accurate",
            easy["share of tokens"] <= -SHORTER and easy["right interval"][1] >= 0,
            f"length {_percent(easy, 'share of tokens')}, accuracy {_percent(easy, 'right')}",
        ),
        Target(
            "hard questions: longer than easy ones",
            lengths["hard"]["tokens interval"][0] > lengths["easy"]["tokens interval"][1],
            f"{lengths['hard']['tokens']:.1f} and {lengths['easy']['tokens']:.1f} tokens, "
            f"{lengths['hard']['checks']:.2f} and {lengths['easy']['checks']:.2f} checks",
        ),
        Target(
            "hard questions: no less accurate than with the constant P",
            hard["right interval"][1] >= 0,
            f"accuracy {_percent(hard, 'right')}",
        ),
        Target(
            "other than the constant P: shorter on easy questions, longer on hard ones",
            shorter and longer,
            f"length {_percent(with_constant['easy'], 'share of tokens')} and "
            f"{_percent(hard, 'share of tokens')}",
        ),
    ]


def _percent(difference: Mapping[str, Any], key: str) -> str:
    """A difference with its interval, in percent."""
    low, high = difference[f"{key} interval"]
    return f"{difference[key]:+.1%} ({low:+.1%} to {high:+.1%})"


# -- as people read it -----------------------------------------------------------------------------


def table(models: Mapping[str, Mapping[str, Score]]) -> str:
    """A Markdown table: a line for each group and family, a column for each model.

    Args:
        models: the scores of each part, by the name of the model and of the part.
    """
    lines = ["| | questions | " + " | ".join(models) + " |"]
    lines.append("|---" * (len(models) + 2) + "|")
    first = next(iter(models.values()))
    for part, score in first.items():
        cells = [cell_of(scores[part]) for scores in models.values()]
        lines.append(f"| {part} | {score['answers']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell_of(score: Score) -> str:
    """A cell of the table: accuracy and length with their intervals, and checks."""
    (low, high), (shortest, longest) = score["right interval"], score["tokens interval"]
    return (
        f"{score['right']:.1%} ({low:.1%} to {high:.1%}); "
        f"{score['tokens']:.1f} ({shortest:.1f} to {longest:.1f}) tokens; "
        f"{score['checks']:.2f} checks"
    )


def means_of(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The number of some chains, and the mean of each of their facts."""
    means: dict[str, Any] = {"chains": len(facts)}
    for name in facts[0]:
        means[name] = round(statistics.fmean(float(fact[name]) for fact in facts), 4)
    return means


def table_of_tries(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table of chains: a line for each row, a column for each group.

    Args:
        rows: of each the means of each group, as `means_of` gives them.
    """
    lines = ["| | " + " | ".join(GROUPS) + " |", "|---" * (len(GROUPS) + 1) + "|"]
    for name, groups in rows.items():
        cells = []
        for group in GROUPS:
            cells.append(_cell_of_tries(groups.get(group)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell_of_tries(means: Mapping[str, Any] | None) -> str:
    if means is None:
        return "none"
    return (
        f"{means['chains']} under P {means['P']:.2f}: {means['right']:.1%} right, "
        f"{means['tokens']:.1f} tokens, {means['checks']:.2f} checks"
    )


def plot(decodings: Mapping[str, Models], path: Path) -> None:
    """Curves of length and accuracy against difficulty, a column for each way of decoding, as PNG.

    Args:
        decodings: the answers of the models, by name.
        path: of the picture.
    """
    plt = plotting()
    figure, panels = plt.subplots(
        2, len(decodings), sharex=True, sharey="row", squeeze=False, figsize=(9, 7)
    )
    for column, (decoding, models) in enumerate(decodings.items()):
        above, below = panels[0][column], panels[1][column]
        for name, answers in models.items():
            _draw_curves(above, below, name, answers)
        above.set(title=decoding, ylabel="mean tokens of the thinking")
        below.set(xlabel="difficulty of the question", ylabel="share of right answers")
        above.legend()
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    write_figure(figure, path)


def _draw_curves(above: Any, below: Any, name: str, answers: Answers) -> None:
    """Draw a model's length and accuracy by whole numbers of the difficulty, with intervals."""
    by_difficulty: dict[int, list[Measured]] = {}
    for answer in answers:
        by_difficulty.setdefault(round(answer.difficulty), []).append(answer)
    places = sorted(by_difficulty)
    scores = [summary(by_difficulty[place]) for place in places]
    for axes, key in ((above, "tokens"), (below, "right")):
        means = [score[key] for score in scores]
        lows = [score[f"{key} interval"][0] for score in scores]
        highs = [score[f"{key} interval"][1] for score in scores]
        axes.plot(places, means, "o-", markersize=3, label=name)
        axes.fill_between(places, lows, highs, alpha=0.2)
