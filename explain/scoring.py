"""How likely a model finds an answer that it has given, with these images or with others.

scored = ScoredAnswer(model, tokenizer, prompt, "12\\n</think>\\n\\nAnswer: 12", passage="12")
scored.log_probabilities(features)  # of the passage, for each row of image features
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from remote_code import chat, conversation, device_map

POSITIONS_AT_A_TIME = 512  # whose logits are in memory together, each of the whole vocabulary


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A question with what comes before it.

    Attributes:
        question: as `chat()` takes it.
        num_patches: number of tiles of each image of the conversation.
        history: earlier turns, (question, answer) each.
        mode: "think" or "no-think".
        system_message: in place of the model's own.

    Raises:
        ValueError: an unknown mode.
    """

    question: str
    num_patches: Sequence[int]
    history: list | None = None
    mode: str = "think"
    system_message: str | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)


class ScoredAnswer:
    """A prompt and its answer as token ids, of which some are scored.

    Args:
        model: of any class over the checkpoint, in evaluation mode.
        tokenizer: the checkpoint's.
        prompt: what was asked.
        answer: what the model wrote, thinking included.
        passage: the words of the answer that are scored, where they stand first; None scores all.

    Attributes:
        ids: of the prompt and the answer.
        scored: the places in `ids` of the tokens that are scored.
        is_image: for each of `ids` whether it is an image token, bool (length,).

    Raises:
        ValueError: an empty answer, a passage that it does not have, images that do not match the
            question, or more tokens than the model's context.
    """

    def __init__(
        self, model: Any, tokenizer: Any, prompt: Prompt, answer: str, passage: str | None = None
    ) -> None:
        self._model = model
        self._image_token_id = conversation.token_id(tokenizer, conversation.IMAGE_CONTEXT)
        before = encoded_prompt(model, tokenizer, prompt)
        written = encoded_answer(tokenizer, answer)
        if not written:
            raise ValueError("The answer is empty: there are no words that an image could explain.")
        first, last = 0, len(written)
        if passage is not None:
            first, last = span_of(tokenizer, answer, passage)
        self.ids = before + written
        self.scored = range(len(before) + first, len(before) + last)
        # image tokens in the answer are words
        self.is_image = torch.tensor(self.ids) == self._image_token_id
        context = model.config.llm_config.max_position_embeddings
        if len(self.ids) > context:
            raise ValueError(
                f"Question and answer have {len(self.ids)} tokens, and the model's context is "
                f"{context}."
            )

    @torch.no_grad()
    def log_probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """The log-probability of the scored tokens, given those before them.

        Args:
            features: (rows, tiles, num_image_token, H), the tiles of all images in each row.

        Returns:
            Float32 (rows,), on the CPU.
        """
        last = self.scored.stop
        device = device_map.device_of_embedding(self._model.get_input_embeddings())
        ids = torch.tensor(self.ids[:last], device=device).expand(len(features), -1)
        embeds = self._model.embed(
            ids, image_features=features.flatten(0, 1), image_token_id=self._image_token_id
        )
        output = self._model.base_model(inputs_embeds=embeds, use_cache=False)
        # what is read at one place predicts the next
        states = output.last_hidden_state[:, self.scored.start - 1 : last - 1]  # (rows, scored, H)
        targets = ids[:, self.scored.start :]
        return self._summed(states.flatten(0, 1), targets.flatten()).view(len(features), -1).sum(-1)

    def _summed(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The log-probability of each target (positions,) from states (positions, H)."""
        head = self._model.get_output_embeddings()
        found = []
        for some_states, some_targets in zip(
            states.split(POSITIONS_AT_A_TIME), targets.split(POSITIONS_AT_A_TIME)
        ):
            logits = head(some_states).float()  # (positions, vocabulary)
            chosen = logits.gather(-1, some_targets.to(logits.device)[:, None])[:, 0]
            found.append((chosen - logits.logsumexp(-1)).cpu())
        return torch.cat(found)


def check_mode(mode: str) -> None:
    """Check that questions can be asked in a mode.

    Raises:
        ValueError: they cannot.
    """
    if mode not in chat.MODES:
        raise ValueError(f"mode={mode!r} is unknown; expected one of {', '.join(chat.MODES)}.")


def encoded_prompt(model: Any, tokenizer: Any, prompt: Prompt) -> list[int]:
    """The token ids of a prompt, which are those of `chat()`."""
    question = conversation.add_image_placeholders(
        prompt.question, prompt.history, len(prompt.num_patches)
    )
    template = conversation.get_conv_template(model.config.template)
    system_message = prompt.system_message
    if system_message is None:
        system_message = getattr(model, "system_message", None)
    opened = conversation.open_conversation(template, question, prompt.history, system_message)
    segments = opened.segments([model.num_image_token * tiles for tiles in prompt.num_patches])
    if prompt.mode == "no-think":
        segments.append((template.skipped_thinking, True))
    return conversation.encode_segments(tokenizer, segments, opened.begin)


def encoded_answer(tokenizer: Any, answer: str) -> list[int]:
    """The token ids of what a model wrote, in which the first `</think>` is a control token."""
    thinking, mark, rest = answer.partition(conversation.THINK_END)
    segments = [(thinking, False), (mark, True), (rest, False)]
    return conversation.encode_segments(tokenizer, segments)


def span_of(tokenizer: Any, answer: str, passage: str) -> tuple[int, int]:
    """(first, last + 1) of the answer's tokens that a passage has a part in.

    Raises:
        ValueError: the answer does not have the passage.
    """
    start = answer.find(passage)
    if start < 0 or not passage:
        raise ValueError(f"The passage {passage!r} does not stand in the answer {answer!r}.")
    written = encoded_answer(tokenizer, answer)
    before = encoded_answer(tokenizer, answer[:start])
    through = encoded_answer(tokenizer, answer[: start + len(passage)])
    # Tokens that a shorter text has as well lie in it whole.
    first = num_equal(written, before)
    last = num_equal(written, through)
    if last < len(through):
        last += 1  # a token that goes on behind the passage
    return first, max(last, first + 1)


def num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """How many ids two lists have in common at their beginning."""
    for place, (left, right) in enumerate(zip(first, second)):
        if left != right:
            return place
    return min(len(first), len(second))
