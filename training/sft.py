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
import re
import shutil
import sys
import time
from pathlib import Path

import datasets
import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import cached_file, logging
from trl import SFTConfig, SFTTrainer, TrlParser

from training.checkpoint import Checkpoint
from training.data import (
    Collator,
    ConversationFile,
    Conversations,
    ConversationTable,
    Encoder,
    StreamedConversations,
    json_lines,
)
from training.parts import TRAINABLE, names_among

logger = logging.get_logger(__name__)

SAVED = ("model", "adapter", "mlp1")
# The decoder layers' matrices; names as they are under language_model
LORA_TARGETS = (
    r"language_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)


@dataclasses.dataclass
class RecipeArguments:
    """What a recipe says besides TRL's SFTConfig.

    Raises:
        ValueError: values that contradict each other, by name.
    """

    model: str = dataclasses.field(
        metadata={"help": "Repository to start from: a directory or a Hub id."}
    )
    data: list[str] = dataclasses.field(
        metadata={
            "help": "JSONL files, or `datasets:NAME[:SPLIT]` for one of `datasets` (a Hub id or saved directory)."
        }
    )
    train: list[str] = dataclasses.field(
        default_factory=lambda: ["mlp1"],
        metadata={
            "help": f"What trains: some of {', '.join(TRAINABLE)}. lora is on the language model."
        },
    )
    save: list[str] = dataclasses.field(
        default_factory=lambda: ["model"],
        metadata={
            "help": "What is kept at the end: model (a complete repository, LoRA merged), adapter, mlp1."
        },
    )
    image_root: str | None = dataclasses.field(
        default=None,
        metadata={"help": "Directory of relative image paths; by default that of the data file."},
    )
    max_tiles: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Tiles of an image at most, thumbnail not counted; by default the model's."
        },
    )
    long_samples: str = dataclasses.field(
        default="fewer_tiles",
        metadata={
            "help": "Samples beyond max_length: fewer_tiles (then dropped if one tile is too much), or drop."
        },
    )
    max_broken_share: float = dataclasses.field(
        default=0.0,
        metadata={
            "help": "Share of broken samples that is skipped with a warning; more is an error."
        },
    )
    streaming: bool = dataclasses.field(
        default=False,
        metadata={
            "help": "Read the data in its order, through a buffer that shuffles; needs max_steps."
        },
    )
    shuffle_buffer: int = dataclasses.field(
        default=10_000, metadata={"help": "Samples in that buffer."}
    )
    global_batch_size: int | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."
        },
    )
    model_dtype: str = dataclasses.field(
        default="bfloat16",
        metadata={"help": "Of the loaded weights; what trains is kept in float32 besides."},
    )
    lora_rank: int = dataclasses.field(default=16, metadata={"help": "r of LoRA."})
    lora_alpha: int = dataclasses.field(default=32, metadata={"help": "alpha of LoRA."})
    lora_dropout: float = dataclasses.field(default=0.0, metadata={"help": "Dropout of LoRA."})
    lora_targets: str = dataclasses.field(
        default=LORA_TARGETS, metadata={"help": "Regular expression of modules."}
    )

    def __post_init__(self):
        self.data = [self.data] if isinstance(self.data, str) else self.data
        self.train = names_among("train", self.train, TRAINABLE)
        self.save = names_among("save", self.save, SAVED)
        if "lora" in self.train and "language_model" in self.train:
            raise ValueError(
                "train: lora and language_model exclude each other: an adapter, or the weights themselves."
            )
        if "adapter" in self.save and "lora" not in self.train:
            raise ValueError("save: adapter needs lora among what trains.")
        if self.model_dtype not in ("bfloat16", "float16", "float32"):
            raise ValueError(
                f"model_dtype={self.model_dtype!r}; expected bfloat16, float16 or float32."
            )
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
    """Leave only the named parts trainable; LoRA's matrices are added later.

    A frozen vision tower drops nothing at random either: the projector has to learn from the features of inference.
    """
    for module in model.vision_model.modules() if "vision_model" not in train else ():
        for rate in (
            "p",
            "rate",
            "attention_dropout",
        ):  # of Dropout, StochasticDepth and VisionAttention
            if hasattr(module, rate):
                setattr(module, rate, 0.0)
    model.requires_grad_(False)
    for part in ("mlp1", "vision_model", "language_model"):
        getattr(model, part).requires_grad_(part in train)


