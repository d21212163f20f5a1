"""Supervised training of a Skywork-R1V repository on conversations about images, on TRL.

    python -m training.sft --config training/recipes/nano/mlp_init_1.yaml
    accelerate launch --config_file training/recipes/accelerate/fsdp.yaml -m training.sft --config
    training/recipes/38b/alignment_sft.yaml

A YAML file holds fields of `RecipeArguments` and of TRL's `SFTConfig`; the command line overrides it
(`--learning_rate 1e-4`). The stages of the report (section 2.1 and 2.2, step 1) are in `training/recipes`. What is
not named in `train` is frozen, and shown to be unchanged at the end. Run again after an interruption, it goes on from
the last whole checkpoint.

The output directory holds `checkpoint-*` while training, then `model` (a complete repository), or `adapter`, or
`mlp1`; with `loss.png`, `log.jsonl` and `summary.json`.
"""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import datasets
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer, TrlParser

from training.assemble import Checkpoint
from training.data import Collator, ConversationFile, Encoder, StreamedConversations

TRAINABLE = ("mlp1", "language_model", "vision_model", "lora")
SAVED = ("model", "adapter", "mlp1")
# The decoder layers' matrices; names as they are under language_model
LORA_TARGETS = r"language_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"


@dataclasses.dataclass
class RecipeArguments:
    """What a recipe says besides TRL's SFTConfig.

    Raises:
        ValueError: values that contradict each other, by name.
    """

    model: str = dataclasses.field(metadata={"help": "Repository to start from: a directory or a Hub id."})
    data: list[str] = dataclasses.field(
        metadata={
            "help": "JSONL files, or `datasets:NAME[:SPLIT]` for one of `datasets` (a Hub id or saved directory)."
        }
    )
    train: list[str] = dataclasses.field(
        default_factory=lambda: ["mlp1"],
        metadata={"help": f"What trains: some of {', '.join(TRAINABLE)}. lora is on the language model."},
    )
    save: list[str] = dataclasses.field(
        default_factory=lambda: ["model"],
        metadata={"help": "What is kept at the end: model (a complete repository, LoRA merged), adapter, mlp1."},
    )
    image_root: str | None = dataclasses.field(
        default=None, metadata={"help": "Directory of relative image paths; by default that of the data file."}
    )
    max_tiles: int | None = dataclasses.field(
        default=None, metadata={"help": "Tiles of an image at most, thumbnail not counted; by default the model's."}
    )
    long_samples: str = dataclasses.field(
        default="fewer_tiles",
        metadata={"help": "Samples beyond max_length: fewer_tiles (then dropped if one tile is too much), or drop."},
    )
    max_broken_share: float = dataclasses.field(
        default=0.0, metadata={"help": "Share of broken samples that is skipped with a warning; more is an error."}
    )
    streaming: bool = dataclasses.field(
        default=False, metadata={"help": "Read the data in its order, through a buffer that shuffles; needs max_steps."}
    )
    shuffle_buffer: int = dataclasses.field(default=10_000, metadata={"help": "Samples in that buffer."})
    global_batch_size: int | None = dataclasses.field(
        default=None,
        metadata={"help": "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."},
    )
    model_dtype: str = dataclasses.field(
        default="bfloat16", metadata={"help": "Of the loaded weights; what trains is kept in float32 besides."}
    )
    lora_rank: int = dataclasses.field(default=16, metadata={"help": "r of LoRA."})
    lora_alpha: int = dataclasses.field(default=32, metadata={"help": "alpha of LoRA."})
    lora_dropout: float = dataclasses.field(default=0.0, metadata={"help": "Dropout of LoRA."})
    lora_targets: str = dataclasses.field(default=LORA_TARGETS, metadata={"help": "Regular expression of modules."})

    def __post_init__(self):
        for name, allowed in (("train", TRAINABLE), ("save", SAVED)):
            unknown = [value for value in getattr(self, name) if value not in allowed]
            if unknown or not getattr(self, name):
                raise ValueError(f"{name}: {unknown or 'nothing'}; expected some of {', '.join(allowed)}.")
        if "lora" in self.train and "language_model" in self.train:
            raise ValueError(
                "train: lora and language_model exclude each other: an adapter, or the weights themselves."
            )
        if "adapter" in self.save and "lora" not in self.train:
            raise ValueError("save: adapter needs lora among what trains.")
        if self.model_dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(f"model_dtype={self.model_dtype!r}; expected bfloat16, float16 or float32.")
        if not 0 <= self.max_broken_share < 1:
            raise ValueError(f"max_broken_share={self.max_broken_share} must be in [0, 1).")


