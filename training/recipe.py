"""What a recipe says: `RecipeArguments`, and TRL's `SFTConfig` for everything else.

A recipe is a YAML file with fields of both; the command line overrides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# trl exports its names lazily, which static tools do not see
from transformers import IntervalStrategy
from trl import SFTConfig, TrlParser  # pyright: ignore[reportPrivateImportUsage]

from training.optimizer import RATE_OF_PART
from training.parts import ADAPTED_PART, TRAINABLE, adapters_among, names_among

if TYPE_CHECKING:
    from peft import LoraConfig

SAVED = ("model", "adapter", "mlp1")
DTYPES = ("bfloat16", "float16", "float32")
# The matrices of the decoder layers, by their names under language_model
LORA_TARGETS = (
    r"language_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)
# The matrices of the vision tower's layers
VISION_LORA_TARGETS = r"vision_model\.encoder\.layers\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"


def _described(description: str) -> dict[str, str]:
    """The metadata of a field, from which the command line takes its help."""
    return {"help": description}


@dataclasses.dataclass
class RecipeArguments:
    """What a recipe says besides TRL's SFTConfig.

    Raises:
        ValueError: values that contradict each other, by name.
    """

    model: str = dataclasses.field(
        metadata=_described("Repository to start from: a directory or a Hub id.")
    )
    data: list[str] = dataclasses.field(
        metadata=_described(
            "JSONL files; or `datasets:NAME[:SPLIT]`, where NAME is a Hub id or a directory that "
            "`datasets` can load; or a mixture of both, MIXTURE.yaml (training/mixture.py)."
        )
    )
    train: list[str] = dataclasses.field(
        default_factory=lambda: ["mlp1"],
        metadata=_described(
            f"The parts that train: some of {', '.join(TRAINABLE)}. lora is an adapter on the "
            "language model, vision_lora one on the vision tower."
        ),
    )
    save: list[str] = dataclasses.field(
        default_factory=lambda: ["model"],
        metadata=_described(
            "What is saved at the end: model (a complete repository, LoRA merged), adapter, mlp1."
        ),
    )
    image_root: str | None = dataclasses.field(
        default=None,
        metadata=_described(
            "Directory that image paths are relative to; by default that of the data file."
        ),
    )
    max_tiles: int | None = dataclasses.field(
        default=None,
        metadata=_described(
            "Largest number of tiles of an image, thumbnail not counted; by default the model's."
        ),
    )
    long_samples: str = dataclasses.field(
        default="fewer_tiles",
        metadata=_described(
            "What happens to samples longer than max_length: fewer_tiles gives their images fewer "
            "tiles, and drops them if one tile each is still too much; drop drops them."
        ),
    )
    loss_on_skipped_thinking: bool = dataclasses.field(
        default=False,
        metadata=_described(
            "From answers without </think>, a model that thinks learns to close its thinking at "
            'once. Otherwise the prompt closes it, and the result is asked with mode="no-think".'
        ),
    )
    max_broken_share: float = dataclasses.field(
        default=0.0,
        metadata=_described(
            "Largest share of broken samples to skip with a warning; exceeding it is an error."
        ),
    )
    streaming: bool = dataclasses.field(
        default=False,
        metadata=_described(
            "Read the data in their order, through a buffer that shuffles; needs max_steps."
        ),
    )
    shuffle_buffer: int = dataclasses.field(
        default=10_000, metadata=_described("Number of samples in the buffer that shuffles.")
    )
    pack_samples: bool = dataclasses.field(
        default=False,
        metadata=_described(
            "Put several samples into each row of up to max_length tokens. They do not see each "
            "other, and none is cut. Batch sizes then count rows."
        ),
    )
    global_batch_size: int | None = dataclasses.field(
        default=None,
        metadata=_described(
            "Samples (with pack_samples: rows) of an optimizer step over all processes; sets "
            "gradient_accumulation_steps."
        ),
    )
    model_dtype: str = dataclasses.field(
        default="bfloat16",
        metadata=_described(
            "Dtype of the loaded weights; the parts that train are held in float32 all the same."
        ),
    )
    load_in_4bit: bool = dataclasses.field(
        default=False,
        metadata=_described(
            "Load the decoder layers in 4 bits (bitsandbytes, nf4) and train adapters on them "
            "(QLoRA, arXiv:2305.14314)."
        ),
    )
    vision_lr: float | None = dataclasses.field(
        default=None,
        metadata=_described("Learning rate of vision_model or vision_lora, if not learning_rate."),
    )
    vision_layer_decay: float = dataclasses.field(
        default=1.0,
        metadata=_described(
            "Factor on the learning rate from a layer of vision_model to the one below, in (0, 1]."
        ),
    )
    mlp1_lr: float | None = dataclasses.field(
        default=None, metadata=_described("Learning rate of mlp1, if not learning_rate.")
    )
    language_model_lr: float | None = dataclasses.field(
        default=None,
        metadata=_described("Learning rate of language_model or lora, if not learning_rate."),
    )
    eval_data: list[str] | None = dataclasses.field(
        default=None,
        metadata=_described("Data to evaluate on while training, in the form of data."),
    )
    eval_share: float = dataclasses.field(
        default=0.0,
        metadata=_described(
            "Share of the data that is evaluated on and not trained on, in [0, 1)."
        ),
    )
    eval_answers: int = dataclasses.field(
        default=0,
        metadata=_described(
            "Number of samples to evaluate on that are also asked: eval_right is the share whose "
            "answer in the box is right."
        ),
    )
    eval_new_tokens: int = dataclasses.field(
        default=512, metadata=_described("Longest answer to such a question, in tokens.")
    )
    early_stopping_patience: int | None = dataclasses.field(
        default=None,
        metadata=_described(
            "Stop after so many evaluations without a better metric_for_best_model; needs "
            "load_best_model_at_end."
        ),
    )
    lora_rank: int = dataclasses.field(default=16, metadata=_described("Rank r of LoRA."))
    lora_alpha: int = dataclasses.field(default=32, metadata=_described("Scale alpha of LoRA."))
    lora_dropout: float = dataclasses.field(default=0.0, metadata=_described("Dropout of LoRA."))
    lora_targets: str = dataclasses.field(
        default=LORA_TARGETS,
        metadata=_described("Regular expression for the names of the modules that get lora."),
    )

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            self.data = [self.data]
        self.train = names_among("train", self.train, TRAINABLE)
        self.save = names_among("save", self.save, SAVED)
        self._check_adapters()
        if self.model_dtype not in DTYPES:
            raise ValueError(
                f"model_dtype={self.model_dtype!r}; expected bfloat16, float16 or float32."
            )
        if not 0 <= self.max_broken_share < 1:
            raise ValueError(f"max_broken_share={self.max_broken_share} must be in [0, 1).")
        if self.pack_samples and self.streaming:
            raise ValueError("pack_samples needs the lengths of all samples: not with streaming.")
        self._check_rates()
        self._check_evaluation()

    def _check_adapters(self) -> None:
        """Raise ValueError for adapters beside what they adapt, or 4 bits that cannot be saved."""
        adapters = adapters_among(self.train)
        for adapter in adapters:
            if ADAPTED_PART[adapter] in self.train:
                raise ValueError(
                    f"train: {adapter} and {ADAPTED_PART[adapter]} exclude each other: an adapter, "
                    "or the weights themselves."
                )
        if "adapter" in self.save and not adapters:
            raise ValueError("save: adapter needs lora or vision_lora among what trains.")
        if not self.load_in_4bit:
            return
        if "language_model" in self.train:
            raise ValueError("load_in_4bit: 4-bit weights cannot train; train lora instead.")
        if not adapters:
            raise ValueError(
                "load_in_4bit needs lora or vision_lora among what trains: transformers trains a "
                "quantized model through adapters only."
            )
        if self.model_dtype != "bfloat16":
            raise ValueError(
                f"load_in_4bit: model_dtype={self.model_dtype}; expected bfloat16, in which 4-bit "
                "layers compute."
            )
        if self.save != ["adapter"]:
            raise ValueError(
                f"load_in_4bit: save [adapter], not {self.save}: the weights at hand are rounded "
                "to 4 bits. Merge the adapter into the model in its own dtype (docs/train.md)."
            )

    def _check_rates(self) -> None:
        """Raise ValueError for learning rates that are none, or of parts that do not train."""
        if not 0 < self.vision_layer_decay <= 1:
            raise ValueError(f"vision_layer_decay={self.vision_layer_decay} must be in (0, 1].")
        trained = {ADAPTED_PART.get(part, part) for part in self.train}
        for part, key in RATE_OF_PART.items():
            rate = getattr(self, key)
            if rate is not None and part not in trained:
                raise ValueError(
                    f"{key}={rate:g}, but train: {self.train} does not name {part}. Name it, or "
                    f"leave out {key}."
                )
            if rate is not None and rate <= 0:
                raise ValueError(f"{key}={rate:g} must be above 0.")
        if self.vision_layer_decay != 1 and "vision_model" not in trained:
            raise ValueError("vision_layer_decay needs vision_model among what trains.")

    def _check_evaluation(self) -> None:
        """Raise ValueError for an evaluation without data, or of contradictory data."""
        if isinstance(self.eval_data, str):
            self.eval_data = [self.eval_data]
        if not 0 <= self.eval_share < 1:
            raise ValueError(f"eval_share={self.eval_share} must be in [0, 1).")
        if self.eval_data and self.eval_share:
            raise ValueError(
                "eval_data and eval_share exclude each other: data of its own, or a share."
            )
        if self.eval_share and self.streaming:
            raise ValueError("eval_share: a stream has no share to take; name eval_data.")
        if self.eval_answers < 0 or self.eval_new_tokens < 1:
            raise ValueError(
                f"eval_answers={self.eval_answers} and eval_new_tokens={self.eval_new_tokens}: "
                "expected at least 0 and 1."
            )
        if not self.is_evaluated and (self.eval_answers or self.early_stopping_patience):
            raise ValueError(
                "eval_answers and early_stopping_patience need eval_data or eval_share."
            )

    @property
    def is_evaluated(self) -> bool:
        """Whether there are data to evaluate on."""
        return bool(self.eval_data or self.eval_share)


PREPARED_HERE = "samples are encoded and put together here, not by TRL"
LOSS_ON_ANSWERS = "the loss is on answers, and on nothing else"
PROMPT_OF_MODEL = "the prompt is that of the model's own template and tokens"
# Settings of TRL's SFTConfig that would change nothing, and why
WITHOUT_EFFECT = {
    "dataset_kwargs": PREPARED_HERE,
    "dataset_num_proc": PREPARED_HERE,
    "dataset_text_field": PREPARED_HERE,
    "packing": "name pack_samples, which knows images",
    "packing_strategy": PREPARED_HERE,
    "eval_packing": PREPARED_HERE,
    "padding_free": PREPARED_HERE,
    "pad_to_multiple_of": PREPARED_HERE,
    "shuffle_dataset": "Trainer shuffles by itself (train_sampling_strategy: random)",
    "truncation_mode": "a sample is never cut; see long_samples",
    "completion_only_loss": LOSS_ON_ANSWERS,
    "assistant_only_loss": LOSS_ON_ANSWERS,
    "chat_template_path": PROMPT_OF_MODEL,
    "eos_token": PROMPT_OF_MODEL,
    "pad_token": PROMPT_OF_MODEL,
    "router_aux_loss_coef": "the model has no experts",
}
# Keywords of from_pretrained that a recipe says otherwise
SAID_OTHERWISE = {
    "dtype": "model_dtype",
    "torch_dtype": "model_dtype",
    "trust_remote_code": "it is always trusted",
    "device_map": "accelerate places the model",
    "revision": "name a local directory of that revision as model",
}


@dataclasses.dataclass
class TrainingConfig(SFTConfig):
    """TRL's settings for samples that are encoded here.

    It skips TRL's dataset preparation and keeps all columns.

    Raises:
        ValueError: a setting that would change nothing, by name.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(SFTConfig):
            value = getattr(self, field.name)
            if field.name in WITHOUT_EFFECT and value != field.default:
                raise ValueError(
                    f"{field.name}={value!r} has no effect: {WITHOUT_EFFECT[field.name]}. Leave it "
                    "out."
                )
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self.remove_unused_columns = False
        super().__post_init__()
        for name in self.model_init_kwargs or {}:
            if name in SAID_OTHERWISE:
                raise ValueError(
                    f"model_init_kwargs: {name} cannot be given here: {SAID_OTHERWISE[name]}."
                )


