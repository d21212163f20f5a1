"""Speed and memory against peers in the same process, on the same weights, alternating.

    python -m benchmarks                          # everything at CPU sizes, minutes
    python -m benchmarks decoding vision          # only these
    python -m benchmarks --preset gpu             # the 38B shapes in bf16 with random weights made on the GPU

Peers: transformers' own InternVL, with our tensors under its names, and the model card's preprocessing functions.
Prints a table and, as the last line, JSON; keeps the JSON in benchmarks/results/.
"""

import argparse
import dataclasses
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    InternVLForConditionalGeneration,
)

from benchmarks import measure, models
from remote_code import modeling_skywork_chat

TEXT_TOKENS = 32  # of a prompt, besides those of its images


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of one kind of machine.

    Attributes:
        vision: (shape, layers or None for all, dtype).
        language: (shape, layers, dtype) for decoding; tokens are compared, so fp32 where there is time for it.
        whole: (vision shape, layers, language shape, layers, dtype) for the first token, turns and growth.
        loading: as `whole`; it is written to the disk twice.
    """

    device: str
    pictures: int
    vision: tuple
    vision_tiles: int
    language: tuple
    new_tokens: int
    batches: tuple
    whole: tuple
    loading: tuple
    first_token_tiles: tuple
    growth_tiles: tuple
    growth_context: tuple


PRESETS = {
    "cpu": Preset(
        device="cpu",
        pictures=32,
        vision=(("300m", 2, "float32"), ("300m", 6, "bfloat16"), ("6b", 1, "bfloat16")),
        vision_tiles=13,
        language=(("nano", None, "float32"), ("0.5b", 6, "float32")),
        new_tokens=48,
        batches=(1, 8, 32),
        whole=("300m", 2, "0.5b", 2, "bfloat16"),
        loading=("300m", 2, "0.5b", 2, "bfloat16"),
        first_token_tiles=(1, 7, 13),
        growth_tiles=(4, 8, 16),
        growth_context=(512, 1024, 2048),
    ),
    "gpu": Preset(
        device="cuda",
        pictures=32,
        vision=(("300m", None, "bfloat16"), ("6b", None, "bfloat16")),
        vision_tiles=13,
        language=(("32b", None, "bfloat16"),),
        new_tokens=128,
        batches=(1, 8, 32),
        whole=("6b", None, "32b", None, "bfloat16"),
        loading=("6b", None, "32b", 2, "bfloat16"),
        first_token_tiles=(1, 7, 13),
        growth_tiles=(16, 32, 64),
        growth_context=(1024, 2048, 4096, 8192, 16384, 32768),
    ),
    "smoke": Preset(  # seconds: that everything runs
        device="cpu",
        pictures=2,
        vision=(("300m", 1, "float32"),),
        vision_tiles=1,
        language=(("nano", 1, "float32"),),
        new_tokens=4,
        batches=(1, 2),
        whole=("300m", 1, "small", 1, "float32"),
        loading=("300m", 1, "small", 1, "float32"),
        first_token_tiles=(1, 2),
        growth_tiles=(1, 2),
        growth_context=(64, 128),
    ),
}


def dtype_of(name):
    return getattr(torch, name)


def prompt_ids(config, tiles, rows=1, length=TEXT_TOKENS, device="cpu"):
    """Random ids with the image tokens of `tiles` tiles in each row."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        100, 1000, (rows, length + tiles * config.num_image_token), generator=generator
    )
    ids[:, length // 2 : length // 2 + tiles * config.num_image_token] = config.image_token_id
    return ids.to(device)


def tiles_of(config, count, device, dtype):
    generator = torch.Generator().manual_seed(1)
    side = config.vision_config.image_size
    return torch.randn(count, 3, side, side, generator=generator).to(device, dtype)


# -- preprocessing ---------------------------------------------------------------------------------


def write_pictures(folder, count):
    """JPEG files of sizes as cameras, scanners and screens give them."""
    rng = np.random.default_rng(0)
    sizes = [(1600, 1200), (800, 600), (1024, 768), (640, 960), (1920, 1080), (500, 500)]
    paths = []
    for index in range(count):
        width, height = sizes[index % len(sizes)]
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
        paths.append(folder / f"{index}.jpg")
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            paths[-1], quality=90
        )
    return [str(path) for path in paths]