@dataclasses.dataclass
class TrainingConfig(SFTConfig):
    """TRL's, for samples that `training.data` has encoded: neither prepared again nor robbed of their columns."""

    def __post_init__(self):
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self.remove_unused_columns = False
        super().__post_init__()


def checksums(model):
    """A number for the bytes of each parameter and buffer that does not train."""
    return {
        name: _checksum(tensor)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if not tensor.requires_grad and tensor.numel()
    }


def _checksum(tensor, block=1 << 24):
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    flat, total = tensor.detach().contiguous().view(-1).view(kind), 0
    for start in range(0, len(flat), block):
        part = flat[start : start + block].to(torch.int64)
        places = torch.arange(len(part), device=part.device) % 65_521 + 1 + start // block
        total = (total * 31 + int((part * places).sum())) & (2**63 - 1)
    return total


def freeze(model, train):
    """Leave only the named parts trainable; LoRA's matrices are added later."""
    model.requires_grad_(False)
    for part in ("mlp1", "vision_model", "language_model"):
        getattr(model, part).requires_grad_(part in train)


class Trainer(SFTTrainer):
    """SFTTrainer whose checkpoints hold what trains, not the frozen 38 billion parameters besides.

    Args:
        source: what `build_dataset` made the data from.
    """

    def __init__(self, *arguments, source, **keywords):
        self.source = source
        super().__init__(*arguments, **keywords)

    def _save(self, output_dir=None, state_dict=None):
        model = self.accelerator.unwrap_model(self.model)
        if hasattr(model, "peft_config"):
            super()._save(output_dir, state_dict)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state_dict = model.state_dict() if state_dict is None else state_dict
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        kept = {name: tensor.detach().contiguous() for name, tensor in state_dict.items() if name in names}
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    def _issue_warnings_after_load(self, load_result):
        frozen = {
            name for name, p in self.accelerator.unwrap_model(self.model).named_parameters() if not p.requires_grad
        }
        absent = [name for name in load_result.missing_keys if name.removeprefix("module.") not in frozen]
        buffers = {name for name, _ in self.accelerator.unwrap_model(self.model).named_buffers()}
        absent = [name for name in absent if name not in buffers]
        if absent or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit what trains: it lacks {absent[:3]} and has "
                f"{load_result.unexpected_keys[:3]} besides. Resume with the recipe it was written with, or use "
                "another output_dir."
            )

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(self.source, ConversationFile):
            return super()._get_train_sampler(train_dataset)
        lengths = [self.source.length(index) for index in range(len(self.source))]
        generator = torch.Generator().manual_seed(self.args.seed)
        # Of a step over all processes, so that their number does not change the order
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(size, lengths=lengths, generator=generator)


def last_checkpoint(folder):
    """The newest checkpoint that was written to its end, or None; broken ones are removed.

    A checkpoint's trainer_state.json is the last file to be written.
    """
    whole = []
    for path in Path(folder).glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
            whole.append((state["global_step"], path))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path, ignore_errors=True)
    return str(max(whole)[1]) if whole else None


def set_accumulation(config, global_batch_size):
    """gradient_accumulation_steps such that a step has `global_batch_size` samples over all processes.

    Raises:
        ValueError: it does not divide.
    """
    at_once = config.per_device_train_batch_size * config.world_size * max(1, config.n_gpu)
    if global_batch_size % at_once:
        raise ValueError(
            f"global_batch_size={global_batch_size} is no multiple of {at_once}, which is per_device_train_batch_size="
            f"{config.per_device_train_batch_size} on {at_once // config.per_device_train_batch_size} devices."
        )
    config.gradient_accumulation_steps = global_batch_size // at_once


