"""A learning rate for each part of the model, and smaller ones for lower layers of the tower."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# The recipe's key for the learning rate of a part
RATE_OF_PART = {
    "vision_model": "vision_lr",
    "mlp1": "mlp1_lr",
    "language_model": "language_model_lr",
}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to, also behind the names of wrappers.

    Raises:
        ValueError: the name is of none.
    """
    for segment in name.split("."):
        if segment in RATE_OF_PART:
            return segment
    raise ValueError(f"{name} belongs to none of {', '.join(RATE_OF_PART)}.")


def layer_scale(name: str, num_layers: int, decay: float) -> float:
    """What the learning rate of a parameter of the vision tower is multiplied with.

    Layer-wise decay as in BEiT (Bao et al., 2021, appendix): the last of n layers has `decay`, the
    first one decay^n, and the embeddings before it decay^(n + 1).

    Args:
        name: of the parameter.
        num_layers: of the vision tower.
        decay: factor from a layer to the one below; 1 for none.
    """
    found = re.search(r"encoder\.layers\.(\d+)\.", name)
    if found is None:
        return decay ** (num_layers + 1)
    return decay ** (num_layers - int(found.group(1)))


def parameter_groups(
    model: nn.Module,
    rates: dict[str, float],
    num_vision_layers: int,
    vision_layer_decay: float,
    weight_decay: float,
    decayed_names: set[str],
) -> list[dict[str, Any]]:
    """What trains, grouped by learning rate and weight decay, for an optimizer of torch.

    Args:
        model: whose parameters with gradients are grouped.
        rates: the learning rate of each part, a key of `RATE_OF_PART`.
        num_vision_layers: of the vision tower.
        vision_layer_decay: see `layer_scale`.
        weight_decay: of the parameters that are decayed.
        decayed_names: their names.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        rate = rates[part]
        if part == "vision_model":
            rate *= layer_scale(name, num_vision_layers, vision_layer_decay)
        decay = weight_decay if name in decayed_names else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
