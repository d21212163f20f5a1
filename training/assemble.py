"""Puts a vision encoder, a language model and a projector together into a repository of this code.

    python -m training.assemble out --vision InternViT-6B-448px-V2_5 --language-model Qwen2.5-32B-Instruct
    python -m training.assemble out2 --vision out --mlp1 out --language-model DeepSeek-R1-Distill-Qwen-32B

The second line is the re-assembly of the report (section 2.1): the same vision encoder and projector on another
language model of the same base. All sources are directories, as `hf download` writes them:

- `--vision`: an InternViT checkpoint, or any InternVL- or Skywork-style checkpoint, of which the vision part is taken
  together with the settings of tiling and pixel shuffle;
- `--language-model`: a Qwen2ForCausalLM checkpoint with its tokenizer, or a repository of this code, of which it is
  taken;
- `--mlp1`: a checkpoint with a projector. Without it a fresh one is drawn from the seed.

Tensors pass one at a time from shard to shard, so memory stays at the largest of them. Everything is written to
`out.partial`, which becomes `out` at the very end; run again after an interruption, it goes on after the last whole
shard.
"""

import argparse
import collections
import contextlib
import errno
import hashlib
import inspect
import json
import os
import shutil
import struct
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from remote_code import (
    checkpoint_files,
    configuration_skywork_chat,
    conversation,
    modeling_skywork_chat,
)
from training.checkpoint import Checkpoint, read_config

ROOT = Path(__file__).resolve().parents[1]
IMAGE_TOKENS = conversation.IMAGE_TOKENS
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
# A projector or a vision part brings these settings along, since it was trained with them
VISUAL_SETTINGS = (
    "downsample_ratio", "dynamic_image_size", "force_image_size", "max_dynamic_patch", "min_dynamic_patch",
    "ps_version", "select_layer", "use_thumbnail",
)  # fmt: skip
VISION_PREFIX, LANGUAGE_PREFIX, PROJECTOR_PREFIX = "vision_model.", "language_model.", "mlp1."
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
RMS_OF_GELU = 0.652  # root mean square of GELU(x) for x of N(0, 1)
ROW_MULTIPLE = 64  # of a grown vocabulary, so that tensor parallel ranks can share it out


def open_vision(folder):
    """(vision_config, visual settings, Checkpoint) of an InternViT checkpoint or of the vision part of a model.

    Raises:
        FileNotFoundError: see `Checkpoint`.
        ValueError: a checkpoint of another kind.
    """
    config = read_config(folder, "vision")
    if "vision_config" not in config:
        checkpoint = Checkpoint(folder)
        settings = {}
    else:
        checkpoint = Checkpoint(folder, VISION_PREFIX)
        settings = {name: config[name] for name in VISUAL_SETTINGS if name in config}
        config = config["vision_config"]
    if "embeddings.class_embedding" not in checkpoint.names:
        raise ValueError(
            f"--vision {folder}: no InternViT tensors (embeddings.class_embedding and so on, or vision_model.…). "
            "Checkpoints in transformers' own InternVL format (…-hf) name them otherwise: use the original repository."
        )
    return config, settings, checkpoint


def open_language_model(folder):
    """(llm_config, Checkpoint) of a Qwen2 checkpoint or of the one within a repository.

    Raises:
        FileNotFoundError: see `Checkpoint`; no tokenizer.json.
        ValueError: another architecture.
    """
    config = read_config(folder, "language-model")
    within = "llm_config" in config
    config = config["llm_config"] if within else config
    if "Qwen2ForCausalLM" not in (config.get("architectures") or ["Qwen2ForCausalLM"]) or (
        config.get("model_type", "qwen2") != "qwen2"
    ):
        raise ValueError(
            f"--language-model {folder}: model_type {config.get('model_type')!r}; "
            "expected a Qwen2ForCausalLM checkpoint."
        )
    if config.get("quantization_config"):
        raise ValueError(
            f"--language-model {folder} is quantized; assemble the full weights and quantize the result."
        )
    missing = [name for name in TOKENIZER_FILES if not (Path(folder) / name).is_file()]
    if missing:
        raise FileNotFoundError(f"--language-model {folder} has no {' and no '.join(missing)}.")
    return config, Checkpoint(folder, LANGUAGE_PREFIX if within else "")


