"""Reward models of the iterations: how good the answer of a sample is, from 0 to 5 (report, 2.2).

Three kinds, which a recipe names by `kind`:

    {kind: endpoint, urls: [http://…/v1], model: NAME}   any OpenAI-compatible server
    {kind: classifier, model: PATH, low: -4, high: 4}    a sequence classifier
    {kind: solution}                                     the sample's own `solution`, by rule
"""

from __future__ import annotations

import abc
import dataclasses
import json
import logging
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from answers import extraction
from answers.judging import Judge, Question
from serving.client import Client, Message, Reply, RequestFailed, user_message
from serving.reply_cache import ReplyCache
from serving.sampling import Sampling
from training.rewards import has_format
from training.settings import settings_from

logger = logging.getLogger(__name__)
LOWEST, HIGHEST = 0.0, 5.0
MOST_NEW_TOKENS = 8192  # of a reply, with its thinking
KINDS = ("endpoint", "classifier", "solution")
# By (is right, has the form of an answer)
RATING_BY_RULE = {(True, True): 5.0, (True, False): 3.0, (False, True): 1.0, (False, False): 0.0}
# Such as "Rating: 4", "- **Rating:** 4.5/5" or "Final rating: [4] (all but the unit)"
RATING_LINE = re.compile(
    r"^[\s*#>•-]*(?:final |overall )?rating[\s*:\[]*"
    r"(\d+(?:\.\d+)?)[\s*\]]*(?:(?:/|out of)[\s*]*5(?:\.0+)?)?[\s*.\]]*(?:\(.*\)[\s*.]*)?$",
    re.IGNORECASE,
)
# A reply without a rating is followed by others, drawn at a temperature
TRIES = 3
TEMPERATURE = 0.7
REQUEST = """\
Rate the answer to the question from 0 to 5, by the question and its images. 5 is right, complete \
and well explained; 3 is partly right; 0 is wrong or beside the question. Numbers between are \
allowed.

Question:
{question}

Answer:
{answer}

Write one line that starts with "Rating:" and has the number."""


class Rated(NamedTuple):
    """An answer of the data that is to be rated.

    Attributes:
        question: its text, with earlier turns.
        images: files.
        answer: as the data have it, with its thinking.
        solution: the right answer.
        kind: of it, one of answers.judging.KINDS.
        options: of a choice.
    """

    question: str
    images: list[str]
    answer: str
    solution: str
    kind: str
    options: tuple[str, ...]

    @property
    def right(self) -> Question:
        """What answers to the question are compared with."""
        return Question(self.kind, self.solution, self.options)


class RatingError(RuntimeError):
    """A reward model gave no rating."""


class NoRating(RatingError):
    """A reward model has replied, but with no rating."""


class Rater(abc.ABC):
    """A reward model."""

    @abc.abstractmethod
    def rate(self, samples: Sequence[Rated]) -> Iterator[tuple[int, float | RatingError]]:
        """(place of a sample, its rating or why there is none), as they are finished."""


@dataclasses.dataclass
class RewardSettings:
    """What a recipe says of its reward model; see this module.

    Attributes:
        kind: one of KINDS.
        model: of an endpoint its name, of a classifier its path.
        urls: of endpoints.
        concurrency: requests that an endpoint gets at a time.
        low, high: logits of a classifier that are rated 0 and 5; between them it is linear.

    Raises:
        ValueError: values that are missing or do not belong together.
    """

    kind: str
    model: str | None = None
    urls: list[str] = dataclasses.field(default_factory=list)
    concurrency: int = 32
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"reward: kind {self.kind!r}: expected one of {', '.join(KINDS)}.")
        if self.kind == "endpoint" and not (self.urls and self.model):
            raise ValueError("reward: an endpoint needs urls and model.")
        if self.kind == "classifier":
            if self.model is None or self.low is None or self.high is None:
                raise ValueError("reward: a classifier needs model, low and high.")
            if self.low >= self.high:
                raise ValueError(f"reward: low {self.low} must be below high {self.high}.")


def settings_of(values: Any) -> RewardSettings:
    """What a recipe says of its reward model.

    Args:
        values: a mapping, with the attributes of `RewardSettings`.

    Raises:
        ValueError: no mapping, an unknown or a missing key, or a value that does not fit.
    """
    if not isinstance(values, dict) or "kind" not in values:
        raise ValueError(
            f"reward: {values!r}: expected a mapping with a kind, one of {', '.join(KINDS)}; see "
            "training/raters.py."
        )
    return settings_from("reward", RewardSettings, values)


def make_rater(settings: RewardSettings, cache: Path) -> Rater:
    """The reward model that a recipe names.

    Args:
        settings: of the recipe.
        cache: file of the replies of endpoints.

    Raises:
        ValueError: an endpoint cannot be reached, or does not serve the model.
    """
    if settings.kind == "endpoint":
        client = Client(settings.urls, str(settings.model), settings.concurrency)
        client.check(MOST_NEW_TOKENS)
        return EndpointRater(client, ReplyCache(cache))
    if settings.kind == "classifier":
        return ClassifierRater(
            str(settings.model), float(settings.low or 0), float(settings.high or 0)
        )
    return SolutionRater()


