"""Parameters that no process holds whole, under FSDP2 and ZeRO-3, and those of one process alike.

FSDP2 shards a parameter as a DTensor. Under ZeRO-3 a parameter is empty between the steps, and
`ds_tensor` has the part of this process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

Weights = dict[str, torch.Tensor]


def kind_of_sharding(config: Any) -> str | None:
    """What shares the weights out over the processes: "DeepSpeed", "FSDP1", "FSDP2" or None.

    Args:
        config: the settings of transformers' TrainingArguments, which may say it; otherwise the
            environment of `accelerate launch` does.
    """
    if config.deepspeed or _is_set("ACCELERATE_USE_DEEPSPEED"):
        return "DeepSpeed"
    if config.fsdp:
        return f"FSDP{config.fsdp_plugin_args['fsdp_version']}"
    if _is_set("ACCELERATE_USE_FSDP"):
        return "FSDP" + os.environ.get("FSDP_VERSION", "1")
    return None


def _is_set(variable: str) -> bool:
    """Whether a variable of the environment is "true"."""
    return os.environ.get(variable, "false").lower() == "true"


def reshard(model: torch.nn.Module) -> None:
    """Give back the parameters that FSDP2 has gathered and keeps: those at the root, for instance.

    While it keeps them, the names of the model are of the whole ones, and not of those that the
    optimizer has.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter or buffer."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return getattr(tensor, "ds_tensor", tensor)


def gather(parameters: Iterable[tuple[str, torch.Tensor]], keep: bool) -> Weights:
    """Whole parameters, one by one, in CPU memory; every process has to call it.

    Args:
        parameters: names and parameters, the same on every process.
        keep: whether this process gets them; the others get none.
    """
    weights = {}
    for name, parameter in parameters:
        whole = whole_parameter(parameter)
        if keep:
            weights[name] = whole.detach().to("cpu", copy=True).contiguous()
    return weights


def whole_parameter(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter of which each process holds a part; every process has to call it."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor()
    if hasattr(parameter, "ds_tensor"):
        from deepspeed import zero  # pyright: ignore[reportMissingImports]  # it made the parameter

        with zero.GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter


def trained_parameters(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The parameters that train, with their names."""
    reshard(model)
    return [pair for pair in model.named_parameters() if pair[1].requires_grad]


def misfit(absent: list[str], unexpected: list[str]) -> ValueError:
    """The error of a checkpoint that lacks parameters which train, or has others."""
    return ValueError(
        f"The checkpoint does not fit what trains: it lacks {absent[:3]} and has {unexpected[:3]} "
        "besides. Resume with the recipe it was written with, or use another output_dir."
    )


@torch.no_grad()
def load_trained(model: Any, path: Path) -> None:
    """Load the parameters that train, sharded by FSDP2, from a file that has them whole.

    Args:
        path: of safetensors, which every process can read.

    Raises:
        ValueError: the file has other parameters than those that train.
    """
    weights = load_file(path)
    trained = dict(trained_parameters(model))
    if weights.keys() != trained.keys():
        absent = sorted(trained.keys() - weights.keys())
        raise misfit(absent, sorted(weights.keys() - trained.keys()))
    for name, parameter in trained.items():
        whole = weights[name].to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            sharded = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
            parameter.to_local().copy_(sharded.to_local())
        else:
            parameter.copy_(whole)
