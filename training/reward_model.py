r"""A reward model's opinion of completions, as a reward of GRPO (R1V2 adds it to its rules).

    rewards: [accuracy, format, model]
    reward_model: {kind: endpoint, urls: [http://127.0.0.1:8000/v1], model: NAME}

The reward models are those of the iterations (training/raters.py).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from training.raters import HIGHEST, LOWEST, Rated, Rater, RatingError
from training.rewards import Column, Completion, text_of

logger = logging.getLogger(__name__)


class ModelReward:
    r"""r = rating / 5 of a reward model, None where it has no rating.

    With the rewards `accuracy` and `format` the sum is R1V2's
    r = r_rule + r_model + r_format; `reward_weights` weighs the three.

    Args:
        rater: the reward model.
    """

    __name__ = "model_reward"

    def __init__(self, rater: Rater) -> None:
        self.rater = rater

    def __call__(
        self,
        completions: Sequence[Completion],
        question: Sequence[str],
        image_paths: Sequence[Sequence[str]],
        solution: Sequence[str],
        kind: Column = None,
        options: Column = None,
        **columns: Any,
    ) -> list[float | None]:
        """The rewards of completions.

        Args:
            completions: what the model wrote.
            question: the text of each prompt, with earlier turns.
            image_paths: files of each prompt.
            solution, kind, options: of the right answers, see `accuracy_reward`.
            columns: the other columns of the data, which do not matter here.
        """
        samples = []
        for number, completion in enumerate(completions):
            samples.append(
                Rated(
                    question=question[number],
                    images=list(image_paths[number]),
                    answer=text_of(completion),
                    solution=solution[number],
                    kind=(kind[number] if kind else None) or "mathematics",
                    options=tuple((options[number] if options else None) or ()),
                )
            )
        rewards: list[float | None] = [None] * len(samples)
        for place, rating in self.rater.rate(samples):
            if isinstance(rating, RatingError):
                logger.warning("A completion has no rating: %s", rating)
            else:
                rewards[place] = (rating - LOWEST) / (HIGHEST - LOWEST)
        return rewards