def append_image_tokens(serialized):
    """A tokenizer.json with the image tokens, which take the next free ids where they are new.

    Returns:
        (the new dict, ids of IMAGE_TOKENS, those of them that were new).
    """
    serialized = dict(serialized, added_tokens=list(serialized["added_tokens"]))
    present = {token["content"]: token["id"] for token in serialized["added_tokens"]}
    free = 1 + max([*present.values(), *serialized["model"]["vocab"].values()])
    new = []
    for content in IMAGE_TOKENS:
        if content not in present:
            flags = {
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            serialized["added_tokens"].append({"id": free, "content": content, **flags})
            present[content], free = free, free + 1
            new.append(content)
    return serialized, [present[content] for content in IMAGE_TOKENS], new


def same_base_vocabulary(first, second):
    """Whether two tokenizer.json share what text is made of: vocabulary and merges, added tokens aside.

    Control tokens differ between Qwen2.5-Instruct and DeepSeek-R1-Distill-Qwen, at the same ids.
    """

    def pairs(merges):
        return [
            tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges
        ]

    first, second = first["model"], second["model"]
    return first["vocab"] == second["vocab"] and pairs(first["merges"]) == pairs(second["merges"])


def choose_template(serialized):
    """The conversation template whose control tokens the tokenizer has."""
    tokens = {token["content"] for token in serialized["added_tokens"]}
    if "<｜User｜>" in tokens:
        return "skywork-r1v"
    if "<|im_start|>" in tokens:
        return "skywork-r1v3"
    raise ValueError(
        "The language model's tokenizer has neither <｜User｜> (DeepSeek-R1-Distill-Qwen) nor <|im_start|> (Qwen2.5): "
        "there is no conversation template for it."
    )


class AssemblyPlan:
    """What is written and where each tensor comes from; made, and checked, before anything is.

    Attributes:
        config: of the result, a dict.
        tokenizer: tokenizer.json of the result, a dict.
        shapes: name to shape of every tensor, in the order of writing.
        notes: what was decided, in sentences.
    """

    def __init__(self, vision, language_model, mlp1=None, dtype="bfloat16", seed=0, settings=None):
        self.dtype, self.seed, self.notes = getattr(torch, dtype), seed, []
        vision_config, visual_settings, self.vision = open_vision(vision)
        llm_config, self.language = open_language_model(language_model)
        self.language_folder = Path(language_model)
        self.projector = None
        if mlp1 is not None:
            self.projector = Checkpoint(mlp1, PROJECTOR_PREFIX)
            if not self.projector.names:
                raise ValueError(f"--mlp1 {mlp1}: no tensors named {PROJECTOR_PREFIX}*.")
            own = read_config(mlp1, "mlp1")
            visual_settings |= {name: own[name] for name in VISUAL_SETTINGS if name in own}
            self._check_vocabulary(mlp1)
        self.tokenizer, image_ids, new_tokens = append_image_tokens(
            self._read_tokenizer(language_model)
        )
        self.new_ids = [
            token_id for token, token_id in zip(IMAGE_TOKENS, image_ids) if token in new_tokens
        ]
        llm_config = {
            "architectures": ["Qwen2ForCausalLM"],
            **configuration_skywork_chat.portable_language_config(llm_config),
        }
        llm_config["torch_dtype"] = dtype
        self.old_rows = llm_config["vocab_size"]
        if max(image_ids) >= self.old_rows:
            llm_config["vocab_size"] = -(-(max(image_ids) + 1) // ROW_MULTIPLE) * ROW_MULTIPLE
            self.notes.append(
                f"Vocabulary grown from {self.old_rows} to {llm_config['vocab_size']} rows; the new rows of embedding "
                "and head are the mean of the old ones."
            )
        if self.new_ids:
            self.notes.append(
                f"{', '.join(new_tokens)} appended as {self.new_ids}; their embeddings are the mean of all others."
            )
        self.config = self._compose(
            vision_config, llm_config, visual_settings, settings or {}, image_ids[2], dtype
        )
        with torch.device("meta"):
            model = modeling_skywork_chat.SkyworkChatModel(
                configuration_skywork_chat.SkyworkChatConfig(**self.config)
            )
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._check_head()
        self._check_tensors(vision, language_model, mlp1)
        if self.projector is None:
            self.notes.append(f"mlp1 is new, drawn with seed {seed}: it has to be trained.")

    @staticmethod
    def _read_tokenizer(folder):
        return json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))

    def _check_vocabulary(self, mlp1):
        if not (Path(mlp1) / "tokenizer.json").is_file():
            return
        if not same_base_vocabulary(
            self._read_tokenizer(mlp1), self._read_tokenizer(self.language_folder)
        ):
            raise ValueError(
                f"--language-model {self.language_folder} has another base vocabulary than the one that the projector "
                f"of {mlp1} was trained with: a projector moves only between children of one base model. Train a new "
                "one (leave --mlp1 out)."
            )

    def _compose(self, vision_config, llm_config, visual_settings, settings, image_token_id, dtype):
        root = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
        known = inspect.signature(
            configuration_skywork_chat.SkyworkVisionConfig.__init__
        ).parameters
        vision_config = {name: value for name, value in vision_config.items() if name in known}
        vision_config |= {
            "model_type": "skywork_vision",
            "architectures": ["SkyworkVisionModel"],
            "torch_dtype": dtype,
        }
        given = {name: value for name, value in visual_settings.items() if value is not None}
        config = root | {"force_image_size": vision_config["image_size"]} | given | settings
        tied = bool(llm_config.get("tie_word_embeddings", False))
        return config | {
            "vision_config": vision_config,
            "llm_config": llm_config,
            "image_token_id": image_token_id,
            "template": choose_template(self.tokenizer),
            "tie_word_embeddings": tied,
            "torch_dtype": dtype,
        }

    def _check_head(self):
        head, tied = "lm_head.weight", self.config["tie_word_embeddings"]
        if not tied and head not in self.language.names:
            raise ValueError(
                f"{self.language_folder}: tie_word_embeddings is false, but there is no {head}. If its head is tied, "
                "set tie_word_embeddings to true in its config.json."
            )
        if tied and head in self.language.names:
            same = torch.equal(
                self.language.read(head), self.language.read("model.embed_tokens.weight")
            )
            if not same:
                raise ValueError(
                    f"{self.language_folder}: tie_word_embeddings is true, but {head} differs from the embeddings. Set "
                    "it to false in its config.json."
                )
        if tied:
            self.shapes.pop(LANGUAGE_PREFIX + head, None)

    def source(self, name):
        """(Checkpoint or None for a new projector, the name there)."""
        for prefix, checkpoint in (
            (VISION_PREFIX, self.vision), (LANGUAGE_PREFIX, self.language), (PROJECTOR_PREFIX, self.projector),
        ):  # fmt: skip
            if name.startswith(prefix):
                return checkpoint, name[len(prefix) :]
        raise AssertionError(f"no part for {name}")

    def _check_tensors(self, vision, language_model, mlp1):
        folders = {VISION_PREFIX: vision, LANGUAGE_PREFIX: language_model, PROJECTOR_PREFIX: mlp1}
        missing, misfits, used = [], [], collections.defaultdict(set)
        for name, shape in self.shapes.items():
            checkpoint, own = self.source(name)
            if checkpoint is None:
                continue
            used[checkpoint].add(own)
            if own not in checkpoint.names:
                missing.append(f"{own} in {checkpoint.folder}")
                continue
            found, grows = (
                checkpoint.shape(own),
                own in ("lm_head.weight", "model.embed_tokens.weight"),
            )
            if found != ((self.old_rows, *shape[1:]) if grows else shape):
                misfits.append((name, own, checkpoint, found, shape))
        if missing:
            raise ValueError(
                f"{len(missing)} tensors are missing: {', '.join(missing[:3])}{', …' * (len(missing) > 3)}"
            )
        if misfits:
            name, own, checkpoint, found, shape = misfits[0]
            hint = "Its config.json does not fit its weights."
            if checkpoint is self.projector:
                hint = (
                    f"The projector maps a vision width of {self.projector.shape('1.weight')[1]} to a language width "
                    f"of {self.projector.shape('3.weight')[0]}; {folders[VISION_PREFIX]} and "
                    f"{folders[LANGUAGE_PREFIX]} need {self.shapes['mlp1.1.weight'][1]} and "
                    f"{self.shapes['mlp1.3.weight'][0]}. Leave --mlp1 out for a new one."
                )
            raise ValueError(
                f"{own} of {checkpoint.folder} has the shape {found}, expected {shape}. {hint}"
            )
        for checkpoint, names in used.items():
            tied_head = {"lm_head.weight"} if self.config["tie_word_embeddings"] else set()
            unused = sorted(set(checkpoint.names) - names - tied_head)
            if unused:
                self.notes.append(
                    f"{len(unused)} tensors of {checkpoint.folder} have no place here, such as {unused[0]}."
                )

    def tensor(self, name):
        """The tensor as it is written."""
        checkpoint, own = self.source(name)
        if checkpoint is None:
            return self._new_projector(own, self.shapes[name]).to(self.dtype)
        tensor = checkpoint.read(own)
        if own == "model.embed_tokens.weight" and self.new_ids:
            tensor = self._with_mean_rows(tensor, self.shapes[name][0], self.new_ids)
        elif own == "lm_head.weight" and tensor.shape[0] < self.shapes[name][0]:
            tensor = self._with_mean_rows(tensor, self.shapes[name][0], [])
        return tensor.to(self.dtype).contiguous()

    def _with_mean_rows(self, tensor, rows, ids):
        """The tensor grown to so many rows; the new ones, and those of `ids`, are the mean of the old others."""
        old = len(tensor)
        trained = min([old, *ids])  # rows behind the tokenizer's last token were never trained
        mean = sum(part.float().sum(0) for part in tensor[:trained].split(8192)) / trained
        grown = torch.empty(rows, tensor.shape[1], dtype=tensor.dtype)
        grown[:old] = tensor
        grown[old:] = mean.to(tensor.dtype)
        if ids:
            grown[ids] = mean.to(tensor.dtype)
        return grown

    def _new_projector(self, name, shape):
        """LayerNorm of ones, biases of zeros, matrices from N(0, 1 / inputs) by the seed and the name.

        The last matrix is scaled so that image features are as large as the text's embeddings (root mean square): in a
        residual stream that they dominate, the decoder layers could hardly add to them.
        """
        if name == "0.weight":
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        digest = hashlib.sha256(f"{self.seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        return weight * self._embedding_size() / RMS_OF_GELU if name == "3.weight" else weight

    def _embedding_size(self):
        """Root mean square of the embeddings of the tokens that the tokenizer has."""
        tensor = self.language.read("model.embed_tokens.weight")[
            : min([self.old_rows, *self.new_ids])
        ]
        squares = sum(float(part.float().square().sum()) for part in tensor.split(8192))
        return (squares / tensor.numel()) ** 0.5

    def bytes_of(self, name):
        size = torch.empty((), dtype=self.dtype).element_size()
        return size * torch.Size(self.shapes[name]).numel()

    def fingerprint(self):
        """Changes with anything that would change the output."""
        sources = [
            c.fingerprint() for c in (self.vision, self.language, self.projector) if c is not None
        ]
        return json.dumps(
            [sources, self.config, str(self.dtype), self.seed, self.tokenizer["added_tokens"]]
        )


def shards_of(plan, max_shard_bytes):
    """Lists of names that are written into one file each."""
    shards, size = [[]], 0
    for name in plan.shapes:
        needed = plan.bytes_of(name)
        if shards[-1] and size + needed > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards


def write_shard(path, names, plan, progress):
    """A safetensors file written tensor by tensor: an 8-byte length, a JSON header, then the bytes in order."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    kind = DTYPES[str(plan.dtype).removeprefix("torch.")]
    for name in names:
        end = offset + plan.bytes_of(name)
        header[name] = {
            "dtype": kind,
            "shape": list(plan.shapes[name]),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            # flatten before view: a tensor without dimensions has no bytes to view
            file.write(plan.tensor(name).flatten().view(torch.uint8).numpy().data)
            progress.update(plan.bytes_of(name))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_small_files(plan, folder):
    """Code, tokenizer, generation config and processor files."""
    for name in checkpoint_files.CODE_FILES:
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "preprocessor").mkdir(exist_ok=True)
    for path in (ROOT / "preprocessor").glob("*.py"):
        if path.name != "__init__.py":
            shutil.copyfile(path, folder / "preprocessor" / path.name)

    def write(name, content):
        (folder / name).write_text(
            json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )

    source = plan.language_folder
    write("tokenizer.json", plan.tokenizer)
    tokenizer_config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    # Both describe the added tokens once more, which would hide those that were appended
    for name in ("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"):
        tokenizer_config.pop(name, None)
    tokenizer_config["tokenizer_class"] = "PreTrainedTokenizerFast"
    tokenizer_config["padding_side"] = "left"
    if plan.config["template"] == "skywork-r1v":
        template = (ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    else:
        template = _chatml_template()
    tokenizer_config["chat_template"] = template
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write("tokenizer_config.json", tokenizer_config)
    llm = plan.config["llm_config"]
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", folder / "generation_config.json")
    else:
        ids = {
            name: llm[name]
            for name in ("bos_token_id", "eos_token_id", "pad_token_id")
            if llm.get(name) is not None
        }
        write("generation_config.json", {**ids, "do_sample": False})
    size = plan.config["force_image_size"]
    preprocessing = json.loads((ROOT / "preprocessor_config.json").read_text(encoding="utf-8"))
    tiling = ("dynamic_image_size", "min_dynamic_patch", "max_dynamic_patch", "use_thumbnail")
    preprocessing |= {"size": size, "crop_size": size} | {
        name: plan.config[name] for name in tiling
    }
    write("preprocessor_config.json", preprocessing)
    processing = json.loads((ROOT / "processor_config.json").read_text(encoding="utf-8"))
    tokens_per_side = (
        size // plan.config["vision_config"]["patch_size"] * plan.config["downsample_ratio"]
    )
    write("processor_config.json", processing | {"num_image_token": int(tokens_per_side) ** 2})


def _chatml_template():
    """The root's chat template with the control tokens of Qwen2.5, as "skywork-r1v3" writes them."""
    template = (ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    system_check = "{%- if not loop.first -%}{{- raise_exception('A system message can only come first.') -}}{%- endif -%}\n"
    for old, new in (
        ("{%- set begin = '<｜begin▁of▁sentence｜>' -%}\n{{- begin -}}\n", ""),
        (system_check, system_check + "        {{- '<|im_start|>system\\n' -}}\n"),
        ("'<｜User｜>\\n'", "'<|im_start|>user\\n'"),
        ("'<｜Assistant｜><think>\\n'", "'<|im_start|>assistant\\n<think>\\n'"),
        (
            "    {%- if message['role'] == 'assistant' -%}\n"
            "        {{- '<｜end▁of▁sentence｜>' -}}\n"
            "    {%- endif -%}\n",
            "    {{- '<|im_end|>\\n' -}}\n",
        ),
    ):
        if old not in template:
            raise AssertionError(f"chat_template.jinja no longer has {old!r}")
        template = template.replace(old, new)
    return template


def check_disk(folder, needed):
    """Raises OSError (ENOSPC) if so many bytes cannot be written below the folder."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free",
            str(folder),
        )


def assemble(
    output,
    vision,
    language_model,
    mlp1=None,
    dtype="bfloat16",
    seed=0,
    max_shard_bytes=5 * 10**9,
    settings=None,
):
    """Write a complete repository.

    Args:
        output: a directory that does not exist yet.
        vision, language_model, mlp1: directories, see the module's docstring.
        dtype: of all tensors written: "bfloat16", "float16" or "float32".
        seed: of a new projector.
        max_shard_bytes: of a file of weights; a larger tensor gets a file of its own.
        settings: entries of config.json in place of those that the sources bring, such as {"max_dynamic_patch": 6}.

    Returns:
        What was decided, a list of sentences.

    Raises:
        FileExistsError: `output` exists.
        FileNotFoundError: a source is no checkpoint, or an incomplete one.
        ValueError: sources that do not fit each other; see `AssemblyPlan`.
        OSError: the disk is full; what is whole stays in `output`.partial, and the same call goes on from there.
    """
    output = Path(output)
    if output.exists():
        raise FileExistsError(f"{output} exists: name a new directory, or remove it.")
    plan = AssemblyPlan(vision, language_model, mlp1, dtype, seed, settings)
    partial = output.with_name(output.name + ".partial")
    fingerprint = json.dumps([plan.fingerprint(), max_shard_bytes])
    if partial.exists() and _read_text(partial / "plan.json") != fingerprint:
        shutil.rmtree(partial)  # of other sources or settings
    partial.mkdir(parents=True, exist_ok=True)
    (partial / "plan.json").write_text(fingerprint)
    shards = shards_of(plan, max_shard_bytes)
    total = sum(plan.bytes_of(name) for name in plan.shapes)
    files = [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    if len(shards) == 1:
        files = ["model.safetensors"]
    done = {file for file in files if (partial / file).is_file()}
    check_disk(
        partial,
        sum(
            plan.bytes_of(name)
            for file, names in zip(files, shards)
            if file not in done
            for name in names
        ),
    )
    with tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1000, desc=output.name
    ) as progress:
        for file, names in zip(files, shards):
            if file in done:
                progress.update(sum(plan.bytes_of(name) for name in names))
            else:
                with _explained(partial):
                    write_shard(partial / file, names, plan, progress)
    with _explained(partial):
        if len(shards) > 1:
            weight_map = {name: file for file, names in zip(files, shards) for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (partial / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        write_small_files(plan, partial)
        (partial / "config.json").write_text(
            json.dumps(plan.config, indent=2) + "\n", encoding="utf-8"
        )
    (partial / "plan.json").unlink()
    partial.replace(output)
    return plan.notes


def _read_text(path):
    return path.read_text() if path.is_file() else None


@contextlib.contextmanager
def _explained(partial):
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        hint = (
            "the disk is full; free some space and run the same command again, whole files are kept"
        )
        raise OSError(errno.ENOSPC, hint, str(partial)) from error


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="directory to write; must not exist")
    parser.add_argument(
        "--vision",
        required=True,
        help="InternViT checkpoint, or a model whose vision part is taken",
    )
    parser.add_argument(
        "--language-model", required=True, help="Qwen2 checkpoint, or a repository of this code"
    )
    parser.add_argument(
        "--mlp1", help="checkpoint whose projector is taken; without it a new one is made"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument(
        "--max-tiles", type=int, help="of an image, thumbnail not counted (max_dynamic_patch)"
    )
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file of weights in GB")
    parser.add_argument("--seed", type=int, default=0, help="of a new projector")
    arguments = parser.parse_args()
    if arguments.shard_gb <= 0 or (arguments.max_tiles is not None and arguments.max_tiles < 1):
        parser.error("--shard-gb and --max-tiles must be positive")
    settings = {} if arguments.max_tiles is None else {"max_dynamic_patch": arguments.max_tiles}
    try:
        notes = assemble(
            arguments.output, arguments.vision, arguments.language_model, arguments.mlp1, arguments.dtype,
            arguments.seed, round(arguments.shard_gb * 1e9), settings,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print("\n".join([f"{arguments.output} is complete.", *notes]))


if __name__ == "__main__":
    main()
