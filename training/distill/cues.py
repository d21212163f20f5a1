"""The report's linguistic cues of integration, by rule: S_I without a judge (report, 2.3).

    S_I = (1 + high − low) / 2, from 0 to 1, high and low being the shares of the cues that it has

Cues of high integration: why and how questions, presuppositions, several objects in spatial
relation, terms of a domain. Cues of low integration: what and where questions, definite articles
with one plain object. The rules know English alone, and see words, not the image; a question that
has no cue gets 0.5. What they find is in the output, which says that rules have scored.

    found("Why does the ladder to the left of the door still lean against the wall?").score  # 0.875
    found("What is the animal?").score  # 0.0
"""

from __future__ import annotations

import re
from typing import NamedTuple

RELATIONS = (
    r"left of|right of|above|below|under|over|behind|in front of|between|next to|beside|near"
    r"|inside|outside|around|against|across|opposite|adjacent|parallel|perpendicular|larger than"
    r"|smaller than|taller than|shorter than|closer to|farther from|more than|fewer than"
)
TERMS = (
    r"angle|area|axis|volume|radius|circumference|perimeter|triangle|function|equation|integral"
    r"|derivative|matrix|vector|probability|correlation|median|gradient|slope|theorem|hypotenuse"
    r"|force|velocity|acceleration|momentum|voltage|current|resistance|circuit|energy|pressure"
    r"|molecule|reaction|compound|catalyst|enzyme|cell|protein|gene|tissue|lesion|diagnosis"
    r"|supply|demand|elasticity|inflation|isotope|spectrum|wavelength|orbit|strata|algorithm"
)
HIGH = {
    "why or how": r"\b(?:why|how(?! (?:many|much|old|tall|big|large|long|far|high)\b))\b",
    "presupposition": r"\b(?:still|again|already|anymore|no longer|even though|despite|given that"
    r"|stop(?:s|ped)?|continue[sd]?|assum\w+|suppose\w*|if)\b",
    "spatial relation": rf"\b(?:{RELATIONS})\b",
    "domain term": rf"\b(?:{TERMS})s?\b",
}
LOW = {
    "what or where": r"^\W*(?:what|where|who|which)\b(?!.*\b(?:if|would|why|how)\b)",
    "one plain object": r"^\W*(?:what|where|who|which)(?: (?:is|are|was|were)|'s)"
    r" (?:the|this|that|it)(?: \w+){0,2}\W*$",
}


class Cues(NamedTuple):
    """The cues of a question.

    Attributes:
        high: names of those of high integration.
        low: names of those of low integration.
    """

    high: tuple[str, ...]
    low: tuple[str, ...]

    @property
    def score(self) -> float:
        """S_I by rule, from 0 to 1."""
        return (1 + len(self.high) / len(HIGH) - len(self.low) / len(LOW)) / 2


def found(question: str) -> Cues:
    """The cues of a question's text."""
    text = question.replace("<image>", " ").strip()
    return Cues(_matching(HIGH, text), _matching(LOW, text))


def _matching(cues: dict[str, str], text: str) -> tuple[str, ...]:
    """The names of the cues that a text has."""
    names = []
    for name, pattern in cues.items():
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            names.append(name)
    return tuple(names)
