"""A conversation: from pixels to the first token, and a second turn about the same pictures."""

from __future__ import annotations

from functools import partial

import torch
from transformers import AutoTokenizer

from benchmarks import measure, models
from benchmarks.inputs import random_prompt, random_tiles
from benchmarks.presets import Preset
from benchmarks.report import Report


def first_token(preset: Preset, report: Report, repeats: int) -> None:
    """From tiles and ids to the first token: time, and the memory it takes."""
    device = preset.device
    config, ours, name = models.build_whole(preset.whole, device)
    theirs = models.build_internvl(config, ours.state_dict(), config.image_token_id, device=device)
    for tiles in preset.first_token_tiles:
        ids = random_prompt(config, tiles, device=device)
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "pixel_values": random_tiles(config, tiles, device, ours.dtype),
            "max_new_tokens": 1,
            "do_sample": False,
            "pad_token_id": 0,
        }
        contenders = {
            "ours": partial(ours.generate, **inputs),
            "transformers InternVL": partial(theirs.generate, **inputs),
        }
        case = f"{name}, {tiles} tiles"
        report.progress(f"first token, {case}")
        seconds = measure.alternate(contenders, repeats, device)
        report.add_times("first token", case, seconds, "ours")
        report.add_memory("first token", case, contenders, device)


def turns(preset: Preset, report: Report, repeats: int) -> None:
    """A second turn about the same pictures: from pixels again, and from features kept of turn one.

    Raises:
        AssertionError: kept features give another answer.
    """
    config, ours, name = models.build_whole(preset.whole, preset.device)
    tokenizer = AutoTokenizer.from_pretrained(measure.ROOT, trust_remote_code=True)
    tiles = preset.first_token_tiles[-1]
    pixels = random_tiles(config, tiles, preset.device, ours.dtype)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    features = ours.encode_images(pixels)
    _, history = ours.chat(tokenizer, pixels, "What is this?", options, return_history=True)
    ask = partial(
        ours.chat, tokenizer, question="And now?", generation_config=options, history=history
    )
    contenders = {
        "ours, kept features": partial(ask, features),
        "ours, pixels again": partial(ask, pixels),
    }
    # The same kernels run on the same shapes in both, so the answers are the same to the letter
    answers = [contender() for contender in contenders.values()]
    if answers[0] != answers[1]:
        raise AssertionError(f"Kept features give another answer: {answers}")
    case = f"{name}, {tiles} tiles, 8 tokens of turn two"
    report.progress(f"turns, {case}")
    seconds = measure.alternate(contenders, repeats, preset.device)
    report.add_times("turns", case, seconds, "ours, kept features")