class EndpointRater(Rater):
    """A model behind OpenAI-compatible endpoints, asked for a number.

    Args:
        client: of the model.
        cache: of its replies, so that nothing is paid twice.
    """

    def __init__(self, client: Client, cache: ReplyCache) -> None:
        self.client = client
        self.cache = cache
        self.first = Sampling(max_new_tokens=MOST_NEW_TOKENS)
        self.further = Sampling(max_new_tokens=MOST_NEW_TOKENS, temperature=TEMPERATURE)

    def rate(self, samples: Sequence[Rated]) -> Iterator[tuple[int, float | RatingError]]:
        """As `Rater.rate`, as many at a time as the endpoints take."""
        with ThreadPoolExecutor(self.client.capacity) as pool:
            yield from enumerate(pool.map(self._rate, samples))

    def _rate(self, sample: Rated) -> float | RatingError:
        text = ""
        for number in range(TRIES):
            sampling = self.further if number else self.first
            seed = number or None
            try:
                reply = self.cache.ask(
                    self.client, [request_for(sample)], sampling, seed, accept=_has_rating
                )
            except RequestFailed as error:
                return RatingError(str(error))
            text = reply.text
            rating = rating_of(text)
            if rating is not None:
                return rating
        return NoRating(f"no rating in {TRIES} replies, the last of which is {text[-200:]!r}")


class ClassifierRater(Rater):
    """A reward model with one logit for a conversation.

    A checkpoint of this package (`SkyworkChatForSequenceClassification`) sees the images; any other
    sequence classifier of transformers reads the text alone.

    Args:
        path: of a model for AutoModelForSequenceClassification with one label.
        low, high: logits that are rated 0 and 5.

    Raises:
        ValueError: a model with another number of labels.
    """

    def __init__(self, path: str, low: float, high: float) -> None:
        from accelerate import PartialState
        from transformers import AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer

        self.sees_images = _is_of_this_package(path)
        # Foreign code runs only where it is this package's own.
        options: Any = {"trust_remote_code": True} if self.sees_images else {}
        model: Any = AutoModelForSequenceClassification.from_pretrained(path, **options)
        self.model: Any = model.eval().to(PartialState().device)
        template_of = AutoProcessor if self.sees_images else AutoTokenizer
        self.template: Any = template_of.from_pretrained(path, **options)
        self.low, self.high = low, high
        if self.model.config.num_labels != 1:
            raise ValueError(
                f"reward: {path} has {self.model.config.num_labels} labels; expected one, the "
                "logit of a reward."
            )

    def rate(self, samples: Sequence[Rated]) -> Iterator[tuple[int, float | RatingError]]:
        """As `Rater.rate`, one at a time."""
        import torch

        if not self.sees_images and any(sample.images for sample in samples):
            logger.warning(
                "The classifier reads text alone, and some samples have images: answers are rated "
                "by their words."
            )
        for place, sample in enumerate(samples):
            inputs = self.template.apply_chat_template(
                self._messages(sample), tokenize=True, return_tensors="pt", return_dict=True
            ).to(self.model.device)
            with torch.no_grad():
                logit = float(self.model(**inputs).logits[0, 0])
            share = (logit - self.low) / (self.high - self.low)
            yield place, LOWEST + min(max(share, 0.0), 1.0) * (HIGHEST - LOWEST)

    def _messages(self, sample: Rated) -> list[dict[str, Any]]:
        """The conversation of a sample, with its images where the model sees them."""
        asked: Any = sample.question
        if self.sees_images:
            images = [{"type": "image", "path": image} for image in sample.images]
            asked = [*images, {"type": "text", "text": sample.question}]
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": sample.answer},
        ]


def _is_of_this_package(path: str) -> bool:
    """Whether a folder is a checkpoint with this package's code."""
    config = Path(path) / "config.json"
    return config.exists() and json.loads(config.read_text()).get("model_type") == "skywork_chat"


class SolutionRater(Rater):
    """The right answer, by rule: for data whose solutions are certain, as those of drawn pictures.

    5 is a right answer in its form (one thinking, one box), 3 a right one in another form, 1 a
    wrong one in its form, 0 all else.
    """

    def rate(self, samples: Sequence[Rated]) -> Iterator[tuple[int, float | RatingError]]:
        """As `Rater.rate`."""
        with Judge() as judge:
            for place, sample in enumerate(samples):
                is_right = judge.judge(sample.right, sample.answer).is_right
                yield place, RATING_BY_RULE[is_right, has_format(sample.answer)]


def request_for(sample: Rated) -> Message:
    """The request of a rating: the images, and the question with its answer."""
    text = REQUEST.format(question=sample.question, answer=sample.answer)
    return user_message(text, sample.images)


def _has_rating(reply: Reply) -> bool:
    return rating_of(reply.text) is not None


def rating_of(text: str) -> float | None:
    """The rating in a reply: its last line that starts with "Rating:", from 0 to 5, or None."""
    said = extraction.after_thinking(text) or ""
    for line in reversed(said.splitlines()):
        found = RATING_LINE.match(line)
        if found is not None:
            value = float(found[1])
            return value if LOWEST <= value <= HIGHEST else None
    return None
