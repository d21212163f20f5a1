"""What the questions of easy-VQA say about their pictures, and how their answers are written.

    asked = Question("is there not a blue shape?", "yes", picture=0)
    family_of(asked.answer)                        # "yes/no"
    thinking_of(asked, {"red", "circle"})          # "I see red circle. There is no blue shape."

Each picture of the data set shows one shape in one colour. What it shows is read from its questions
and their answers alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from typing import NamedTuple

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "gray", "red", "teal", "blue", "green", "yellow", "brown")
YES = "yes"
NO = "no"
SHAPE = "shape"
COLOUR = "colour"
YES_NO = "yes/no"
FAMILIES = (SHAPE, COLOUR, YES_NO)
NEGATIONS = frozenset({"no", "not"})


class Question(NamedTuple):
    """A question of the data set.

    Attributes:
        text: as the data set has it, without capitals.
        answer: one of its 13 answers.
        picture: the number of its picture, within the training or the test split.
    """

    text: str
    answer: str
    picture: int


def family_of(answer: str) -> str:
    """What a question with this answer asks for, one of FAMILIES.

    Raises:
        ValueError: an answer that the data set does not have.
    """
    if answer in SHAPES:
        return SHAPE
    if answer in COLOURS:
        return COLOUR
    if answer in (YES, NO):
        return YES_NO
    known = ", ".join((*SHAPES, *COLOURS, YES, NO))
    raise ValueError(f"answer {answer!r}: expected one of easy-VQA's, {known}.")


def named_in(question: str) -> list[str]:
    """The shapes and colours that a question names."""
    words = re.findall(r"\w+", question)
    return [word for word in words if word in SHAPES or word in COLOURS]


def says_it_is_there(question: Question) -> bool:
    """Whether the answer to a yes/no question means that what is asked for is in the picture."""
    is_negated = not NEGATIONS.isdisjoint(re.findall(r"\w+", question.text))
    return (question.answer == YES) != is_negated


def told_by(question: Question) -> set[str]:
    """The shape and the colour of the picture, as far as a question and its answer tell them.

    "What color is the circle?" tells the shape, too.
    """
    named = set(named_in(question.text))
    if family_of(question.answer) != YES_NO:
        return named | {question.answer}
    if says_it_is_there(question):
        return named
    return set()


def facts_of(questions: Iterable[Question]) -> dict[int, set[str]]:
    """What the questions tell together, by the number of the picture."""
    facts: dict[int, set[str]] = {}
    for question in questions:
        facts.setdefault(question.picture, set()).update(told_by(question))
    return facts


def thinking_of(question: Question, facts: Set[str]) -> str:
    """The thinking before an answer: what the picture shows, and what follows for the question.

    The words are those in which the nano checkpoint thinks about shapes (tasks/coloured.py), which
    has no article after "I see": what is near to its own words is learned soonest.

    Args:
        facts: what is known of the picture; whatever of shape and colour is not, is left out.
    """
    sentences = []
    if facts:
        sentences.append(f"I see {_in_words(facts)}.")
    if family_of(question.answer) == YES_NO:
        article = "a" if says_it_is_there(question) else "no"
        sentences.append(f"There is {article} {_in_words(named_in(question.text))}.")
    else:
        sentences += _conclusion(facts)
    return " ".join(sentences)


def _conclusion(facts: Iterable[str]) -> list[str]:
    """The sentence that joins shape and colour, if the colour is known."""
    subject = "It"
    colour = None
    for fact in facts:
        if fact in SHAPES:
            subject = f"The {fact}"
        else:
            colour = fact
    if colour is None:
        return []
    return [f"{subject} is {colour}."]


def _in_words(facts: Iterable[str]) -> str:
    """Shape and colour as "red circle", or "circle" or "red shape" where one is not known."""
    shape = "shape"
    colour = ""
    for fact in facts:
        if fact in SHAPES:
            shape = fact
        else:
            colour = f"{fact} "
    return colour + shape
