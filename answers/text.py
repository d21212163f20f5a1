"""Compares answers as texts: without case, punctuation, articles and kinds of white space."""

from __future__ import annotations

import re
import unicodedata

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = re.compile(r"[^\w\s%°+\-*/=<>.,:]")
HYPHEN = re.compile(r"(?<=[^\W\d])-(?=[^\W\d])")
LOOSE_MARKS = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)")
DASHES = str.maketrans({"−": "-", "–": "-", "—": "-", "‐": "-"})


def normalize(text: str) -> str:
    """A text as it is compared; "The Cat." and "cat" are the same, "1.5" and "15" are not."""
    text = unicodedata.normalize("NFKC", text).translate(DASHES).casefold()
    text = PUNCTUATION.sub(" ", text)
    text = HYPHEN.sub(" ", text)
    text = LOOSE_MARKS.sub(" ", text)
    without = ARTICLES.sub(" ", text)
    # An answer that is nothing but an article is a letter.
    return " ".join((without if without.strip() else text).split())