def preprocessing(preset, report, repeats):
    """Image files to pixel values: one, and many at once."""
    from tests.checkpoints import model_card_functions  # the model card's code, as it was published

    load_image = model_card_functions()["load_image"]
    processor = AutoImageProcessor.from_pretrained(measure.ROOT, trust_remote_code=True)

    def model_card(paths, dtype):
        return torch.cat([load_image(path).to(dtype) for path in paths])

    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), preset.pictures)
        for count in (1, len(paths)):
            chosen = paths[:count]
            card = model_card(chosen, torch.float32)
            case = f"{count} image{'s' if count > 1 else ''}, {len(card)} tiles"
            for dtype in (
                torch.float32,
                torch.bfloat16,
            ):  # bfloat16 is what the model card's snippet goes on with
                if not torch.equal(processor(chosen, dtype=dtype)["pixel_values"], card.to(dtype)):
                    raise AssertionError("The pixel values differ from the model card's.")
                name_of_dtype = str(dtype).removeprefix("torch.")
                report.progress(f"preprocessing, {case}, {name_of_dtype}")
                for name, options in (("ours", {}), ("ours, fast_resize", {"fast_resize": True})):
                    contenders = {
                        name: partial(processor, chosen, dtype=dtype, **options),
                        "model card": partial(model_card, chosen, dtype),
                    }
                    seconds = measure.alternate(contenders, repeats)
                    report.add_times(
                        "preprocessing",
                        f"{case}, {name_of_dtype}",
                        seconds,
                        name,
                        count,
                        "images/s",
                    )
                    report.add_memory("preprocessing", f"{case}, {name_of_dtype}", contenders)
            fast = processor(chosen, fast_resize=True)["pixel_values"]
            levels = (
                (card - fast).abs() * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1) * 255
            ).max()
            report.add(
                "preprocessing",
                case,
                "fast_resize, largest difference",
                round(levels.item(), 2),
                "of 255",
            )


# -- vision tower ----------------------------------------------------------------------------------


@torch.inference_mode()
def vision(preset, report, repeats):
    """Vision tower and projector, per tile, against InternVL and against materialised attention; extra memory."""
    device, count = preset.device, preset.vision_tiles
    for shape, layers, dtype_name in preset.vision:
        dtype = dtype_of(dtype_name)
        config = models.build_config(shape, "nano", vision_layers=layers)
        ours = models.build_ours(config, device, dtype)
        theirs = models.build_internvl(
            config, ours.state_dict(), config.image_token_id, device=device
        )
        eager = models.with_weights_of(ours, "eager")
        pixels = tiles_of(config, count, device, dtype)
        case = f"InternViT-{shape.upper()}, {config.vision_config.num_hidden_layers} layers, {dtype_name}, {count} tiles"
        report.progress(f"vision, {case}")
        contenders = {
            "ours": partial(ours.extract_feature, pixels),
            "transformers InternVL": partial(theirs.model.get_image_features, pixels),
            "materialised attention, all tiles at once": partial(at_once, eager, pixels),
        }
        seconds = measure.alternate(contenders, repeats, device)
        medians = report.add_times("vision", case, seconds, "ours", count, "tiles/s")
        operations = vision_operations(config) * count
        limits = measure.measured_limits(device, dtype)
        reached = operations / medians["ours"]
        report.add(
            "vision", case, "ours, operations", reached / 1e12, "TFLOP/s",
            limit=limits["operations_per_second"] / 1e12, share=reached / limits["operations_per_second"],
        )  # fmt: skip
        report.add_memory("vision", case, contenders, device)


def at_once(model, pixels):
    """All tiles in one pass, with materialised attention weights, as the published code computes them."""
    patches = model.vision_model(pixels).last_hidden_state[:, 1:]
    side = int(patches.shape[1] ** 0.5)
    return model.mlp1(model.pixel_shuffle(patches.unflatten(1, (side, side))).flatten(1, 2))


