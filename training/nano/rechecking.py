"""Thinking that checks itself again any number of times, as that of reasoning models does.

    text = rechecked(rng, sample)

The chain of a sample is a fixed one (`tasks`). Here a chain now and then ends in a slip, which the
next check finds, and a right one may be checked again and again. So sampled chains have lengths to
choose from, and most of what is long is redundant: what adaptive-length distillation (report,
section 2.3) is for.
"""

from __future__ import annotations

import re

import numpy as np

from tasks import samples

CHECK_AGAIN = 0.6  # chance of another check behind a right chain
MOST_CHECKS = 5
SLIPS = 0.1  # chance that a chain ends in a wrong result
SLIPS_IN_LONG_CHAINS = 0.35
LONG_CHAIN = 110  # characters
CHECKS = ("Wait, let me check again.", "Let me check that.", "Let me look again.")
FOUND_SLIP = "That was not right."
SAME_AGAIN = "That is the same."


def rechecked(rng: np.random.Generator, sample: samples.Sample) -> str:
    """The thinking of a sample with a random number of checks.

    It ends in the sample's own chain or in a sentence that says that a check gave the same.
    """
    chain = sample.thinking
    slips = SLIPS
    if len(chain) > LONG_CHAIN:
        slips = SLIPS_IN_LONG_CHAINS
    parts = [chain]
    slipped = with_slip(rng, chain)
    if slipped != chain and rng.random() < slips:
        parts = [slipped, _check(rng), chain, FOUND_SLIP]
    while rng.random() < CHECK_AGAIN and parts.count(chain) <= MOST_CHECKS:
        parts += [_check(rng), chain, SAME_AGAIN]
    return " ".join(parts)


def _check(rng: np.random.Generator) -> str:
    """A sentence that begins a check."""
    return CHECKS[rng.integers(len(CHECKS))]


def with_slip(rng: np.random.Generator, chain: str) -> str:
    """The chain with another number in its last place; without numbers, the chain itself."""
    numbers = list(re.finditer(r"\d+", chain))
    if not numbers:
        return chain
    last = numbers[-1]
    other = max(0, int(last.group()) + int(rng.choice([-10, -2, -1, 1, 2, 10])))
    return chain[: last.start()] + str(other) + chain[last.end() :]
