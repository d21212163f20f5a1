"""Judges answers: which one a text gives, and whether it is right.

    with Judge() as judge:
        verdict = judge.judge(Question("mathematics", gold="\\\\frac{1}{2}"), "… \\\\boxed{0.5}")
        verdict.is_right, verdict.reason

Evaluation, rewards, distillation and the example of fine-tuning share it, so that what is rewarded
is what is measured.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from answers import choices, extraction, mathematics, numbers
from answers.text import normalize

KINDS = ("mathematics", "choice", "number", "list", "text")
# A sentence is no expression: longer texts are not compared as mathematics.
MAX_EXPRESSION_LENGTH = 1000  # characters
ROUNDING_ERROR = 1e-9


@dataclasses.dataclass(frozen=True)
class Question:
    """What the right answer is, and how others are compared with it.

    Attributes:
        kind: one of KINDS. "mathematics" compares expressions, "choice" the letters of options,
            "number" numbers to a stated precision, "list" lists place by place, "text" words.
        gold: the right answer; the letter of a choice, or the text of its option.
        options: of a choice, their texts from A on.
        precision: of a number (and of the numbers of a list), the digits after the point that have
            to be right; None for all that the right answer has.
        unit: of a number, which may be left out, but not replaced by another.

    Raises:
        ValueError: the kind is none of KINDS, or the right answer is not of the kind.
    """

    kind: str
    gold: str
    options: tuple[str, ...] = ()
    precision: int | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}.")
        if not self.gold.strip():
            raise ValueError("gold is empty: expected the right answer.")
        if self.kind == "number" and numbers.read(self.gold) is None:
            raise ValueError(f"gold {self.gold!r}: expected a number, or another kind of question.")
        if self.kind == "choice" and self.letter is None:
            raise ValueError(
                f"gold {self.gold!r}: expected one of {choices.letters_of(self.options)}, or the "
                f"text of exactly one of the options {list(self.options)}."
            )

    @property
    def letter(self) -> str | None:
        """The letter of the right option."""
        letter = self.gold.strip().strip("().").upper()
        if len(letter) == 1 and letter in choices.letters_of(self.options):
            return letter
        return choices.letter_of_text(self.gold, self.options)


class Verdict(NamedTuple):
    """Whether an answer is right.

    Attributes:
        is_right: whether it is.
        answer: what was taken for the answer, or None.
        reason: why it is right or wrong, in words.
    """

    is_right: bool
    answer: str | None
    reason: str


class Judge(mathematics.ClosedAtExit):
    """Judges answers, from any number of threads; a context, as `MathComparer` is.

    Args:
        seconds: that the comparison of two expressions may take.
    """

    def __init__(self, seconds: float = mathematics.SECONDS) -> None:
        self._comparer = mathematics.MathComparer(seconds)

    def close(self) -> None:
        """End the processes that compare expressions."""
        self._comparer.close()

    def judge(self, question: Question, text: str, thinking_opened: bool = False) -> Verdict:
        """Whether what a model wrote answers a question.

        Args:
            text: what the model wrote, with or without its thinking.
            thinking_opened: whether the prompt has opened the thinking already.
        """
        found = extraction.find(text, thinking_opened)
        if found.answer is None:
            return Verdict(False, None, found.reason)
        if question.kind == "choice":
            return _judge_choice(question, found)
        return self.compare(question, found.answer)

    def compare(self, question: Question, answer: str) -> Verdict:
        """Whether an answer without anything around it is right, for all kinds but "choice"."""
        if question.kind == "number":
            return _judge_number(question, answer)
        if question.kind == "list":
            return self._judge_list(question, answer)
        if question.kind == "text":
            return _judge_text(question, answer)
        return self._judge_mathematics(question, answer)

    def _judge_mathematics(self, question: Question, answer: str) -> Verdict:
        gold = extraction.plain(question.gold)
        said = extraction.plain(answer)
        if said == gold:
            return Verdict(True, answer, "the same expression")
        if is_words(gold) or is_words(said):
            return _judge_text(question, answer)
        if _is_same_number(gold, said):
            return Verdict(True, answer, "the same number")
        if len(said) > MAX_EXPRESSION_LENGTH:
            return Verdict(False, answer, "is too long for an expression")
        if not is_balanced(said):
            return Verdict(False, answer, "has brackets that are never closed")
        comparison = self._comparer.compare(question.gold, answer)
        return Verdict(comparison.is_right, answer, comparison.reason)

    def _judge_list(self, question: Question, answer: str) -> Verdict:
        golds = items_of(question.gold)
        said = items_of(answer)
        if len(golds) != len(said):
            return Verdict(False, answer, f"has {len(said)} items instead of {len(golds)}")
        for place, (gold, item) in enumerate(zip(golds, said), start=1):
            kind = "text" if numbers.read(gold) is None else "number"
            of_item = dataclasses.replace(question, kind=kind, gold=gold)
            verdict = self.compare(of_item, item)
            if not verdict.is_right:
                return Verdict(False, answer, f"item {place} is {verdict.reason}")
        return Verdict(True, answer, "the same items")


def items_of(text: str) -> list[str]:
    """The items of a list that is written with commas, in any brackets or none."""
    text = extraction.plain(text).replace("\\left", "").replace("\\right", "")
    text = text.replace("\\{", "{").replace("\\}", "}").strip()
    if len(text) >= 2 and text[0] + text[-1] in ("[]", "()", "{}"):
        text = text[1:-1]
    items = text.replace(" and ", ",").replace(";", ",").split(",")
    return [item.strip().strip("'\"") for item in items if item.strip()]


def is_balanced(text: str) -> bool:
    """Whether as many brackets are closed as opened; "[0, 1)" is an interval."""
    opened = sum(map(text.count, "([{"))
    closed = sum(map(text.count, ")]}"))
    return opened == closed


def is_words(text: str) -> bool:
    """Whether a text is a word or words, and no expression: "east", but not "xy" or "12 cm"."""
    letters = text.replace(" ", "").replace("-", "")
    return letters.isalpha() and len(letters) > 2 and numbers.number_of_words(text) is None


def _is_same_number(gold: str, answer: str) -> bool:
    """Whether two texts are the same number; a unit may be left out, but not be another one."""
    ours = numbers.read(gold)
    theirs = numbers.read(answer)
    if ours is None or theirs is None:
        return False
    if ours.unit and theirs.unit and ours.unit != theirs.unit:
        return False
    return math.isclose(ours.value, theirs.value, rel_tol=ROUNDING_ERROR, abs_tol=ROUNDING_ERROR)


def _judge_choice(question: Question, found: extraction.Found) -> Verdict:
    choice = choices.choose(found, question.options)
    if choice.letter is None:
        return Verdict(False, None, choice.reason)
    if choice.letter == question.letter:
        return Verdict(True, choice.letter, choice.reason)
    return Verdict(False, choice.letter, f"another option than {question.letter}")


def _judge_number(question: Question, answer: str) -> Verdict:
    gold = numbers.read(question.gold)
    said = numbers.read(answer)
    if gold is None:
        raise ValueError(f"gold {question.gold!r}: expected a number.")
    if said is None:
        return Verdict(False, answer, "is no number")
    unit = numbers.unit_of(question.unit) or gold.unit
    if said.unit and unit and said.unit != unit:
        return Verdict(False, answer, f"is in {said.unit} instead of {unit}")
    tolerance = abs(gold.value) * ROUNDING_ERROR + ROUNDING_ERROR
    if question.precision is not None:
        # Whatever rounds to the right answer, as MathVista's `precision` means it.
        tolerance += 0.5 * 10.0**-question.precision
    if abs(said.value - gold.value) <= tolerance:
        return Verdict(True, answer, "the same number")
    return Verdict(False, answer, "another number")


def _judge_text(question: Question, answer: str) -> Verdict:
    gold = extraction.plain(question.gold)
    said = extraction.plain(answer)
    if normalize(said) == normalize(gold):
        return Verdict(True, answer, "the same text")
    if _is_same_number(gold, said):
        return Verdict(True, answer, "the same number")
    return Verdict(False, answer, "another text")
