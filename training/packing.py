"""Puts several samples into one row, so that steps of many short samples waste no computing.

Samples that share a row do not see each other: their positions start again at 0, by which
transformers (from 4.53) tells attention where each begins. Nothing is cut, and each token's loss is
what it would be alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np


def make_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Share samples out over rows by best fit, longest first.

    Args:
        lengths: number of tokens of each sample, `capacity` at most.
        capacity: most tokens of a row.

    Returns:
        For each row the places of its samples in `lengths`. Their order depends on the lengths
        alone.

    Raises:
        ValueError: a sample that is longer than a row.
    """
    packs: list[list[int]] = []
    packs_with_room: dict[int, list[int]] = {}  # by the number of tokens that are free in them
    rooms: list[int] = []  # the keys, sorted
    for place in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = lengths[place]
        if length > capacity:
            raise ValueError(f"A sample of {length} tokens in rows of {capacity}.")
        found = bisect.bisect_left(rooms, length)
        if found == len(rooms):
            room = capacity
            pack = len(packs)
            packs.append([])
        else:
            room = rooms[found]
            pack = packs_with_room[room].pop()
            if not packs_with_room[room]:
                del packs_with_room[room]
                rooms.pop(found)
        packs[pack].append(place)
        room -= length
        if room not in packs_with_room:
            packs_with_room[room] = []
            bisect.insort(rooms, room)
        packs_with_room[room].append(pack)
    return packs