def build_dataset(recipe, config, encoder):
    """The training data of a recipe, read and encoded as they are needed.

    Returns:
        (`datasets.Dataset` or `IterableDataset` with one column, "sample"; the `ConversationFile` or
        `StreamedConversations` behind it).

    Raises:
        FileNotFoundError, ValueError: see `training.data`.
    """
    sources = [source for source in recipe.data if source.startswith("datasets:")]
    if sources and len(recipe.data) > 1:
        raise ValueError("data: one `datasets:` source, or any number of JSONL files.")
    if not sources and not recipe.streaming:
        source = ConversationFile(recipe.data, encoder, recipe.image_root, recipe.max_broken_share)
        lines = datasets.Dataset.from_dict({"line": list(range(len(source)))})
        return lines.with_transform(lambda rows: {"sample": [source[line] for line in rows["line"]]}), source
    if recipe.streaming and config.max_steps <= 0:
        raise ValueError("streaming: the number of samples is not known, so max_steps is needed.")
    if sources:
        _, name, split, *_ = [*sources[0].split(":"), "train", ""]
        if Path(name).is_dir() and not recipe.streaming:
            rows = datasets.load_from_disk(name)
        else:
            rows = datasets.load_dataset(name, split=split or "train", streaming=recipe.streaming)
    else:
        missing = [path for path in recipe.data if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"data file {missing[0]} does not exist.")
        rows = datasets.load_dataset("text", data_files=recipe.data, split="train", streaming=True)
        rows = rows.filter(lambda row: row["text"].strip()).map(lambda row: {"row": row["text"]}, remove_columns="text")
    shuffle = {"buffer_size": recipe.shuffle_buffer} if recipe.streaming else {}
    rows = rows.shuffle(seed=config.seed, **shuffle)
    if not sources:
        rows = _JsonLines(rows)
    root = recipe.image_root or (None if sources else str(Path(recipe.data[0]).parent))
    total = None if recipe.streaming else len(rows)
    source = StreamedConversations(rows, encoder, recipe.data[0], root, recipe.max_broken_share, total)

    def encoded():
        for sample in source:
            yield {"sample": sample}

    return datasets.IterableDataset.from_generator(encoded), source


class _JsonLines:
    """Rows of JSON that stay text until they are used: lines of different forms have no common schema."""

    def __init__(self, rows):
        self.rows = rows

    def set_epoch(self, epoch):
        self.rows.set_epoch(epoch)

    def __iter__(self):
        for row in self.rows:
            try:
                yield json.loads(row["row"])
            except json.JSONDecodeError:
                yield row["row"]  # reported as broken


def lora_config(recipe):
    from peft import LoraConfig

    kept = [part for part in recipe.train if part in ("mlp1", "vision_model")]
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_targets,
        modules_to_save=kept or None,
        task_type="CAUSAL_LM",
    )


def make_trainer(recipe, config):
    """Everything up to the first step: checks, data, model, frozen parts.

    Returns:
        (Trainer, checksums of what is frozen or, where no process holds a whole model, None).
    """
    if recipe.global_batch_size:
        set_accumulation(config, recipe.global_batch_size)
    processor = AutoProcessor.from_pretrained(recipe.model, trust_remote_code=True)
    model_config = AutoConfig.from_pretrained(recipe.model, trust_remote_code=True)
    limit = model_config.llm_config.max_position_embeddings
    if not config.max_length or config.max_length > limit:
        raise ValueError(
            f"max_length={config.max_length}: expected a number up to the model's context, {limit} tokens."
        )
    encoder = Encoder(
        model_config,
        processor.tokenizer,
        processor.image_processor,
        config.max_length,
        recipe.max_tiles,
        recipe.long_samples,
    )
    data, source = build_dataset(recipe, config, encoder)
    model = AutoModelForImageTextToText.from_pretrained(
        recipe.model, torch_dtype=getattr(torch, recipe.model_dtype), trust_remote_code=True
    )
    freeze(model, recipe.train)
    sharded = bool(config.fsdp or config.deepspeed) or _accelerate_shards()
    if sharded and "lora" in recipe.train and recipe.save != ["adapter"]:
        raise ValueError("LoRA over FSDP or ZeRO-3 can only save the adapter (save: [adapter]); merge it afterwards.")
    if not sharded:  # ZeRO-3 keeps a float32 copy itself, and accelerate makes one for FSDP
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    else:
        model.whole_batches_of_tiles = True  # every rank makes the same calls of every module
    frozen = None if sharded else checksums(model)
    side = encoder.image_processor.size
    collator = Collator(processor.tokenizer.pad_token_id, (3, side, side))
    trainer = Trainer(
        model,
        args=config,
        train_dataset=data,
        data_collator=lambda rows: collator([row["sample"] for row in rows]),
        processing_class=processor,
        peft_config=lora_config(recipe) if "lora" in recipe.train else None,
        source=source,
    )
    return trainer, frozen


def _accelerate_shards():
    return any(
        os.environ.get(name, "false").lower() == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    )


