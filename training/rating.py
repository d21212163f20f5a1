"""Rates answers from 0 to 5 with a judge model, as the report's iterations need it (section 2.2).

The judge reads images, question and answer, and is asked for one digit, without thinking. The
rating is the mean of the digits by the probabilities that it gives them (G-Eval, arXiv:2303.16634),
so that it is finer than a digit, and needs no generation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from remote_code import conversation
from training.asking import last_states
from training.rows import ChatSample
from training.sample_encoder import IGNORED, SampleEncoder

RATINGS = ("0", "1", "2", "3", "4", "5")
REQUEST = """\
{conversation}

Rate the last answer from 0 to 5 by the image and the question: 5 is right, complete and well \
explained; 3 is partly right; 0 is wrong or beside the question. Reply with one digit."""
# Below this share of the probability, digits are not what the judge would write.
LEAST_SHARE_OF_DIGITS = 0.5


class Rating(NamedTuple):
    """What a judge thinks of an answer.

    Attributes:
        value: from 0 to 5.
        share_of_digits: probability that it gives the six digits together.
    """

    value: float
    share_of_digits: float


def as_request(sample: ChatSample) -> ChatSample:
    """The sample as a question to the judge, with "0" in the place of its answer."""
    lines = [f"Instruction: {sample.system}"] if sample.system else []
    for question, answer in sample.turns:
        # A word in an answer does not stand for an image.
        answer = answer.replace(conversation.IMAGE_PLACEHOLDER, "(image)")
        lines += [f"Question: {question}", f"Answer: {answer}"]
    request = REQUEST.format(conversation="\n".join(lines))
    return ChatSample([(request, RATINGS[0])], sample.images)


class RequestEncoder(SampleEncoder):
    """Encodes each sample as a question to the judge."""

    def tokens(self, sample: ChatSample, tiles: Any) -> tuple[list[int], list[int]]:
        """Ids and labels of the question; see `SampleEncoder.tokens`."""
        return super().tokens(as_request(sample), tiles)


def digit_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token of each of RATINGS.

    Raises:
        ValueError: a tokenizer in which a digit is not one token.
    """
    ids = []
    for digit in RATINGS:
        encoded = tokenizer(digit, add_special_tokens=False)["input_ids"]
        if len(encoded) != 1:
            raise ValueError(f"The judge's tokenizer writes {digit!r} in {len(encoded)} tokens.")
        ids.append(encoded[0])
    return ids


@torch.no_grad()
def rate_answers(model: Any, batch: dict[str, torch.Tensor], digits: list[int]) -> list[Rating]:
    """The rating of each row.

    Args:
        batch: what `Collator` gives for samples of `RequestEncoder`.
        digits: see `digit_ids`.
    """
    states = last_states(model, batch)
    # The state before the first label predicts the digit
    last_of_prompt = (batch["labels"] != IGNORED).int().argmax(1) - 1
    rows = torch.arange(len(states), device=states.device)
    logits = model.get_output_embeddings()(states[rows, last_of_prompt.to(states.device)])
    shares = logits.float().softmax(-1)[:, digits].cpu()
    values = shares @ torch.arange(len(RATINGS), dtype=torch.float32)
    totals = shares.sum(1)
    return [Rating(*pair) for pair in zip((values / totals).tolist(), totals.tolist())]
