"""Tokens per second: of random weights against InternVL, and of the nano checkpoint's reasoning."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from benchmarks import measure, models
from benchmarks.inputs import random_prompt
from benchmarks.presets import LanguageShape, Preset
from benchmarks.report import Report
from tasks import draw

OURS = "ours"
OURS_STATIC = "ours, static"
PEER = "transformers InternVL"

# Ways to decode a trace, which change the time and not the tokens
WAYS_TO_DECODE: dict[str, dict[str, Any]] = {
    "plain": {},
    "static cache, compiled": {"cache_implementation": "static"},
    "prompt lookup, 8 tokens": {"prompt_lookup_num_tokens": 8},
}
LONGEST_TRACE = 1536  # tokens, within nano's context of 4,096


# -- random weights --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DecodingCase:
    """What is measured for one language model at one batch size.

    Attributes:
        name: of the rows' case.
        batch: number of prompts that are decoded together.
        new_tokens: tokens that each of them gets.
        prompt_tokens: tokens of each prompt.
        contenders: name to a call that generates (batch, tokens) with the prompt.
    """

    name: str
    batch: int
    new_tokens: int
    prompt_tokens: int
    contenders: dict[str, Callable[..., torch.Tensor]]


def decoding(preset: Preset, report: Report, repeats: int) -> None:
    """Tokens per second after a short prompt, at several batch sizes, and the tokens themselves."""
    for shape in preset.language:
        _measure_language_model(shape, preset, report, repeats)


def _measure_language_model(
    shape: LanguageShape, preset: Preset, report: Report, repeats: int
) -> None:
    device = preset.device
    config = models.build_config("300m", shape.name, vision_layers=1, language_layers=shape.layers)
    ours = models.build_ours(config, device, models.dtype_of(shape.dtype))
    theirs = models.build_internvl(config, ours.state_dict(), config.image_token_id, device=device)
    layers = config.llm_config.num_hidden_layers
    for batch in preset.batches:
        case_name = (
            f"Qwen2-{shape.name}, {layers} layers, {shape.dtype}, batch {batch}, "
            f"{preset.new_tokens} tokens"
        )
        ids = random_prompt(config, 0, batch, device=device)
        contenders = _decoding_contenders(ours, theirs, ids, preset.new_tokens)
        case = DecodingCase(case_name, batch, preset.new_tokens, ids.shape[1], contenders)
        report.progress(f"decoding, {case_name}")
        _report_same_tokens(case, report)
        medians = _report_speed(case, report, repeats, device)
        report.add_memory("decoding", case_name, contenders, device)
        if batch == 1:
            _report_bandwidth(case, ours, medians[OURS_STATIC], report, repeats, device)


def _decoding_contenders(
    ours: Any, theirs: Any, ids: torch.Tensor, new_tokens: int
) -> dict[str, Callable[..., torch.Tensor]]:
    """Calls that generate so many tokens after a prompt, by name."""
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": new_tokens,
        "min_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": 0,
    }
    return {
        OURS_STATIC: partial(ours.generate, **inputs, cache_implementation="static"),
        OURS: partial(ours.generate, **inputs),
        PEER: partial(theirs.generate, **inputs),
    }


def _report_same_tokens(case: DecodingCase, report: Report) -> None:
    """The share of tokens in which ours and InternVL agree; near ties may go either way."""
    expected = case.contenders[PEER]()[:, case.prompt_tokens :]
    for name in (OURS, OURS_STATIC):
        same = (case.contenders[name]() == expected).float().mean().item()
        report.add("decoding, same tokens", case.name, name, same, "share")


def _report_speed(
    case: DecodingCase, report: Report, repeats: int, device: str
) -> dict[str, float]:
    """Tokens per second of each contender; returns the median seconds of a call."""
    seconds = measure.alternate(case.contenders, repeats, device)
    amount = case.batch * case.new_tokens
    medians = report.add_times("decoding", case.name, seconds, OURS, amount, "tokens/s")
    compared = measure.ratio(seconds, OURS_STATIC, PEER)
    contender = "ours, static, against InternVL"
    report.add("decoding", case.name, contender, compared["median"], "x", ratio=compared)
    return medians


def _report_bandwidth(
    case: DecodingCase, model: Any, seconds: float, report: Report, repeats: int, device: str
) -> None:
    """Bytes of weights that a token needs, over the time it takes, beside what a copy reaches.

    That time is taken in two ways: of a whole call, prompt included, over its tokens; and of the
    further tokens of a long call over a short one.

    Args:
        case: of batch 1.
        model: ours.
        seconds: of a whole call with a static cache.
    """
    layers = model.get_decoder().layers.parameters()
    head = model.get_output_embeddings().parameters()
    size = 0
    for tensor in (*layers, *head):
        size += tensor.numel() * tensor.element_size()
    seconds_of_step = _seconds_of_step(case, repeats, device)
    limit = measure.measured_limits(device)["bytes_per_second"]
    figures = (
        ("weights read", seconds / case.new_tokens),
        ("weights read, prompt left out", seconds_of_step),
    )
    for name, seconds_of_token in figures:
        reached = size / seconds_of_token
        report.add(
            "decoding",
            case.name,
            f"ours, static, {name}",
            reached / 1e9,
            "GB/s",
            limit=limit / 1e9,
            share=reached / limit,
        )


def _seconds_of_step(case: DecodingCase, repeats: int, device: str) -> float:
    """Seconds of a further token, from calls of two lengths."""
    fewer = case.new_tokens // 4
    long_call = case.contenders[OURS_STATIC]
    short_call = partial(long_call, max_new_tokens=fewer, min_new_tokens=fewer)
    times = measure.alternate({"long": long_call, "short": short_call}, repeats, device)
    differences = [long - short for long, short in zip(times["long"], times["short"])]
    return statistics.median(differences) / (case.new_tokens - fewer)


# -- the nano checkpoint ---------------------------------------------------------------------------


def traces(preset: Preset, report: Report, repeats: int) -> None:
    """Ways to decode the nano checkpoint's own reasoning, through `chat()`."""
    folder = measure.ROOT / "nano"
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    model = model.to(preset.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    rng = np.random.default_rng(3)
    num_drawings = max(1, preset.pictures // 4)
    drawings = [draw.draw_calculation(rng) for _ in range(num_drawings)]
    images = [model.encode_images(drawing.image) for drawing in drawings]
    long = min(32 * preset.new_tokens, LONGEST_TRACE)
    cases = (
        ("reasoning about pictures", images, {"max_new_tokens": 160}),
        (
            f"a trace of {long} tokens that repeats itself",
            images[:1],
            {"max_new_tokens": long, "min_new_tokens": long},
        ),
    )
    for name, chosen, length in cases:
        report.progress(f"traces, {name}")
        contenders = {}
        for way, options in WAYS_TO_DECODE.items():
            settings = {"do_sample": False, **length, **options}
            contenders[way] = partial(_ask_about_each, model, tokenizer, chosen, settings)
        _report_traces(name, contenders, tokenizer, report, repeats)


def _ask_about_each(
    model: Any, tokenizer: Any, images: Sequence[Any], settings: Mapping[str, Any]
) -> list[str]:
    """The model's answers about each encoded image."""
    question = draw.CALCULATION_QUESTION
    return [model.chat(tokenizer, features, question, settings) for features in images]


def _report_traces(
    case: str,
    contenders: Mapping[str, Callable[[], list[str]]],
    tokenizer: Any,
    report: Report,
    repeats: int,
) -> None:
    """Tokens per second of each way to decode, and the share of answers that stay the same."""
    answers = {way: ask() for way, ask in contenders.items()}
    plain = answers["plain"]
    tokens = sum(len(tokenizer(answer)["input_ids"]) for answer in plain)
    seconds = measure.alternate(contenders, repeats)
    for way in contenders:
        speed = round(tokens / statistics.median(seconds[way]), 1)
        same = sum(a == b for a, b in zip(answers[way], plain)) / len(plain)
        more: dict[str, Any] = {"same_answers": same}
        if way != "plain":
            more["ratio"] = measure.ratio(seconds, way, "plain")
        report.add("traces", case, way, speed, "tokens/s", **more)
