"""Puts a vision encoder, a language model and a projector together into a repository of this code.

    python -m training.assemble out --vision InternViT-6B-448px-V2_5 \\
        --language-model Qwen2.5-32B-Instruct
    python -m training.assemble out2 --vision out --mlp1 out \\
        --language-model DeepSeek-R1-Distill-Qwen-32B

The second command is the re-assembly of the report (section 2.1): the same vision encoder and
projector on another language model of the same base. All sources are directories, as `hf download`
writes them:

- `--vision`: an InternViT checkpoint, or any InternVL- or Skywork-style checkpoint, of which the
  vision encoder is taken together with the settings of tiling and pixel shuffle;
- `--language-model`: a Qwen2ForCausalLM checkpoint with its tokenizer, or a repository of this
  code, of which it is taken;
- `--mlp1`: a checkpoint with a projector. Without it a fresh one is drawn from the seed.

Tensors pass one at a time from shard to shard, so memory stays at the largest of them. Everything
is written to `out.partial`, which becomes `out` at the very end; run again after an interruption,
it goes on after the last whole shard.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import hashlib
import json
import re
import shutil
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import durable
from remote_code import checkpoint_files
from training.assembly_plan import CHAT_TEMPLATES, AssemblyPlan, read_json

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}  # as safetensors calls them
TILING_SETTINGS = (
    "dynamic_image_size",
    "min_dynamic_patch",
    "max_dynamic_patch",
    "use_thumbnail",
)
# Keys of tokenizer_config.json that describe the added tokens of tokenizer.json once more, which
# would hide those that were appended.
ADDED_TOKENS_KEYS = ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens")
CODE_FILES = checkpoint_files.CODE_FILES
# What else a repository needs beside its weights.
SMALL_FILES = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
INDEX_FILE = "model.safetensors.index.json"
DISK_FULL = "the disk is full; free some space and run the same command again, whole files are kept"


def assemble(
    output: str | Path,
    vision: str | Path,
    language_model: str | Path,
    mlp1: str | Path | None = None,
    dtype: str = "bfloat16",
    seed: int = 0,
    max_shard_bytes: int = 5 * 10**9,
    settings: dict[str, Any] | None = None,
) -> list[str]:
    """Write a complete repository.

    Args:
        output: a directory that does not exist yet.
        vision, language_model, mlp1: directories, see the module's docstring.
        dtype: of all tensors written: "bfloat16", "float16" or "float32".
        seed: of a new projector.
        max_shard_bytes: of a file of weights; a larger tensor gets a file of its own.
        settings: entries of config.json in place of those that the sources bring, such as
            {"max_dynamic_patch": 6}.

    Returns:
        What was decided, a list of sentences.

    Raises:
        FileExistsError: `output` exists and is not this assembly. One that is complete stays as it
            is, and the notes say so.
        FileNotFoundError: a source is no checkpoint, or an incomplete one.
        ValueError: sources that do not fit each other; see `AssemblyPlan`.
        OSError: the disk is full; whole files stay in `output`.partial, and the same call goes on
            from there.
    """
    output = Path(output)
    plan = AssemblyPlan(vision, language_model, mlp1, dtype, seed, settings)
    shards = plan_shards(plan, max_shard_bytes)
    if output.exists():
        if any(not is_whole(shard, plan, output) for shard in shards):
            raise FileExistsError(f"{output} exists: name a new directory, or remove it.")
        if any(_is_missing(output / name) for name in (*CODE_FILES, *SMALL_FILES)):
            write_small_files(shards, plan, output)
        return [*plan.notes, f"{output} was complete already."]
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    write_shards(shards, plan, partial, description=output.name)
    with _explained_full_disk(partial):
        write_small_files(shards, plan, partial)
        _remove_other_files(shards, partial)
        durable.replace_directory(partial, output)
    return plan.notes


def _is_missing(path: Path) -> bool:
    """Whether a file is not there, or empty, as after a power cut."""
    return not path.is_file() or not path.stat().st_size


def _remove_other_files(shards: list[Shard], partial: Path) -> None:
    """Remove what an assembly of other sources or settings left in the same directory."""
    needed = {shard.file for shard in shards}
    for path in partial.glob("*.safetensors"):
        if path.name not in needed:
            path.unlink()
    for path in partial.glob(f"*{durable.TEMPORARY}"):
        path.unlink()
    if len(shards) == 1:
        (partial / INDEX_FILE).unlink(missing_ok=True)


def check_disk(folder: Path, needed: int) -> None:
    """Check that so many bytes can be written below the folder.

    Raises:
        OSError: they cannot (ENOSPC).
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            str(folder),
        )