class Trainer(SFTTrainer):
    """SFTTrainer whose checkpoints hold what trains, not the frozen 38 billion parameters besides.

    That is so on one GPU and with DDP. Under FSDP and ZeRO-3 the libraries write shards of all parameters besides.

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
        kept = {
            name: tensor.detach().contiguous()
            for name, tensor in state_dict.items()
            if name in names
        }
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    def load_finished(self, checkpoint):
        """Take weights and history of a checkpoint without training on: `train` would take one step more."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))

    def _issue_warnings_after_load(self, load_result):
        frozen = {
            name
            for name, p in self.accelerator.unwrap_model(self.model).named_parameters()
            if not p.requires_grad
        }
        absent = [
            name for name in load_result.missing_keys if name.removeprefix("module.") not in frozen
        ]
        buffers = {name for name, _ in self.accelerator.unwrap_model(self.model).named_buffers()}
        absent = [name for name in absent if name not in buffers]
        if absent or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not fit what trains: it lacks {absent[:3]} and has "
                f"{load_result.unexpected_keys[:3]} besides. Resume with the recipe it was written with, or use "
                "another output_dir."
            )

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length" or not isinstance(
            self.source, Conversations
        ):
            return super()._get_train_sampler(train_dataset)
        lengths = [self.source.length(index) for index in range(len(self.source))]
        # Of a step over all processes, so that their number does not change the order
        size = (
            self.args.train_batch_size
            * self.args.gradient_accumulation_steps
            * self.args.world_size
        )
        return GroupsOfAnEpoch(size, lengths, self.args.seed)


class GroupsOfAnEpoch(LengthGroupedSampler):
    """LengthGroupedSampler whose order depends on the epoch alone, so that a resumed training has the same."""

    def __init__(self, batch_size, lengths, seed):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return super().__iter__()


# What decides what a training gives, apart from the recipe and the data
DECISIVE = (
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "optim", "optim_args",
    "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs", "max_steps", "max_length", "seed",
    "data_seed", "train_sampling_strategy", "bf16", "fp16", "neftune_noise_alpha", "label_smoothing_factor",
)  # fmt: skip


def describe_run(recipe, config, fingerprint):
    """What has to be the same for a training to go on, as JSON has it: recipe, settings, data, samples of a step."""
    described = {**dataclasses.asdict(recipe), "data_fingerprint": fingerprint}
    described.update({name: getattr(config, name, None) for name in DECISIVE})
    at_once = config.per_device_train_batch_size * config.world_size
    described["samples of a step"] = at_once * config.gradient_accumulation_steps
    for name in ("save", "max_broken_share", "global_batch_size"):  # may change, or are in the last
        del described[name]
    return json.loads(json.dumps(described, default=str))


def check_same_run(folder, described):
    """Write down what an output directory is a run of, or see that it is of this one.

    Raises:
        ValueError: the directory has checkpoints of another run.
    """
    path = Path(folder) / "run.json"
    if path.exists() and checkpoints_of(folder):
        before = json.loads(path.read_text())
        changed = [name for name in described if before.get(name) != described[name]]
        if changed:
            was = ", ".join(
                f"{name} {before.get(name)!r}, now {described[name]!r}" for name in changed[:3]
            )
            raise ValueError(
                f"output_dir={folder} has checkpoints of another run, from which this one cannot go on ({was}). Use "
                "another output_dir, or delete that one."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(described, indent=2) + "\n")


def checkpoints_of(folder):
    """What Trainer has written below output_dir, by step; `checkpoint-200-merged` is the user's own."""
    named = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if re.fullmatch(r"checkpoint-\d+", path.name)
    ]
    return sorted(named, key=step_of)


def step_of(checkpoint):
    return int(str(checkpoint).rpartition("-")[2])


