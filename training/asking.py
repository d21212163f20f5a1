"""Asks a model in training about samples, and counts right answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from evaluation.nano import boxed
from remote_code import conversation
from training.sample_encoder import IGNORED


def final_answer(text: str) -> str | None:
    """What an answer says in its box or, without one, behind its thinking; None if that never ends.

    Args:
        text: what follows the prompt, which has opened the thinking.
    """
    _, end, answer = text.rpartition(conversation.THINK_END)
    if not end:
        return None
    return boxed(answer) or answer.strip()


def split_at_answer(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids before the last answer of an encoded sample, and those of the answer."""
    has_loss = sample["labels"] != IGNORED
    starts = torch.nonzero(has_loss[1:] & ~has_loss[:-1]).flatten()
    start = int(starts[-1]) + 1
    return sample["input_ids"][:start], sample["input_ids"][start:]


@torch.no_grad()
def count_right(
    model: Any, tokenizer: Any, samples: Iterable[dict[str, Any]], new_tokens: int
) -> int:
    """How many samples a model answers as they do, by greedy decoding, one after another.

    Args:
        model: a `SkyworkChatForConditionalGeneration`, also within PEFT's wrapper.
        tokenizer: of the model.
        samples: as `SampleEncoder` gives them.
        new_tokens: longest answer, in tokens.
    """
    right = 0
    for sample in samples:
        prompt, answer = split_at_answer(sample)
        ids = prompt[None].to(model.device)
        pixels = sample["pixel_values"]
        if pixels is not None:
            pixels = pixels.to(model.device, model.dtype)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=pixels,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        written = tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True)
        expected = tokenizer.decode(answer, skip_special_tokens=True)
        right += final_answer(written) == final_answer(expected)
    return right
