"""`training.sft` with FSDP over CPU processes, for tests: `accelerate launch --config_file … -m tests.fsdp_on_cpu …`.

accelerate (1.15) shards on accelerators only: with `use_cpu` it falls back to DDP without a word. PyTorch's FSDP2
itself works over gloo, so accelerate is told here that CPUs are accelerators; all that follows is what runs on GPUs.
"""

import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from training import sft


def main():
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = lambda self, *arguments, **keywords: ("gloo", DistributedType.MULTI_XPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
    sft.main()
    assert AcceleratorState().distributed_type == DistributedType.FSDP


if __name__ == "__main__":
    main()
