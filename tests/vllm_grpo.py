"""Runs `training.grpo` with vLLM's CPU build, as `tests/vllm_check.py` does.

    .vllm/bin/python -m tests.vllm_grpo --config … --use_vllm true --vllm_mode colocate
    .vllm/bin/accelerate launch --config_file … -m tests.vllm_grpo --config … (the same)

The linear layers of that build pack their weights when they are loaded, and drop them, so that they
could not receive others. Here they keep and use them as they are, as on a GPU.
"""

import os

import torch
from vllm.model_executor.layers import utils

from tests import cpu_processes
from training import grpo


def use_weights_as_they_are(layer, remove_weight):
    """In the place of vLLM's `dispatch_cpu_unquantized_gemm`."""
    layer.cpu_linear = torch.nn.functional.linear


if __name__ == "__main__":
    assert callable(utils.dispatch_cpu_unquantized_gemm)
    utils.dispatch_cpu_unquantized_gemm = use_weights_as_they_are
    if "WORLD_SIZE" in os.environ:
        cpu_processes.run(grpo.main)
    else:
        grpo.main()