def vision_operations(config):
    """Multiply-adds, twice, of one tile through vision tower and projector."""
    vision, positions = (
        config.vision_config,
        (config.vision_config.image_size // config.vision_config.patch_size) ** 2,
    )
    width, wide = vision.hidden_size, vision.intermediate_size
    layer = 4 * width**2 + 2 * width * wide + 2 * (positions + 1) * width
    projector = (4 * width + config.llm_config.hidden_size) * config.llm_config.hidden_size
    embedding = 3 * vision.patch_size**2 * width
    return 2 * (
        vision.num_hidden_layers * layer * (positions + 1)
        + embedding * positions
        + projector * config.num_image_token
    )


# -- language model --------------------------------------------------------------------------------


def decoding(preset, report, repeats):
    """Tokens per second after a short prompt, at several batch sizes; equal tokens where they can be compared."""
    device, new = preset.device, preset.new_tokens
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
    for shape, layers, dtype_name in preset.language:
        config = models.build_config("300m", shape, vision_layers=1, language_layers=layers)
        ours = models.build_ours(config, device, dtype_of(dtype_name))
        theirs = models.build_internvl(
            config, ours.state_dict(), config.image_token_id, device=device
        )
        for batch in preset.batches:
            ids = prompt_ids(config, 0, batch, device=device)
            mask = torch.ones_like(ids)
            inputs = {"input_ids": ids, "attention_mask": mask, **options}
            contenders = {
                "ours, static": partial(ours.generate, **inputs, cache_implementation="static"),
                "ours": partial(ours.generate, **inputs),
                "transformers InternVL": partial(theirs.generate, **inputs),
            }
            layer_count = config.llm_config.num_hidden_layers
            case = f"Qwen2-{shape}, {layer_count} layers, {dtype_name}, batch {batch}, {new} tokens"
            report.progress(f"decoding, {case}")
            reference = contenders["transformers InternVL"]()[:, ids.shape[1] :]
            for name in ("ours", "ours, static"):
                same = (contenders[name]() == reference).float().mean().item()
                report.add("decoding, same tokens", case, name, same, "share")
            seconds = measure.alternate(contenders, repeats, device)
            medians = report.add_times("decoding", case, seconds, "ours", batch * new, "tokens/s")
            versus = {name: seconds[name] for name in ("ours, static", "transformers InternVL")}
            compared = measure.ratio(versus, "ours, static", "transformers InternVL")
            report.add(
                "decoding",
                case,
                "ours, static, against InternVL",
                compared["median"],
                "x",
                ratio=compared,
            )
            report.add_memory("decoding", case, contenders, device)
            if batch == 1:
                short = partial(
                    contenders["ours, static"], max_new_tokens=new // 4, min_new_tokens=new // 4
                )
                times = measure.alternate(
                    {"long": contenders["ours, static"], "short": short}, repeats, device
                )
                step = statistics.median(a - b for a, b in zip(times["long"], times["short"])) / (
                    new - new // 4
                )
                report_bandwidth(report, case, ours, medians["ours, static"] / new, step, device)


def report_bandwidth(report, case, model, per_token, per_step, device):
    """Bytes of weights that a token needs, over the time it takes, beside what a copy reaches.

    Args:
        per_token: seconds of a whole call, prompt included, over its tokens.
        per_step: seconds of a token alone.
    """
    read = [*model.get_decoder().layers.parameters(), *model.get_output_embeddings().parameters()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in read)
    limit = measure.measured_limits(device)["bytes_per_second"]
    for name, seconds in (("weights read", per_token), ("weights read, prompt left out", per_step)):
        reached = size / seconds
        report.add(
            "decoding",
            case,
            f"ours, static, {name}",
            reached / 1e9,
            "GB/s",
            limit=limit / 1e9,
            share=reached / limit,
        )


def traces(preset, report, repeats):
    """The nano checkpoint's own reasoning, through `chat()`: ways to decode that change the time and not the tokens."""
    from tasks import draw

    model = AutoModel.from_pretrained(
        measure.ROOT / "nano", dtype=torch.float32, trust_remote_code=True
    )
    model = model.to(preset.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(measure.ROOT / "nano", trust_remote_code=True)
    rng = np.random.default_rng(3)
    drawings = [draw.draw_calculation(rng) for _ in range(max(1, preset.pictures // 4))]
    images = [model.encode_images(drawing.image) for drawing in drawings]
    long = min(32 * preset.new_tokens, 1536)  # within nano's context of 4,096 tokens
    cases = {
        "reasoning about pictures": (images, {"max_new_tokens": 160}),
        f"a trace of {long} tokens that repeats itself": (
            images[:1],
            {"max_new_tokens": long, "min_new_tokens": long},
        ),
    }
    options = {
        "plain": {},
        "static cache, compiled": {"cache_implementation": "static"},
        "prompt lookup, 8 tokens": {"prompt_lookup_num_tokens": 8},
    }
    for case, (chosen, length) in cases.items():

        def ask(how, chosen=chosen, length=length):
            config = {"do_sample": False, **length, **options[how]}
            return [
                model.chat(tokenizer, features, draw.CALCULATION_QUESTION, config)
                for features in chosen
            ]

        report.progress(f"traces, {case}")
        answers = {how: ask(how) for how in options}
        tokens = sum(len(tokenizer(answer)["input_ids"]) for answer in answers["plain"])
        seconds = measure.alternate({how: partial(ask, how) for how in options}, repeats)
        medians = {how: statistics.median(values) for how, values in seconds.items()}
        for how in options:
            same = sum(a == b for a, b in zip(answers[how], answers["plain"])) / len(chosen)
            compared = {} if how == "plain" else {"ratio": measure.ratio(seconds, how, "plain")}
            report.add(
                "traces",
                case,
                how,
                round(tokens / medians[how], 1),
                "tokens/s",
                same_answers=same,
                **compared,
            )


def build_whole(preset, shapes=None):
    vision_shape, vision_layers, language, language_layers, dtype_name = shapes or preset.whole
    config = models.build_config(vision_shape, language, vision_layers, language_layers)
    ours = models.build_ours(config, preset.device, dtype_of(dtype_name))
    name = f"InternViT-{vision_shape.upper()} {config.vision_config.num_hidden_layers} layers + Qwen2-{language} "
    return config, ours, name + f"{config.llm_config.num_hidden_layers} layers, {dtype_name}"


def first_token(preset, report, repeats):
    """From tiles and ids to the first token, and the memory it takes."""
    config, ours, name = build_whole(preset)
    device = preset.device
    theirs = models.build_internvl(config, ours.state_dict(), config.image_token_id, device=device)
    for tiles in preset.first_token_tiles:
        ids = prompt_ids(config, tiles, device=device)
        pixels = tiles_of(config, tiles, device, ours.dtype)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
        options = {"max_new_tokens": 1, "do_sample": False, "pad_token_id": 0}
        contenders = {
            "ours": partial(ours.generate, **inputs, **options),
            "transformers InternVL": partial(theirs.generate, **inputs, **options),
        }
        case = f"{name}, {tiles} tiles"
        report.progress(f"first token, {case}")
        report.add_times(
            "first token", case, measure.alternate(contenders, repeats, device), "ours"
        )
        report.add_memory("first token", case, contenders, device)


def turns(preset, report, repeats):
    """A second turn about the same pictures: from pixels again, and from kept features."""
    config, ours, name = build_whole(preset)
    tokenizer = AutoTokenizer.from_pretrained(measure.ROOT, trust_remote_code=True)
    tiles = preset.first_token_tiles[-1]
    pixels = tiles_of(config, tiles, preset.device, ours.dtype)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    features = ours.encode_images(pixels)
    history = ours.chat(tokenizer, pixels, "What is this?", options, return_history=True)[1]
    answers = [
        ours.chat(tokenizer, images, "And now?", options, history=history)
        for images in (pixels, features)
    ]
    if answers[0] != answers[1]:
        raise AssertionError(f"Kept features give another answer: {answers}")
    case = f"{name}, {tiles} tiles, 8 tokens of turn two"
    report.progress(f"turns, {case}")
    contenders = {
        "ours, kept features": lambda: ours.chat(
            tokenizer, features, "And now?", options, history=history
        ),
        "ours, pixels again": lambda: ours.chat(
            tokenizer, pixels, "And now?", options, history=history
        ),
    }
    seconds = measure.alternate(contenders, repeats, preset.device)
    report.add_times("turns", case, seconds, "ours, kept features")


def loading(preset, report, repeats):
    """`from_pretrained` on the same bytes (in the page cache), and the memory it takes."""
    config, ours, name = build_whole(preset, preset.loading)
    theirs = models.build_internvl(
        config, ours.state_dict(), config.image_token_id, device=preset.device
    )
    with tempfile.TemporaryDirectory() as folder:
        paths = {"ours": f"{folder}/ours", "transformers InternVL": f"{folder}/theirs"}
        ours.save_pretrained(paths["ours"])
        theirs.save_pretrained(paths["transformers InternVL"])
        dtype, device = ours.dtype, preset.device
        size = sum(path.stat().st_size for path in Path(paths["ours"]).glob("*.safetensors"))
        del ours, theirs
        classes = {
            "ours": modeling_skywork_chat.SkyworkChatModel,
            "transformers InternVL": InternVLForConditionalGeneration,
        }

        def load(contender):
            model = classes[contender].from_pretrained(
                paths[contender], dtype=dtype, device_map=device
            )
            for parameter in model.parameters():  # a mapped file is read when it is touched
                parameter.flatten()[:: 4096 // parameter.element_size()].sum()
            return model

        contenders = {contender: partial(load, contender) for contender in paths}
        case = f"{name}, {size / 1e9:.2f} GB"
        report.progress(f"loading, {case}")
        report.add_times("loading", case, measure.alternate(contenders, repeats, device), "ours")
        for contender, function in contenders.items():
            peak = measure.peak_memory(function, device)
            report.add(
                "loading, peak memory", case, contender, round(peak / size, 3), "x checkpoint"
            )


@torch.inference_mode()
def growth(preset, report, repeats):
    """How time and extra memory grow with tiles, images and context: exponents of power laws through the figures."""
    config, ours, _ = build_whole(preset)
    device = preset.device

    def series(what, unit, sizes, function_of):
        times, peaks = [], []
        for size in sizes:
            report.progress(f"growth with {what}, {size}")
            function = function_of(size)
            seconds = measure.alternate({"ours": function}, max(3, repeats // 2), device)["ours"]
            times.append(statistics.median(seconds))
            peaks.append(measure.peak_memory(function, device) / 2**20)
            report.add(
                f"growth with {what}", f"{size} {unit}", "ours, time", round(times[-1], 4), "s"
            )
            report.add(
                f"growth with {what}",
                f"{size} {unit}",
                "ours, extra memory",
                round(peaks[-1], 1),
                "MiB",
            )
        for figure, values in (("time", times), ("extra memory", peaks)):
            case = f"{sizes[0]} to {sizes[-1]} {unit}"
            report.add(
                f"growth with {what}",
                case,
                f"exponent of {figure}",
                round(measure.growth(sizes, values), 2),
                "",
            )

    def encode(tiles):
        pixels = tiles_of(config, tiles, device, ours.dtype)
        return lambda: ours.extract_feature(pixels)

    def prefill(length):
        ids = prompt_ids(config, 0, length=length, device=device)
        return lambda: ours.generate(
            input_ids=ids, max_new_tokens=1, do_sample=False, pad_token_id=0
        )

    def images(count):
        ids, pixels = (
            prompt_ids(config, count, device=device),
            tiles_of(config, count, device, ours.dtype),
        )
        return lambda: ours.generate(pixels, ids, max_new_tokens=1, do_sample=False, pad_token_id=0)

    series("tiles (vision tower)", "tiles", preset.growth_tiles, encode)
    series("images of one tile (first token)", "images", preset.first_token_tiles, images)
    series("context (prefill)", "tokens", preset.growth_context, prefill)


BENCHMARKS = {
    "preprocessing": preprocessing,
    "vision": vision,
    "first-token": first_token,
    "decoding": decoding,
    "traces": traces,
    "turns": turns,
    "loading": loading,
    "growth": growth,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="benchmark",
        help=f"of {', '.join(BENCHMARKS)}; default: all",
    )
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="rounds; the medians are of these")
    parser.add_argument(
        "--output",
        help="file of the record; default: benchmarks/results/<preset>.json for a full run",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.benchmarks) - set(BENCHMARKS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(BENCHMARKS)}")
    preset = PRESETS[arguments.preset]
    if preset.device == "cuda" and not torch.cuda.is_available():
        parser.error("--preset gpu needs a CUDA GPU with 90 GB; there is none here")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    chosen = arguments.benchmarks or list(BENCHMARKS)
    full = not arguments.benchmarks and arguments.preset != "smoke"
    default = Path(__file__).parent / "results" / f"{arguments.preset}.json" if full else None
    settings = {"preset": arguments.preset, "repeats": arguments.repeats}
    report = measure.Report(preset.device, settings, arguments.output or default)
    for name in chosen:
        BENCHMARKS[name](preset, report, arguments.repeats)
        measure.release(preset.device)
    report.finish()


if __name__ == "__main__":
    main()
