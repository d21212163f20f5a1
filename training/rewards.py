r"""Rewards of completions, in the form that TRL's trainers take: lists in, floats or None out.

A reward function gets the completions of a batch and, as keywords, the columns of the data, one
value for each completion. A completion is a text, or a conversation of one message. Where a sample
has no `solution`, its accuracy is None, which TRL counts as 0 where another reward has a value: for
all completions to its prompt alike, so that it changes no advantage.

    trainer = GRPOTrainer(..., reward_funcs=[accuracy_reward, format_reward])

Accuracy is that of the evaluation (answers/), so that what is rewarded is what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from answers import extraction
from answers.judging import Judge, Question
from remote_code import conversation

Completion = str | Sequence[dict[str, Any]]  # a text, or a conversation of one message
Column = Sequence[Any] | None  # a value for each completion

# R1V3's mix (its report, section 3.2).
ACCURACY_WEIGHT = 0.8
FORMAT_WEIGHT = 0.2


def accuracy_reward(
    completions: Sequence[Completion],
    solution: Column = None,
    kind: Column = None,
    options: Column = None,
    thinking_opened: bool = True,
    **columns: Any,
) -> list[float | None]:
    r"""Whether the final answer is right: r = 1 if it says the same as the solution, else 0.

    The report's rule-based accuracy (R1V, section 2.2). A draft in the thinking never counts, and a
    thinking that was never closed has no answer.

        accuracy_reward(["1 + 1 = 2\n</think>\n\n\\boxed{2}"], solution=["2"])  # [1.0]

    Args:
        completions: what the model wrote.
        solution: the right answers; None where a sample has none.
        kind: of each answer, one of answers.judging.KINDS; "mathematics" where a sample has none.
        options: of choices, the texts from A on.
        thinking_opened: whether the prompt opens the thinking, as the templates of R1V do.
        columns: the other columns of the data, which do not matter here.

    Raises:
        ValueError: a solution is not of its kind.
    """
    rewards: list[float | None] = []
    with Judge() as judge:
        for number, completion in enumerate(completions):
            gold = _value(solution, number)
            if gold is None:
                rewards.append(None)
                continue
            question = Question(
                _value(kind, number) or "mathematics",
                gold,
                tuple(_value(options, number) or ()),
            )
            verdict = judge.judge(question, text_of(completion), thinking_opened)
            rewards.append(float(verdict.is_right))
    return rewards


def format_reward(
    completions: Sequence[Completion], thinking_opened: bool = True, **columns: Any
) -> list[float]:
    r"""Whether a completion has the form of an answer: r = 1 if all of it holds, else 0.

    - Exactly one thinking, which is not empty; a `<think>` of the prompt counts as its beginning.
    - It is closed before the answer.
    - Exactly one box follows, with something in it; boxes in the thinking are drafts.

        format_reward(["1 + 1 = 2\n</think>\n\nIt is \\boxed{2}."])  # [1.0]
        format_reward(["\\boxed{2}"])  # [0.0]: the thinking was never closed

    Args:
        completions: what the model wrote.
        thinking_opened: whether the prompt opens the thinking, as the templates of R1V do.
        columns: the columns of the data, which do not matter here.
    """
    return [float(has_format(text_of(completion), thinking_opened)) for completion in completions]


def accuracy_format_reward(
    completions: Sequence[Completion], thinking_opened: bool = True, **columns: Any
) -> list[float | None]:
    r"""R1V3's mix: r = 0.8 · accuracy + 0.2 · format (its report, section 3.2).

        accuracy_format_reward(["Two.\n</think>\n\n\\boxed{2}"], solution=["3"])  # [0.2]

    Args:
        completions: what the model wrote.
        thinking_opened: see `accuracy_reward`.
        columns: the columns of the data, `solution` among them.
    """
    accuracies = accuracy_reward(completions, thinking_opened=thinking_opened, **columns)
    formats = format_reward(completions, thinking_opened)
    rewards: list[float | None] = []
    for accuracy, form in zip(accuracies, formats):
        if accuracy is None:
            rewards.append(None)
        else:
            rewards.append(ACCURACY_WEIGHT * accuracy + FORMAT_WEIGHT * form)
    return rewards


def has_format(text: str, thinking_opened: bool = True) -> bool:
    """Whether a text is one thinking and then one final answer in a box; see `format_reward`.

    Args:
        text: what the model wrote.
        thinking_opened: whether the prompt has opened the thinking already.
    """
    text = text.strip()
    if not thinking_opened:
        if not text.startswith(conversation.THINK_START):
            return False
        text = text.removeprefix(conversation.THINK_START)
    if conversation.THINK_START in text or text.count(conversation.THINK_END) != 1:
        return False
    thinking, _, answer = text.partition(conversation.THINK_END)
    if not thinking.strip():
        return False
    return len(extraction.BOX.findall(answer)) == 1 and extraction.last_box(answer) is not None


def text_of(completion: Completion) -> str:
    """The text of a completion."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _value(column: Column, number: int) -> Any:
    """The value of a column for a completion; None where there is no such column."""
    return None if column is None else column[number]