def assert_frozen(model, before):
    """Compare what was frozen with `checksums` from before.

    Returns:
        How many tensors were compared.

    Raises:
        RuntimeError: one has changed.
    """
    after = {_bare(name): checksum for name, checksum in checksums(model).items()}
    compared = after.keys() & before.keys()
    _raise_if_changed(name for name in compared if after[name] != before[name])
    return len(compared)


def assert_frozen_as_loaded(state_dict, folder, trainable):
    """As `assert_frozen` where no process holds a whole model: against the files that it was loaded from."""
    source = Checkpoint(folder)
    compared = sorted((state_dict.keys() & set(source.names)) - set(trainable))
    _raise_if_changed(
        name
        for name in compared
        if not torch.equal(state_dict[name].cpu(), source.read(name).to(state_dict[name].dtype))
    )
    return len(compared)


def _raise_if_changed(names):
    changed = sorted(names)
    if changed:
        raise RuntimeError(f"{len(changed)} frozen tensors have changed, such as {changed[0]}; this must not happen.")


def _bare(name):
    """A parameter's name without what PEFT and wrappers put around modules."""
    for extra in ("base_model.model.", "module.", "_orig_mod.", "base_layer.", "original_module."):
        name = name.replace(extra, "")
    return name


def save_results(trainer, recipe, folder, state_dict=None):
    """Write what `save` names below the folder.

    Args:
        state_dict: all weights, gathered, where no process holds a whole model.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_peft, dtype = hasattr(model, "peft_config"), getattr(torch, recipe.model_dtype)
    if "adapter" in recipe.save:
        model.save_pretrained(folder / "adapter", state_dict=state_dict)
    if is_peft and state_dict is None and set(recipe.save) & {"model", "mlp1"}:
        model = model.merge_and_unload()
    weights = model.state_dict() if state_dict is None else state_dict
    if "model" in recipe.save:
        weights = {name: tensor.detach().to(dtype) for name, tensor in weights.items()}
        model.save_pretrained(folder / "model", state_dict=weights)
    if "mlp1" in recipe.save:
        target = folder / "mlp1"
        target.mkdir(parents=True, exist_ok=True)
        kept = {
            name: w.detach().to("cpu", dtype).contiguous() for name, w in weights.items() if name.startswith("mlp1.")
        }
        save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
        model.config.save_pretrained(target)
        trainer.processing_class.tokenizer.save_pretrained(target)


def plot_losses(history, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    logged = [entry for entry in history if "loss" in entry]
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot([entry["step"] for entry in logged], [entry["loss"] for entry in logged])
    axes.set(xlabel="optimizer step", ylabel="loss of answers", title=path.parent.name)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def train(recipe, config):
    """Run a recipe to its end.

    Returns:
        The summary, as in summary.json.
    """
    folder = Path(config.output_dir)
    trainer, frozen = make_trainer(recipe, config)
    start = time.time()
    trainer.train(resume_from_checkpoint=last_checkpoint(folder) if folder.exists() else None)
    # ZeRO-3 leaves placeholders between steps, which remember the size
    trainable = {
        name: getattr(p, "ds_numel", p.numel()) for name, p in trainer.model.named_parameters() if p.requires_grad
    }
    gathered, unchanged = None, 0
    if frozen is not None:
        unchanged = assert_frozen(trainer.accelerator.unwrap_model(trainer.model), frozen)
    else:
        gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # whole on the first process only
        if trainer.is_world_process_zero() and Path(recipe.model).is_dir():
            unchanged = assert_frozen_as_loaded(gathered, recipe.model, trainable)
    counts = trainer.source.counts.over_processes(trainer.accelerator)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    summary = {
        "steps": trainer.state.global_step,
        "seconds": round(time.time() - start),
        "trained_parameters": sum(trainable.values()),
        "frozen_tensors_unchanged": unchanged,
        "samples": counts,
        "first_loss": losses[0] if losses else math.nan,
        "last_loss": losses[-1] if losses else math.nan,
    }
    if trainer.is_world_process_zero():
        save_results(trainer, recipe, folder, gathered)
        with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
            log.writelines(json.dumps(entry) + "\n" for entry in trainer.state.log_history)
        plot_losses(trainer.state.log_history, folder / "loss.png")
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def parse(arguments=None):
    """(RecipeArguments, TrainingConfig) of a command line.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    return TrlParser((RecipeArguments, TrainingConfig)).parse_args_and_config(arguments)


def main():
    try:
        summary = train(*parse())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
