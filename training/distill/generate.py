"""The model writes its own chains, each sample's under its repetition penalty P (report, 2.3).

A server, or vLLM's offline engine, gets P with each request. On transformers the samples of a batch
share their P: the length controller rounds it to a grid, so that there are batches.

The two count differently: vLLM penalises the tokens of prompt and chain, transformers those of the
chain alone, because its models here get embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.client import Client
from serving.endpoint_engine import EndpointEngine
from serving.question_file import Question
from serving.sampling import Sampling
from training.distill.recipe import GeneratorSettings
from training.distill.records import Entry, Sample

KEY = ("number", "try")  # what tells a chain from others
KEPT_FIELDS = ("thinking", "answer", "tokens", "finish_reason")


def questions_of(
    samples: Sequence[Sample],
    penalties: Mapping[int, float],
    tries: int,
    done: Mapping[tuple[int, ...], Entry],
) -> list[Question]:
    """What is to be asked of the generator.

    Args:
        samples: that chains are wanted of.
        penalties: P of each, by number.
        tries: chains of each.
        done: those that are there, by number and try; failed ones are asked for again.
    """
    questions: list[Question] = []
    for sample in samples:
        for number in range(tries):
            if "error" in done.get((sample.number, number), {"error": ""}):
                question: Any = {"id": str(sample.number), "number": number, **sample.asked}
                question["repetition_penalty"] = penalties[sample.number]
                questions.append(question)
    return questions


def make_engine(settings: GeneratorSettings, sampling: Sampling, max_images: int) -> Any:
    """The engine of serving/ that a recipe names, with its model loaded.

    Raises:
        ValueError: an endpoint cannot be reached, does not serve the model, or has no room.
    """
    if settings.kind == "endpoint":
        client = Client(settings.urls, settings.model, settings.concurrency, settings.timeout)
        client.check(sampling.max_new_tokens)
        return EndpointEngine(client, sampling, settings.thinks)
    # torch and the model's code are needed for these alone
    from serving.engines import TransformersEngine, VllmEngine

    if settings.kind == "vllm":
        return VllmEngine(
            settings.model,
            settings.dtype,
            sampling,
            settings.tensor_parallel,
            max(1, max_images),
            settings.vllm_options,
        )
    return TransformersEngine(settings.model, settings.dtype, settings.batch_size, sampling)


def chains(engine: Any, questions: Sequence[Question]) -> Iterator[Entry]:
    """The chains as they are finished, as lines of the stage; those that failed have an "error"."""
    for answered in engine.answers(questions):
        entry = {"number": int(answered["id"]), "try": answered["number"]}
        if "error" in answered:
            yield {**entry, "error": answered["error"]}
            continue
        for name in KEPT_FIELDS:
            entry[name] = answered[name]
        yield entry