@contextlib.contextmanager
def _explained_full_disk(partial: Path) -> Iterator[None]:
    """Say what to do where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(errno.ENOSPC, DISK_FULL, str(partial)) from error


# -- weights ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file of weights.

    Attributes:
        file: its name.
        tensors: the names of its tensors, in order.
    """

    file: str
    tensors: list[str]


def plan_shards(plan: AssemblyPlan, max_shard_bytes: int) -> list[Shard]:
    """Share the tensors out over files of at most so many bytes; a larger one gets its own."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in plan.shapes:
        needed = plan.bytes_of(name)
        if groups[-1] and size + needed > max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += needed
    if len(groups) == 1:
        return [Shard("model.safetensors", groups[0])]
    shards = []
    for number, names in enumerate(groups, start=1):
        shards.append(Shard(f"model-{number:05d}-of-{len(groups):05d}.safetensors", names))
    return shards


def total_bytes(plan: AssemblyPlan, names: Iterable[str]) -> int:
    """Bytes of tensors as they are written."""
    return sum(plan.bytes_of(name) for name in names)


def write_shards(shards: list[Shard], plan: AssemblyPlan, partial: Path, description: str) -> None:
    """Write those shards that are not there yet, with a progress bar.

    Each says in its header which assembly it is of, so that one of other sources is written anew.

    Raises:
        OSError: the disk is full; whole files are kept.
    """
    missing = [shard for shard in shards if not is_whole(shard, plan, partial)]
    bytes_missing = sum(total_bytes(plan, shard.tensors) for shard in missing)
    total = total_bytes(plan, plan.shapes)
    check_disk(partial, bytes_missing)
    with tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1000, desc=description
    ) as progress:
        progress.update(total - bytes_missing)
        for shard in missing:
            with _explained_full_disk(partial):
                write_shard(partial / shard.file, shard.tensors, plan, progress)


def is_whole(shard: Shard, plan: AssemblyPlan, folder: Path) -> bool:
    """Whether a file of weights is there, is of this assembly, and has all of its bytes."""
    path = folder / shard.file
    if not path.is_file():
        return False
    start = _start_of_file(shard.tensors, plan)
    if path.stat().st_size != len(start) + total_bytes(plan, shard.tensors):
        return False
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def write_shard(path: Path, names: list[str], plan: AssemblyPlan, progress: Any) -> None:
    """Write a safetensors file tensor by tensor.

    The format is an 8-byte length, a JSON header of that many bytes, then the tensors in order.

    Args:
        path: of the file, which appears when it is whole.
        names: of its tensors.
        progress: a progress bar over bytes.
    """
    with durable.writing(path) as file:
        file.write(_start_of_file(names, plan))
        for name in names:
            # A tensor without dimensions has no bytes to view: flatten before view.
            file.write(plan.tensor(name).flatten().view(torch.uint8).numpy().data)
            progress.update(plan.bytes_of(name))


def _start_of_file(names: list[str], plan: AssemblyPlan) -> bytes:
    """Everything of a safetensors file that stands before its tensors."""
    header = safetensors_header(names, plan)
    return struct.pack("<Q", len(header)) + header


def safetensors_header(names: list[str], plan: AssemblyPlan) -> bytes:
    """The JSON header of a safetensors file, padded to a multiple of 8 bytes."""
    assembly = hashlib.sha256(plan.fingerprint().encode("utf-8")).hexdigest()
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "assembly": assembly}}
    dtype = DTYPES[plan.config["torch_dtype"]]
    offset = 0
    for name in names:
        end = offset + plan.bytes_of(name)
        shape = list(plan.shapes[name])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    return encoded + b" " * (-len(encoded) % 8)


def write_index(shards: list[Shard], plan: AssemblyPlan, folder: Path) -> None:
    """Write which tensor is in which file."""
    weight_map = {}
    for shard in shards:
        for name in shard.tensors:
            weight_map[name] = shard.file
    total_size = total_bytes(plan, plan.shapes)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    durable.write_json(folder / INDEX_FILE, index)


# -- everything else -------------------------------------------------------------------------------


def write_small_files(shards: list[Shard], plan: AssemblyPlan, folder: Path) -> None:
    """Write the index of the weights, code, tokenizer, generation config and processor files."""
    if len(shards) > 1:
        write_index(shards, plan, folder)
    copy_code(folder)
    write_tokenizer(plan, folder)
    write_generation_config(plan, folder)
    write_processor_files(plan, folder)
    # Last, because a directory with a config.json looks complete.
    durable.write_json(folder / "config.json", plan.config)


def copy_code(folder: Path) -> None:
    """Copy the remote-code files of the model, and those of its processor."""
    for name in CODE_FILES:
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "preprocessor").mkdir(exist_ok=True)
    for path in (ROOT / "preprocessor").glob("*.py"):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / "preprocessor" / path.name)


def write_tokenizer(plan: AssemblyPlan, folder: Path) -> None:
    """Write the tokenizer with its chat template.

    The versions of transformers that read the template from tokenizer_config.json, rather than from
    its own file, are those before 4.49. Some of them (before 4.43) do not know its markers of what
    the assistant writes.
    """
    durable.write_json(folder / "tokenizer.json", plan.tokenizer)
    template_path = ROOT / CHAT_TEMPLATES[plan.config["template"]]
    control_tokens = [token["content"] for token in plan.tokenizer["added_tokens"]]
    template = with_control_tokens(template_path.read_text(encoding="utf-8"), control_tokens)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokenizer_config = read_json(plan.language.folder / "tokenizer_config.json")
    for name in ADDED_TOKENS_KEYS:
        tokenizer_config.pop(name, None)
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer_config["padding_side"] = "left"
    tokenizer_config["chat_template"] = without_generation_markers(template)
    durable.write_json(folder / "tokenizer_config.json", tokenizer_config)


def with_control_tokens(template: str, control_tokens: Sequence[str]) -> str:
    """A chat template whose list of control tokens is that of a tokenizer."""
    listed = ",\n".join(f"    {token!r}" for token in control_tokens)
    pattern = r"(control_tokens = control_tokens or \[\n).*?(\n\] -%\})"
    return re.sub(pattern, lambda match: match[1] + listed + match[2], template, flags=re.DOTALL)


def without_generation_markers(template: str) -> str:
    """A chat template without its markers of what the assistant writes."""
    return re.sub(r" *\{%- (end)?generation -%\}\n", "", template)


def write_generation_config(plan: AssemblyPlan, folder: Path) -> None:
    """Copy the language model's generation_config.json; without one, write a greedy one."""
    name = "generation_config.json"
    source = plan.language.folder / name
    if source.is_file():
        shutil.copyfile(source, folder / name)
        return
    generation_config = {}
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id = plan.config["llm_config"].get(key)
        if token_id is not None:
            generation_config[key] = token_id
    generation_config["do_sample"] = False
    durable.write_json(folder / name, generation_config)


