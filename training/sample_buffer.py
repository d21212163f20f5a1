"""R1V2's selective sample buffer: groups of completions that taught something come again.

As GRPO goes on, more and more groups have completions of one reward, whose advantages are zero:
they teach nothing. The buffer keeps groups whose advantages are not, and puts them in the place of
those that teach nothing, drawn with a probability in proportion to their mean |advantage| (report
of R1V2, section 3.3).

A batch here is what TRL's GRPOTrainer keeps of its completions: tensors of (rows, tokens), prompts
padded on the left, completions on the right, tiles one after another. A group is `size` rows of one
prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

PROMPT_KEYS = ("prompt_ids", "prompt_mask")
COMPLETION_KEYS = (
    "completion_ids",
    "completion_mask",
    "old_per_token_logps",
    "ref_per_token_logps",
    "sampling_per_token_logps",
    "importance_sampling_ratio",
)
IMAGE_KEYS = ("pixel_values", "num_images", "num_tiles")
KNOWN_KEYS = {*PROMPT_KEYS, *COMPLETION_KEYS, *IMAGE_KEYS, "advantages", "num_items_in_batch"}
SMALLEST_ADVANTAGE = 1e-6  # below it is rounding
Group = dict[str, Any]


class SampleBuffer:
    """Groups that taught something, the newest so many.

    Args:
        capacity: number of groups, at least 1.
        size: number of completions of a group.
        seed: of the draws.
    """

    def __init__(self, capacity: int, size: int, seed: int) -> None:
        self.capacity = capacity
        self.size = size
        self.groups: list[Group] = []
        self.rng = np.random.default_rng(seed)

    def exchange(self, batch: dict[str, Any]) -> tuple[dict[str, Any], float]:
        """A batch whose empty groups are replaced, and the share of its groups that were.

        Its own groups with a signal are kept for later batches. An empty group stays where the
        buffer has none to give. No group comes twice in a batch.

        Args:
            batch: of TRL; it is not changed.

        Raises:
            ValueError: the batch has something that this class does not know how to replace, or no
                whole number of groups.
        """
        groups = split(batch, self.size)
        empty = [place for place, group in enumerate(groups) if not weight_of(group)]
        drawn = self._draw(len(empty))
        taught = [group for group in groups if weight_of(group)]
        self.groups = [*self.groups, *taught][-self.capacity :]
        if not drawn:
            return batch, 0.0
        for place, group in zip(empty, drawn):
            groups[place] = group
        return join(groups, batch), len(drawn) / len(groups)

    def _draw(self, count: int) -> list[Group]:
        count = min(count, len(self.groups))
        if not count:
            return []
        weights = np.array([weight_of(group) for group in self.groups])
        shares = weights / weights.sum()
        places = self.rng.choice(len(self.groups), count, replace=False, p=shares)
        return [self.groups[place] for place in places]

    def state(self) -> dict[str, Any]:
        """Everything that a resumed training needs."""
        return {"groups": self.groups, "rng": self.rng.bit_generator.state}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.groups = state["groups"]
        self.rng.bit_generator.state = state["rng"]


def weight_of(group: Group) -> float:
    """The mean |advantage| of a group, 0 where that is rounding."""
    weight = float(group["advantages"].abs().mean())
    return weight if weight > SMALLEST_ADVANTAGE else 0.0


def split(batch: dict[str, Any], size: int) -> list[Group]:
    """Copies of the groups of a batch, without padding, on the CPU.

    Each has the advantages (size,), the tensors (size, tokens) of prompts and completions, and the
    tiles and the number of images of its one prompt.

    Raises:
        ValueError: see `SampleBuffer.exchange`.
    """
    unknown = [name for name in batch if name not in KNOWN_KEYS and batch[name] is not None]
    if unknown:
        raise ValueError(f"The sample buffer cannot replace {', '.join(unknown)} of a batch.")
    num_rows = len(batch["prompt_ids"])
    if num_rows % size:
        raise ValueError(
            f"The sample buffer needs whole groups on every process: {num_rows} completions are no "
            f"multiple of num_generations={size}."
        )
    tiles = _tiles_of_rows(batch)
    groups = []
    for start in range(0, num_rows, size):
        rows = slice(start, start + size)
        group: Group = {"advantages": batch["advantages"][rows].cpu().clone()}
        for names in (PROMPT_KEYS, COMPLETION_KEYS):
            mask = batch[names[1]][rows]
            used = mask.any(dim=0).nonzero().flatten()
            for name in names:
                if batch.get(name) is not None:
                    values = batch[name][rows]
                    if values.shape[1] == mask.shape[1]:  # else one value for a whole completion
                        values = _without_padding(values, used, names is PROMPT_KEYS)
                    group[name] = values.cpu().clone()
        group["tiles"] = None if tiles is None else tiles[start].cpu().clone()
        group["num_images"] = batch["num_images"][start] if batch.get("num_images") else 0
        groups.append(group)
    return groups


def join(groups: list[Group], like: dict[str, Any]) -> dict[str, Any]:
    """A batch of groups.

    Args:
        groups: as `split` gives them.
        like: the batch whose device and further values it gets.
    """
    device = like["prompt_ids"].device
    batch = {name: value for name, value in like.items() if name not in IMAGE_KEYS}
    for name in (*PROMPT_KEYS, *COMPLETION_KEYS):
        if like.get(name) is not None:
            padded = _padded([group[name] for group in groups], on_left=name in PROMPT_KEYS)
            batch[name] = padded.to(device)
    batch["advantages"] = torch.cat([group["advantages"] for group in groups]).to(device)
    tiles = []
    num_images = []
    num_tiles = []
    for group in groups:
        for _ in range(len(group["advantages"])):
            num_images.append(group["num_images"])
            num_tiles.append(0)
            if group["tiles"] is not None:
                tiles.append(group["tiles"])
                num_tiles[-1] = len(group["tiles"])
    if sum(num_tiles):
        batch["pixel_values"] = torch.cat(tiles).to(device)
        batch["num_images"] = num_images
        batch["num_tiles"] = num_tiles
    return batch


def _without_padding(values: torch.Tensor, used: torch.Tensor, on_left: bool) -> torch.Tensor:
    """Values (rows, tokens) at the positions from the first or up to the last that is used."""
    if not len(used):
        return values[:, :1]
    return values[:, int(used[0]) :] if on_left else values[:, : int(used[-1]) + 1]


def _padded(rows: list[torch.Tensor], on_left: bool) -> torch.Tensor:
    """Tensors (rows, tokens) of several lengths as one; the zeros between are masked."""
    length = max(row.shape[1] for row in rows)
    padded = []
    for row in rows:
        missing = length - row.shape[1]
        padded.append(F.pad(row, (missing, 0) if on_left else (0, missing)))
    return torch.cat(padded)


def _tiles_of_rows(batch: dict[str, Any]) -> Any:
    """The tiles of each row, or None where a batch has none."""
    pixel_values = batch.get("pixel_values")
    if pixel_values is None:
        return None
    # TRL gives the number of tiles only where it is another than that of images.
    counts = batch.get("num_tiles") or batch["num_images"]
    return pixel_values.split(list(counts))
