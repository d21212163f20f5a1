"""A training over several CPU processes, for tests.

    torchrun --nproc_per_node 2 -m tests.cpu_processes …                     whole weights (DDP)
    accelerate launch --config_file … -m tests.cpu_processes …               FSDP2 or ZeRO-3

runs `training.sft`, and tests/scripted_grpo.py runs `training.grpo` in the same way. `accelerate
launch` (1.15) has no second process on a CPU, whatever its configuration says, and shards on
accelerators only: with `use_cpu` it falls back without a word. PyTorch and DeepSpeed (with
DS_ACCELERATOR=cpu) shard over gloo as well, so accelerate is told here that CPUs are accelerators.
Everything that follows is what runs on GPUs. A training that ran alone all the same fails.
"""

import os

import pytest
import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from tests import checkpoints
from training import sft

CONFIGURATIONS = checkpoints.ROOT / "training" / "recipes" / "accelerate"
# Arguments of Python, before those of a module; the processes meet at a free port
TWO_PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launcher(config):
    """Arguments of Python that start a module by a configuration of accelerate."""
    launch = ("-m", "accelerate.commands.launch")
    return (*launch, "--config_file", str(config), "--main_process_port", "0")


def sharded_config(kind, folder, mixed_precision):
    """A shipped configuration for many GPUs, cut down to two or four processes on a CPU."""
    if kind == "zero3":
        pytest.importorskip(
            "deepspeed", reason="ZeRO-3 needs DeepSpeed, which this package does not install"
        )
    config = yaml.safe_load((CONFIGURATIONS / f"{kind}.yaml").read_text())
    config.update(
        num_machines=1, num_processes=2, mixed_precision=mixed_precision, use_cpu=kind == "fsdp"
    )
    if kind == "hsdp":
        config["num_processes"] = 4
        config["parallelism_config"]["parallelism_config_dp_shard_size"] = 2
    path = folder / f"{kind}_{mixed_precision}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run(main):
    """Run a training's command in one of several processes.

    Args:
        main: of the command, without arguments.
    """
    expected = {DistributedType.MULTI_CPU}
    if not {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"}.isdisjoint(os.environ):
        expected = {DistributedType.FSDP, DistributedType.DEEPSPEED}
        take_cpus_for_accelerators()
    main()
    state = AcceleratorState()
    assert state.num_processes == int(os.environ["WORLD_SIZE"]) > 1
    assert state.distributed_type in expected


def take_cpus_for_accelerators():
    """Have accelerate shard over gloo."""
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *arguments, **keywords: (
        "gloo",
        DistributedType.MULTI_XPU,
    )
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))


if __name__ == "__main__":
    run(sft.main)
