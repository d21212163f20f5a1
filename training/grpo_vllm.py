"""What TRL's generation by vLLM needs for this model.

TRL loads the weights of the training into vLLM before it generates. Here these are only the ones
that have changed; and vLLM forgets what it kept of images, which the old projector has made. Then
TRL gives it prompts as token ids in which images have their tokens. vLLM puts those in itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from remote_code import conversation
from training.sharded import trained_parameters, whole_parameter


def check_installed() -> None:
    """Raise ValueError where vLLM is missing: TRL would, when it has the model."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "use_vllm: vLLM is not installed in this environment, which TRL needs for a server, "
            "too: pip install 'trl[vllm]', or leave it out."
        )


def prepare(generation: Any, model: torch.nn.Module, tokenizer: Any) -> None:
    """Have TRL's vLLM receive what training changes, forget images, and get prompts it can take.

    Args:
        generation: TRL's `VLLMGeneration`.
        model: that trains, with or without adapters of PEFT.
        tokenizer: of the model.
    """
    # A vLLM that sleeps between its turns forgets all weights.
    if not generation.enable_sleep_mode:
        send_only(generation, names_in_checkpoint(model))
    forget_images_with_weights(generation)
    # A server gets the tokens and, of each image, what its own processor made of it.
    if generation.mode == "colocate":
        ask_with_placeholders(generation.llm, tokenizer)


# -- weights ---------------------------------------------------------------------------------------


def names_in_checkpoint(model: torch.nn.Module) -> set[str]:
    """The names that a checkpoint without adapters has for the parameters which training changes.

    Args:
        model: with or without adapters of PEFT, each of which changes the weight that it is on.
    """
    names = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        names.add(name.split(".lora_")[0] + ".weight" if ".lora_" in name else name)
    return names


def send_only(generation: Any, names: set[str]) -> None:
    """Have vLLM receive these parameters alone: it has loaded the others, which stay as they are.

    TRL would send every one before each generation: 77 GB of a 38B model, of which `mlp1` is 0.2.
    Under FSDP2 it would gather them all, too.

    Args:
        generation: TRL's `VLLMGeneration`.
        names: of the parameters in a checkpoint.
    """
    iterate_all = generation._iter_named_params

    def iterate_merged() -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters that have such a name, with adapters merged as long as they are read."""
        for name, parameter in iterate_all():
            if name in names:
                yield name, parameter

    def iterate_trained() -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters that train, gathered one by one."""
        for name, parameter in trained_parameters(generation.model):
            yield name, whole_parameter(parameter).detach()

    has_adapters = hasattr(generation.model, "peft_config")
    generation._iter_named_params = iterate_merged if has_adapters else iterate_trained


def forget_images_with_weights(generation: Any) -> None:
    """Have vLLM forget the embeddings of images whenever it receives weights.

    It keeps them by the image, as the projector of the time has made them, and would use them again
    for the same image. TRL has it forget only what it keeps of texts.

    Args:
        generation: TRL's `VLLMGeneration`.
    """
    synchronize = generation.sync_weights

    def synchronize_and_forget() -> None:
        """As TRL's; then no image is kept."""
        synchronize()
        if generation.mode == "colocate":
            generation.llm.llm_engine.reset_encoder_cache()
        elif generation.accelerator.is_main_process:
            client = generation.vllm_client
            client.session.post(f"{client.base_url}/reset_encoder_cache").raise_for_status()

    generation.sync_weights = synchronize_and_forget


# -- prompts ---------------------------------------------------------------------------------------


def ask_with_placeholders(llm: Any, tokenizer: Any) -> None:
    """Have an engine of vLLM get a placeholder where a prompt has the tokens of an image.

    Args:
        llm: vLLM's `LLM`, whose `generate` takes mappings with prompt_token_ids.
        tokenizer: of its model.
    """
    generate = llm.generate
    placeholder = tokenizer.encode(conversation.IMAGE_PLACEHOLDER, add_special_tokens=False)
    special = (conversation.IMAGE_START, conversation.IMAGE_CONTEXT, conversation.IMAGE_END)
    start, context, end = tokenizer.convert_tokens_to_ids(list(special))

    def generate_from_placeholders(prompts: Sequence[dict[str, Any]], **keywords: Any) -> Any:
        """As vLLM's, with prompts whose images have their tokens."""
        asked = []
        for prompt in prompts:
            ids = without_image_tokens(prompt["prompt_token_ids"], start, context, end, placeholder)
            asked.append({**prompt, "prompt_token_ids": ids})
        return generate(asked, **keywords)

    llm.generate = generate_from_placeholders


def without_image_tokens(
    ids: Sequence[int], start: int, context: int, end: int, placeholder: Sequence[int]
) -> list[int]:
    """A prompt with a placeholder in the place of each image.

    Args:
        ids: of its tokens; an image is a start, at least one context token, and an end.
        start, context, end: those of an image.
        placeholder: the tokens that an image gets.
    """
    shortened: list[int] = []
    place = 0
    while place < len(ids):
        stop = place + 1
        while stop < len(ids) and ids[stop] == context:
            stop += 1
        is_image = ids[place] == start and stop > place + 1 and ids[stop : stop + 1] == [end]
        if is_image:
            shortened += placeholder
            place = stop + 1
        else:
            shortened.append(ids[place])
            place += 1
    return shortened
