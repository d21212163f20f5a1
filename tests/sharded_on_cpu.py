"""`training.sft` with FSDP2 or ZeRO-3 over CPU processes, for tests.

    accelerate launch --config_file … -m tests.sharded_on_cpu …

accelerate (1.15) shards on accelerators only: with `use_cpu` it falls back to DDP without a word.
PyTorch and DeepSpeed (with DS_ACCELERATOR=cpu) shard over gloo as well, so accelerate is told here
that CPUs are accelerators. Everything that follows is what runs on GPUs.
"""

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from training import sft


def main():
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *arguments, **keywords: (
        "gloo",
        DistributedType.MULTI_XPU,
    )
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    sft.main()
    assert AcceleratorState().distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


if __name__ == "__main__":
    main()
