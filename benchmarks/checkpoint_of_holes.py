"""The published model's shapes as a checkpoint of holes: whether and how large it loads on a GPU.

    python -m benchmarks.checkpoint_of_holes             # bf16, device_map="split"
    python -m benchmarks.checkpoint_of_holes --gpu 24    # the plan for a card of 24 GB

The 76.8 GB of weights are holes in sparse files, which read as zeros and take no room on the disk.
So its answers mean nothing, and neither does the time that a disk would take; what is measured is
that `from_pretrained` and `chat` run, and the memory that they take. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from benchmarks.measure import ROOT
from remote_code import configuration_skywork_chat, modeling_skywork_chat

SHARD_BYTES = 5_000_000_000
PICTURE = (1792, 1344)  # pixels: 12 tiles and a thumbnail
NEW_TOKENS = 48
BYTES_OF_DTYPE = 2  # all are bfloat16
# What memory.serving plans for one card of 24 GB
SMALL_CARD = {"load_in_4bit": True, "offload_vision": True}
QUANTIZED_CACHE = {
    "cache_implementation": "quantized",
    "cache_config": {"backend": "quanto", "nbits": 4},
}


def write_holes(source: Path, folder: Path) -> int:
    """Write a checkpoint of the shapes of a config, whose weights are all zero.

    Args:
        source: a repository with config, code, tokenizer and preprocessor, but for the weights.
        folder: gets the checkpoint.

    Returns:
        Bytes of the weights.
    """
    for ending in ("py", "json", "jinja"):
        for path in source.glob(f"*.{ending}"):
            shutil.copy(path, folder)
    shutil.copytree(source / "preprocessor", folder / "preprocessor")
    config = configuration_skywork_chat.SkyworkChatConfig.from_pretrained(source)
    with init_empty_weights():
        model = modeling_skywork_chat.SkyworkChatModel(config)
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
    shards = _shards(shapes)
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, shard)
        weight_map.update({name: file for name, _ in shard})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(map(_bytes_of, shapes))


Shape = tuple[str, tuple[int, ...]]  # name and shape of a tensor


def _bytes_of(shape: Shape) -> int:
    return BYTES_OF_DTYPE * torch.Size(shape[1]).numel()


def _shards(shapes: Iterable[Shape]) -> list[list[Shape]]:
    """The tensors in groups of at most SHARD_BYTES."""
    shards: list[list[Shape]] = [[]]
    size = 0
    for shape in shapes:
        size += _bytes_of(shape)
        if size > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = _bytes_of(shape)
        shards[-1].append(shape)
    return shards


def _write_shard(path: Path, shard: Iterable[Shape]) -> None:
    """A safetensors file: the length of a header, the header, and a hole as long as the weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for shape in shard:
        start, end = end, end + _bytes_of(shape)
        header[shape[0]] = {"dtype": "BF16", "shape": shape[1], "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(written)) + written)
        file.truncate(8 + len(written) + end)


def measure(folder: Path, keywords: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Load a checkpoint and ask it twice about a picture of 13 tiles; GPU memory in GB.

    Args:
        keywords: of `from_pretrained`.
        settings: of the generation.
    """
    start = time.perf_counter()
    model = AutoModel.from_pretrained(
        folder,
        torch_dtype=torch.bfloat16,
        device_map="split",
        trust_remote_code=True,
        **keywords,
    ).eval()
    record = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "load_seconds": round(time.perf_counter() - start, 1),
        "loaded_gb": torch.cuda.memory_allocated() / 1e9,
    }
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    generation = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, **settings}
    for name in ("first", "second"):
        start = time.perf_counter()
        model.chat(tokenizer, Image.new("RGB", PICTURE), "What is this?", generation)
        record[f"{name}_answer_seconds"] = round(time.perf_counter() - start, 2)
    record["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    return record


def main() -> None:
    """Write the holes, load them and ask, as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpu", type=float, help="GB of a smaller card, that are not exceeded")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("this needs a CUDA GPU; there is none here")
    keywords: dict[str, Any] = {}
    settings: dict[str, Any] = {"do_sample": False}
    if arguments.gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(arguments.gpu * 1e9 / total)
        keywords = SMALL_CARD
        settings |= QUANTIZED_CACHE
    with tempfile.TemporaryDirectory() as folder:
        write_holes(ROOT, Path(folder))
        print(json.dumps(measure(Path(folder), keywords, settings)))


if __name__ == "__main__":
    main()
