r"""A reward model's opinion of completions, as a reward of GRPO (R1V2 adds it to its rules).

    rewards: [accuracy, format, model]
    reward_model: {kind: endpoint, urls: [http://127.0.0.1:8000/v1], model: NAME}

The reward models are those of the iterations (training/raters.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from training.raters import HIGHEST, LOWEST, NoRating, Rated, Rater, RatingError
from training.rewards import Column, Completion, text_of

logger = logging.getLogger(__name__)


class ModelReward:
    r"""r = rating / 5 of a reward model.

    A completion that it does not rate gets the mean of the others to its prompt, so that this
    reward says nothing about it. (TRL takes None for 0 where another reward has a value.) Where
    this process has no other, it gets 0 for replies without a rating, which would be the same ones
    when the training is started again; and an endpoint that does not answer is an error.

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
    ) -> list[float]:
        """The rewards of completions.

        Args:
            completions: what the model wrote.
            question: the text of each prompt, with earlier turns.
            image_paths: files of each prompt.
            solution, kind, options: of the right answers, see `accuracy_reward`.
            columns: the other columns of the data, which do not matter here.

        Raises:
            ValueError: the endpoint answers for no completion to a prompt.
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
        rewards: dict[int, float] = {}
        failed: dict[int, RatingError] = {}
        for place, rating in self.rater.rate(samples):
            if isinstance(rating, RatingError):
                logger.warning("A completion has no rating: %s", rating)
                failed[place] = rating
            else:
                rewards[place] = (rating - LOWEST) / (HIGHEST - LOWEST)
        means = {}
        for place, error in failed.items():
            means[place] = _mean_of_prompt(samples, place, rewards, error)
        rewards |= means
        return [rewards[place] for place in range(len(samples))]


def _mean_of_prompt(
    samples: Sequence[Rated],
    place: int,
    rewards: Mapping[int, float],
    error: RatingError,
) -> float:
    """The mean reward of the completions to the same prompt as one that has none; see ModelReward.

    Args:
        samples: all that were to be rated.
        place: of the one without.
        rewards: of those that were, by place.
        error: why it has none.

    Raises:
        ValueError: no other has one, since the endpoint does not answer.
    """
    prompt = samples[place]._replace(answer="")
    others = [
        reward for other, reward in rewards.items() if samples[other]._replace(answer="") == prompt
    ]
    if others:
        return sum(others) / len(others)
    if isinstance(error, NoRating):
        return 0.0
    raise ValueError(
        f"The reward model does not answer: {error}. The training goes on from its last "
        "checkpoint when it is started again."
    )