def last_checkpoint(folder):
    """The newest checkpoint that was written to its end, or None; broken ones are removed.

    A checkpoint's trainer_state.json is the last file to be written.
    """
    last = None
    for path in checkpoints_of(folder):
        try:
            json.loads((path / "trainer_state.json").read_text())["global_step"]
            last = str(path)
        except (OSError, ValueError, KeyError):
            logger.warning(f"{path} was not written to its end; it is removed.")
            shutil.rmtree(path, ignore_errors=True)
    return last


def is_at_end(config, checkpoint):
    """Whether a checkpoint is of the last of `max_steps`, beyond which Trainer would take one step more."""
    return checkpoint is not None and 0 < config.max_steps <= step_of(checkpoint)


def finished(folder, recipe, config, checkpoint):
    """The summary of a run that was finished before, or None."""
    folder = Path(folder)
    if not is_at_end(config, checkpoint):
        return None
    results = [folder / "summary.json", *(folder / name for name in recipe.save)]
    return json.loads(results[0].read_text()) if all(path.exists() for path in results) else None


def set_accumulation(config, global_batch_size):
    """gradient_accumulation_steps such that a step has `global_batch_size` samples over all processes.

    Raises:
        ValueError: it does not divide.
    """
    at_once = config.per_device_train_batch_size * config.world_size
    if global_batch_size % at_once:
        raise ValueError(
            f"global_batch_size={global_batch_size} is no multiple of {at_once}, which is per_device_train_batch_size="
            f"{config.per_device_train_batch_size} on {config.world_size} processes."
        )
    config.gradient_accumulation_steps = global_batch_size // at_once


def build_dataset(recipe, config, encoder):
    """The training data of a recipe, read and encoded as they are needed.

    Returns:
        (`datasets.Dataset` or `IterableDataset` with one column, "sample"; the `Conversations` or
        `StreamedConversations` behind it).

    Raises:
        FileNotFoundError, ValueError: see `training.data`.
    """
    sources = [source for source in recipe.data if source.startswith("datasets:")]
    if sources and len(recipe.data) > 1:
        raise ValueError("data: one `datasets:` source, or any number of JSONL files.")
    if recipe.streaming and config.max_steps <= 0:
        raise ValueError("streaming: the number of samples is not known, so max_steps is needed.")
    name = recipe.data[0]
    settings = {"image_root": recipe.image_root, "max_broken_share": recipe.max_broken_share}
    if sources:
        rows = _load_rows(name, recipe.streaming)
    if not recipe.streaming:
        if sources:
            source = ConversationTable(rows, name, encoder, **settings)
        else:
            source = ConversationFile(recipe.data, encoder, **settings)
        lines = datasets.Dataset.from_dict({"line": list(range(len(source)))})
        return lines.with_transform(
            lambda batch: {"sample": [source[line] for line in batch["line"]]}
        ), source
    fingerprint = name
    if not sources:
        missing = [path for path in recipe.data if not Path(path).is_file()]
        if missing:
            raise FileNotFoundError(f"data file {missing[0]} does not exist.")
        # Each file is a shard, which one worker reads
        rows = datasets.IterableDataset.from_generator(
            json_lines, gen_kwargs={"paths": list(recipe.data)}
        )
        fingerprint = ", ".join(f"{Path(path).stat().st_size} bytes" for path in recipe.data)
    rows = rows.shuffle(seed=config.seed, buffer_size=recipe.shuffle_buffer)
    source = StreamedConversations(rows, name, encoder, **settings, fingerprint=fingerprint)
    config.dataloader_num_workers = min(config.dataloader_num_workers, source.dataset.num_shards)
    if source.dataset.num_shards < config.world_size:
        logger.warning(
            f"streaming: {config.world_size} processes share {source.dataset.num_shards} files, so each reads and "
            "tiles all samples and leaves out the others'. Split the data into at least as many files as processes."
        )
    return source.dataset, source


