"""`training.grpo` whose completions a script decides, on weights that are whole or shared out.

    python -m tests.scripted_grpo --config … --use_vllm true --vllm_mode server
    torchrun --nproc_per_node 2 -m tests.scripted_grpo --config … (the same)
    accelerate launch --config_file … -m tests.scripted_grpo --config … (the same)

A server of vLLM is replaced by `ScriptedServer`; all of TRL's side of it runs. What a server
receives is written into the folder that RECEIVED names, a file for each time.
"""

import os
from pathlib import Path

from safetensors.torch import save_file
from transformers import AutoTokenizer
from trl.trainer import grpo_trainer

from tests import cpu_processes
from training import grpo, grpo_vllm

# What a prompt is answered with, by the number of the completion; the boxes differ
ANSWERS = ("I look.\n</think>\n\n\\boxed{46}", "</think>\\boxed{9}", "I look", "</think>\\boxed{0}")
LOG_PROBABILITY = -0.5  # of each token, as a server says


class Replies:
    """What a server answers to requests without content."""

    def post(self, url):
        return self

    def raise_for_status(self):
        pass


class ScriptedServer:
    """In the place of TRL's client of a vLLM server.

    Args:
        tokenizer: of the model.
        folder: for what is received.
    """

    base_url = "http://server"

    def __init__(self, tokenizer, folder):
        self.tokenizer = tokenizer
        self.folder = folder
        self.session = Replies()
        self.num_received = 0

    def get_server_info(self):
        return {"model_config": {"logprobs_mode": "processed_logprobs"}}

    def image_features(self, images):
        """Of each prompt, as many places as it has images."""
        features = []
        for of_prompt in images:
            places = [{} for _ in of_prompt or []]
            features.append({"mm_placeholders": {"image": places}} if places else None)
        return features

    def generate(self, prompts, features, n, **sampling):
        completions = []
        for ids in prompts:
            for number in range(n):
                answer = ANSWERS[(len(ids) + number) % len(ANSWERS)]
                completions.append([*self.tokenizer.encode(answer), self.tokenizer.eos_token_id])
        return {
            "prompt_ids": prompts,
            "completion_ids": completions,
            "logprobs": [[[LOG_PROBABILITY] for _ in ids] for ids in completions],
            "logprob_token_ids": [[[token] for token in ids] for ids in completions],
        }

    def update_named_params(self, metadata, parameters):
        received = {name: parameter.clone() for name, parameter in parameters}
        assert [(name, list(tensor.shape)) for name, tensor in received.items()] == [
            (name, shape) for name, _, shape in metadata
        ]
        save_file(received, self.folder / f"{self.num_received}.safetensors")
        self.num_received += 1

    def reset_prefix_cache(self):
        pass


class ScriptedGeneration(grpo_trainer.VLLMGeneration):
    """TRL's generation, which asks a server of the script."""

    def _init_vllm(self):
        tokenizer = AutoTokenizer.from_pretrained(self.model.name_or_path, trust_remote_code=True)
        self.vllm_client = ScriptedServer(tokenizer, Path(os.environ["RECEIVED"]))


if __name__ == "__main__":
    grpo_trainer.VLLMGeneration = ScriptedGeneration
    grpo_vllm.check_installed = lambda: None
    if "WORLD_SIZE" in os.environ:
        cpu_processes.run(grpo.main)
    else:
        grpo.main()