def parse(arguments: Sequence[str] | None = None) -> tuple[RecipeArguments, TrainingConfig]:
    """The recipe and the settings of a command line.

    Args:
        arguments: by default those of the process.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    dataclass_types: Any = [RecipeArguments, TrainingConfig]
    parser: Any = TrlParser(dataclass_types, allow_abbrev=False)
    return parser.parse_args_and_config(arguments)


def lora_config(recipe: RecipeArguments) -> LoraConfig | None:
    """PEFT's config of the recipe's adapters, or None for a recipe without LoRA."""
    targets = []
    if "lora" in recipe.train:
        targets.append(f"({recipe.lora_targets})")
    if "vision_lora" in recipe.train:
        targets.append(f"({VISION_LORA_TARGETS})")
    if not targets:
        return None
    from peft import LoraConfig  # only LoRA needs PEFT

    whole_modules = [part for part in recipe.train if part in ("mlp1", "vision_model")]
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="|".join(targets),
        modules_to_save=whole_modules or None,
        task_type="CAUSAL_LM",
    )


def set_accumulation(config: TrainingConfig, global_batch_size: int) -> None:
    """Set the gradient_accumulation_steps with which a step has `global_batch_size` samples.

    Args:
        config: changed in place.
        global_batch_size: number of samples of an optimizer step over all processes.

    Raises:
        ValueError: the samples cannot be divided over the processes and their batches.
    """
    at_once = config.per_device_train_batch_size * config.world_size
    if global_batch_size % at_once:
        raise ValueError(
            f"global_batch_size={global_batch_size} is no multiple of {at_once}, which is "
            f"per_device_train_batch_size={config.per_device_train_batch_size} on "
            f"{config.world_size} processes."
        )
    config.gradient_accumulation_steps = global_batch_size // at_once


def set_evaluation(recipe: RecipeArguments, config: TrainingConfig) -> None:
    """Set what follows for evaluations while training.

    Without another word there is one at the end of each epoch; its batches are those of training,
    and logits, which are large, are not kept.

    Args:
        config: changed in place.

    Raises:
        ValueError: evaluations without data.
    """
    config.prediction_loss_only = True
    if config.eval_strategy != "no" and not recipe.is_evaluated:
        raise ValueError(
            f"eval_strategy={config.eval_strategy!s} needs data: set eval_data or eval_share."
        )
    if not recipe.is_evaluated:
        return
    if config.eval_strategy == "no":
        config.eval_strategy = IntervalStrategy.EPOCH
    if config.per_device_eval_batch_size == TrainingConfig.per_device_eval_batch_size:
        config.per_device_eval_batch_size = config.per_device_train_batch_size