def write_processor_files(plan: AssemblyPlan, folder: Path) -> None:
    """Write the settings of image processor and processor: the root's, with the model's sizes."""
    preprocessing = read_json(ROOT / "preprocessor_config.json")
    preprocessing["size"] = plan.model_config.tile_size
    preprocessing["crop_size"] = plan.model_config.tile_size
    for name in TILING_SETTINGS:
        preprocessing[name] = plan.config[name]
    durable.write_json(folder / "preprocessor_config.json", preprocessing)
    processing = read_json(ROOT / "processor_config.json")
    processing["num_image_token"] = plan.model_config.num_image_token
    durable.write_json(folder / "processor_config.json", processing)


# -- command line ----------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    """The arguments of the command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="the directory to write; it must not exist yet")
    parser.add_argument(
        "--vision",
        required=True,
        help="an InternViT checkpoint, or a model whose vision encoder is taken",
    )
    parser.add_argument(
        "--language-model", required=True, help="a Qwen2 checkpoint, or a repository of this code"
    )
    parser.add_argument(
        "--mlp1", help="a checkpoint whose projector is taken; without it a new one is made"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="the dtype of all weights written"
    )
    parser.add_argument(
        "--max-tiles",
        type=int,
        help="the most tiles an image is cut into, thumbnail not counted (max_dynamic_patch)",
    )
    parser.add_argument(
        "--template",
        choices=CHAT_TEMPLATES,
        help="the conversation template, where the language model's tokenizer does not tell",
    )
    parser.add_argument(
        "--shard-gb", type=float, default=5.0, help="the size of the largest file of weights in GB"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="the seed that a new projector is drawn from"
    )
    arguments = parser.parse_args()
    if arguments.shard_gb <= 0 or (arguments.max_tiles is not None and arguments.max_tiles < 1):
        parser.error("--shard-gb and --max-tiles must be positive")
    return arguments


def main() -> None:
    """Assemble a repository as the command line asks, and print what was decided."""
    arguments = parse_arguments()
    settings = {}
    if arguments.max_tiles is not None:
        settings["max_dynamic_patch"] = arguments.max_tiles
    if arguments.template is not None:
        settings["template"] = arguments.template
    try:
        notes = assemble(
            arguments.output,
            arguments.vision,
            arguments.language_model,
            arguments.mlp1,
            arguments.dtype,
            arguments.seed,
            round(arguments.shard_gb * 1e9),
            settings,
        )
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\n".join([f"{arguments.output} is complete.", *notes]))


if __name__ == "__main__":
    main()
