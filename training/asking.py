"""Asks a model in training about samples, and counts right answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from answers import extraction
from answers.judging import Judge, Question, Verdict
from remote_code import conversation
from training.sample_encoder import IGNORED


def split_at_answer(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids before the last answer of an encoded sample, and those of the answer."""
    has_loss = sample["labels"] != IGNORED
    starts = torch.nonzero(has_loss[1:] & ~has_loss[:-1]).flatten()
    start = int(starts[-1]) + 1
    return sample["input_ids"][:start], sample["input_ids"][start:]


class Reply(NamedTuple):
    """What a model wrote, and what the sample says; both without special tokens."""

    written: str
    expected: str

    def judged(self, judge: Judge) -> Verdict:
        """Whether the final answer is that of the sample.

        An answer that the sample has in a box is compared as mathematics, any other as text.

        Raises:
            ValueError: the sample has no final answer.
        """
        right = self._right
        if right.answer is None:
            raise ValueError(f"the answer {self.expected[-60:]!r} of a sample: {right.reason}.")
        kind = "mathematics" if right.box else "text"
        return judge.judge(Question(kind, right.answer), self.written, self._thinks)

    @property
    def right(self) -> str | None:
        """The final answer of the sample."""
        return self._right.answer

    @property
    def _right(self) -> extraction.Found:
        """The final answer of the sample, and how it was found."""
        return extraction.find(self.expected, self._thinks)

    @property
    def _thinks(self) -> bool:
        """Whether the prompt leaves the thinking open; then the sample's reply closes it."""
        return conversation.THINK_END in self.expected


def last_states(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The states (rows, length, H) that the head of a model takes, for a batch of `Collator`.

    They are on the last device of a model over several.
    """
    device = model.get_input_embeddings().weight.device
    inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
    return model.base_model(**inputs, use_cache=False).last_hidden_state


@torch.no_grad()
def ask(model: Any, tokenizer: Any, sample: dict[str, Any], new_tokens: int) -> Reply:
    """The answer of a model to the last question of a sample, by greedy decoding.

    Args:
        model: a `SkyworkChatForConditionalGeneration`, also within PEFT's wrapper.
        tokenizer: of the model.
        sample: as `SampleEncoder` gives it.
        new_tokens: longest answer, in tokens.
    """
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
    return Reply(written, tokenizer.decode(answer, skip_special_tokens=True))


def count_right(
    model: Any, tokenizer: Any, samples: Iterable[dict[str, Any]], new_tokens: int
) -> int:
    """How many samples a model answers as they do; see `ask`."""
    with Judge() as judge:
        replies = (ask(model, tokenizer, sample, new_tokens) for sample in samples)
        return sum(reply.judged(judge).is_right for reply in replies)
