"""Greedy answers of another engine, which may differ where the model cannot decide.

Of these only texts or ids are known; two ways within one process are compared by comparison.py. Two
ways to compute the same logits (batches of other shapes, other attention kernels, another engine)
differ by rounding. A greedy token is then the same unless the two best logits are closer
than that, and from the first such token on the answers may have nothing in common.
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import LogitsProcessor

from tests import comparison

# A bug in a mask, in positions or in the place of an image changes logits by more than this.
TOLERANCE = comparison.TIE


class MarginRecorder(LogitsProcessor):
    """Records how far the best logit of each step is above the second best.

    Attributes:
        tokens: the best token of each step.
        margins: difference of the two best logits of each step.
    """

    def __init__(self):
        self.tokens = []
        self.margins = []

    def __call__(self, input_ids, scores):
        assert len(scores) == 1, "margins are recorded for single answers"
        best = torch.topk(scores[0].float(), 2)
        self.tokens.append(int(best.indices[0]))
        self.margins.append(float(best.values[0] - best.values[1]))
        return scores


@dataclasses.dataclass
class Answer:
    """A greedy answer of `chat()`.

    Attributes:
        text: as `chat()` returns it.
        history: with this turn.
        tokens: that were generated, the stop token among them.
        margins: difference of the two best logits at each of them.
        texts: of the first n tokens, for each n from 0.
    """

    text: str
    history: list
    tokens: list
    margins: list
    texts: list


def ask(model, tokenizer, images, question, max_new_tokens, **keywords):
    """Ask a question through `chat()`; keywords are the method's."""
    recorder = MarginRecorder()
    options = {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "logits_processor": [recorder],
    }
    text, history = model.chat(
        tokenizer, images, question, options, return_history=True, **keywords
    )
    counts = range(len(recorder.tokens) + 1)
    texts = [
        tokenizer.decode(recorder.tokens[:count], skip_special_tokens=True).strip()
        for count in counts
    ]
    return Answer(text, history, recorder.tokens, recorder.margins, texts)


def assert_same_text(text, expected):
    """Check that a text is an answer's, or leaves it where two tokens are as good as each other."""
    if text == expected.text:
        return
    common = [count for count, start in enumerate(expected.texts) if text.startswith(start)]
    # Special tokens and blanks have no text: the answers part at one of the tokens after the last
    # text that they share, from its first occurrence on.
    shared = expected.texts[max(common)]
    first = expected.texts.index(shared)
    margin = min(expected.margins[first : max(common) + 1] or expected.margins[-1:])
    assert margin < TOLERANCE, (
        f"{text!r} leaves {expected.text!r} after {shared!r}, where the two best logits are "
        f"{margin:.2g} apart"
    )


def assert_same_tokens(tokens, expected, ignored=()):
    """Check that tokens are an answer's, or leave it where two are as good as each other.

    Args:
        ignored: tokens that do not count, such as the one that ends an answer.
    """
    pairs = zip(expected.tokens, expected.margins)
    counted = [(token, margin) for token, margin in pairs if token not in ignored]
    found = [token for token in tokens if token not in ignored]
    if found == [token for token, _ in counted]:
        return
    place = 0
    while place < min(len(found), len(counted)) and found[place] == counted[place][0]:
        place += 1
    # Where the tokens go on after the expected end, the choice was that of the last token
    margin = counted[place][1] if place < len(counted) else expected.margins[-1]
    assert margin < TOLERANCE, (
        f"The tokens leave the expected ones at {place}, where the two best logits are "
        f"{margin:.2g} apart: {tokens} instead of {expected.tokens}"
    )
