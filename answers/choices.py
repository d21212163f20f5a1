"""Finds the letter that an answer to a multiple-choice question names."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from answers import extraction
from answers.text import normalize

NUM_LETTERS = 10  # A to J, as in MMMU-Pro, where a question comes without its options
# "B", "(B)", "B.", "[B]", "Option B", "choice (B)"; and what follows, as in "B. 12 cm".
LEADING_LETTER = re.compile(
    r"^(?:option|choice)?\s*(?P<open>[(\[{]?)(?P<letter>[A-Z])(?P<close>[)\]}.:,]*)(?:\s+|$)(?P<rest>.*)$",
    re.DOTALL,
)
STANDING_LETTER = re.compile(r"(?<![A-Za-z0-9\\'])([A-Z])(?![A-Za-z0-9'])")
LETTERS_IN_A_ROW = re.compile(r"^[A-Z]{2,}$")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n")


class Choice(NamedTuple):
    """A letter, or why there is none.

    Attributes:
        letter: from A on, or None.
        reason: how it was found, or why there is none.
    """

    letter: str | None
    reason: str


NO_OPTION = Choice(None, "names no option")
SEVERAL_OPTIONS = Choice(None, "names several options")


def letters_of(options: Sequence[str]) -> str:
    """The letters of a question's options, or of ten where they are unknown."""
    return string.ascii_uppercase[: len(options) or NUM_LETTERS]


def choose(found: extraction.Found, options: Sequence[str] = ()) -> Choice:
    """The letter that a final answer names.

    Args:
        found: the final answer.
        options: the texts of the options, from A on; an answer may quote one instead of its letter.
    """
    if found.answer is None:
        return Choice(None, found.reason)
    letters = letters_of(options)
    answer = extraction.plain(found.answer)
    quoted = letter_of_text(answer, options)
    if quoted is not None:
        return Choice(quoted, "quotes the text of the option")
    leading = _leading_letter(answer, letters, options)
    if leading is not None:
        return leading
    if found.box:
        return _only_letter(answer, letters) or NO_OPTION
    # Without a box the last sentence that names any letter decides.
    for sentence in reversed(SENTENCE_END.split(found.answer)):
        sentence = extraction.plain(sentence)
        choice = _leading_letter(sentence, letters, options) or _only_letter(sentence, letters)
        if choice is not None:
            return choice
    return NO_OPTION


def letter_of_text(answer: str, options: Sequence[str]) -> str | None:
    """The letter of the only option with this text, or None."""
    wanted = normalize(answer)
    same = [
        letter
        for letter, option in zip(string.ascii_uppercase, options)
        if normalize(extraction.plain(option)) == wanted
    ]
    if len(same) != 1 or not wanted:
        return None
    return same[0]


def _leading_letter(answer: str, letters: str, options: Sequence[str]) -> Choice | None:
    """The letter that an answer begins with, as "B" or "(B) 12 cm"; None where it does not."""
    match = LEADING_LETTER.match(answer)
    if match is None or match["letter"] not in letters:
        return None
    letter = match["letter"]
    rest = match["rest"].strip()
    is_marked = bool(match["open"] or match["close"]) and match["close"] != ","
    if not rest:
        return Choice(letter, "names the letter")
    if not is_marked:
        return None  # "A circle", "B or C"
    others = [other for other in STANDING_LETTER.findall(rest) if other in letters]
    if options:
        quoted = letter_of_text(rest, options)
        if quoted is not None and quoted != letter:
            return Choice(None, f"names {letter} and quotes the text of {quoted}")
        if quoted == letter:
            return Choice(letter, "names the letter with its text")
    if others and set(others) != {letter}:
        return SEVERAL_OPTIONS
    return Choice(letter, "names the letter, and more")


def _only_letter(sentence: str, letters: str) -> Choice | None:
    """The only letter that a sentence names, without those that are words; None for no letter."""
    if LETTERS_IN_A_ROW.match(sentence) and set(sentence) <= set(letters):
        return SEVERAL_OPTIONS
    named = set()
    for match in STANDING_LETTER.finditer(sentence):
        if match[1] not in letters or _is_word(sentence, match):
            continue
        named.add(match[1])
    if len(named) > 1:
        return SEVERAL_OPTIONS
    if not named:
        return None
    return Choice(named.pop(), "names the letter")


def _is_word(sentence: str, match: re.Match[str]) -> bool:
    """Whether a letter is the article "A" or the pronoun "I": a small word follows."""
    following = sentence[match.end() :]
    if match[1] not in "AI":
        return False
    return re.match(r"\s+(?!or\b|and\b|is\b|because\b|since\b|as\b)[a-z]", following) is not None