def _load_rows(source, streaming):
    """The rows of `datasets:NAME[:SPLIT]`, a Hub id, a data set of files or one saved by `save_to_disk`.

    Raises:
        ValueError: a saved data set that has no such split.
    """
    _, name, *split = source.split(":", 2)
    folder = Path(name)
    if not any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return datasets.load_dataset(
            name, split=split[0] if split else "train", streaming=streaming
        )
    rows = datasets.load_from_disk(name)
    if isinstance(rows, datasets.DatasetDict):
        wanted = split[0] if split else "train"
        if wanted not in rows:
            raise ValueError(f"data: {name} has no split {wanted!r}, but {', '.join(rows)}.")
        rows = rows[wanted]
    elif split:
        raise ValueError(
            f"data: {name} was saved as one data set without splits; leave out :{split[0]}."
        )
    return rows.to_iterable_dataset() if streaming else rows


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
    if (
        config.n_gpu > 1
    ):  # transformers would replicate the model with DataParallel, which cuts tiles from their rows
        raise ValueError(
            f"{config.n_gpu} GPUs are visible to one process: start one for each with `accelerate launch --config_file "
            "training/recipes/accelerate/….yaml -m training.sft …`, or show it one with CUDA_VISIBLE_DEVICES=0."
        )
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
    if config.process_index == 0:  # before 38 billion parameters are read
        check_same_run(config.output_dir, describe_run(recipe, config, source.fingerprint))
    model = AutoModelForImageTextToText.from_pretrained(
        recipe.model, torch_dtype=getattr(torch, recipe.model_dtype), trust_remote_code=True
    )
    freeze(model, recipe.train)
    sharded = bool(config.fsdp or config.deepspeed) or _accelerate_shards()
    if sharded and "lora" in recipe.train and recipe.save != ["adapter"]:
        raise ValueError(
            "LoRA over FSDP or ZeRO-3 can only save the adapter (save: [adapter]); merge it afterwards: "
            "PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)."
        )
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
        os.environ.get(name, "false").lower() == "true"
        for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
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
    loaded = set(source.names)
    compared = [name for name in state_dict.keys() - set(trainable) if _bare(name) in loaded]
    _raise_if_changed(
        name
        for name in compared
        if not torch.equal(
            state_dict[name].cpu(), source.read(_bare(name)).to(state_dict[name].dtype)
        )
    )
    return len(compared)


def _raise_if_changed(names):
    changed = sorted(names)
    if changed:
        raise RuntimeError(
            f"{len(changed)} frozen tensors have changed, such as {changed[0]}; this must not happen."
        )


def _bare(name):
    """A parameter's name without what PEFT and wrappers put around modules."""
    for extra in ("base_model.model.", "original_module.", "module.", "_orig_mod.", "base_layer."):
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
        # Files of an earlier run's model must not stay beside new weights
        temporary = folder / "model.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        model.save_pretrained(temporary, state_dict=weights)
        shutil.rmtree(folder / "model", ignore_errors=True)
        temporary.rename(folder / "model")
    if "mlp1" in recipe.save:
        target = folder / "mlp1"
        target.mkdir(parents=True, exist_ok=True)
        kept = {
            name: w.detach().to("cpu", dtype).contiguous()
            for name, w in weights.items()
            if name.startswith("mlp1.")
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
    # The first process decides, on storage that all of them see
    decided = [None, None]
    if trainer.is_world_process_zero():
        checkpoint = last_checkpoint(folder)
        decided = [checkpoint, finished(folder, recipe, config, checkpoint)]
    checkpoint, summary = broadcast_object_list(decided)
    if summary is not None:
        return summary
    if frozen is not None and is_at_end(config, checkpoint):
        trainer.load_finished(checkpoint)  # only its results are missing
    else:
        trainer.train(resume_from_checkpoint=checkpoint)
    # ZeRO-3 leaves placeholders between steps, which remember the size
    trainable = {
        name: getattr(p, "ds_numel", p.numel())
        for name, p in trainer.model.named_parameters()
        if p.requires_grad
    }
    gathered, unchanged = None, 0
    if frozen is not None:
        unchanged = assert_frozen(trainer.accelerator.unwrap_model(trainer.model), frozen)
    else:
        gathered = trainer.accelerator.get_state_dict(
            trainer.model_wrapped
        )  # whole on the first process only
        if trainer.is_world_process_zero():
            # Of a Hub id what is in the cache
            loaded = Path(cached_file(recipe.model, "config.json", local_files_only=True)).parent
            unchanged = assert_frozen_as_loaded(gathered, loaded, trainable)
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
