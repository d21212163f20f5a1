"""What a recipe says: `RecipeArguments`, and TRL's `SFTConfig` for everything else.

A recipe is a YAML file with fields of both; the command line overrides it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

# trl exports its names lazily, which static tools do not see
from trl import SFTConfig, TrlParser  # pyright: ignore[reportPrivateImportUsage]

from training.parts import TRAINABLE, names_among

if TYPE_CHECKING:
    from peft import LoraConfig

SAVED = ("model", "adapter", "mlp1")
DTYPES = ("bfloat16", "float16", "float32")
# The matrices of the decoder layers, by their names under language_model
LORA_TARGETS = (
    r"language_model\.model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
)


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
            "`datasets` can load."
        )
    )
    train: list[str] = dataclasses.field(
        default_factory=lambda: ["mlp1"],
        metadata=_described(
            f"The parts that train: some of {', '.join(TRAINABLE)}. lora is on the language model."
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
    global_batch_size: int | None = dataclasses.field(
        default=None,
        metadata=_described(
            "Samples of an optimizer step over all processes; sets gradient_accumulation_steps."
        ),
    )
    model_dtype: str = dataclasses.field(
        default="bfloat16",
        metadata=_described(
            "Dtype of the loaded weights; the parts that train are held in float32 all the same."
        ),
    )
    lora_rank: int = dataclasses.field(default=16, metadata=_described("Rank r of LoRA."))
    lora_alpha: int = dataclasses.field(default=32, metadata=_described("Scale alpha of LoRA."))
    lora_dropout: float = dataclasses.field(default=0.0, metadata=_described("Dropout of LoRA."))
    lora_targets: str = dataclasses.field(
        default=LORA_TARGETS,
        metadata=_described("Regular expression for the names of the modules that get LoRA."),
    )

    def __post_init__(self) -> None:
        if isinstance(self.data, str):
            self.data = [self.data]
        self.train = names_among("train", self.train, TRAINABLE)
        self.save = names_among("save", self.save, SAVED)
        if "lora" in self.train and "language_model" in self.train:
            raise ValueError(
                "train: lora and language_model exclude each other: an adapter, or the weights "
                "themselves."
            )
        if "adapter" in self.save and "lora" not in self.train:
            raise ValueError("save: adapter needs lora among what trains.")
        if self.model_dtype not in DTYPES:
            raise ValueError(
                f"model_dtype={self.model_dtype!r}; expected bfloat16, float16 or float32."
            )
        if not 0 <= self.max_broken_share < 1:
            raise ValueError(f"max_broken_share={self.max_broken_share} must be in [0, 1).")


@dataclasses.dataclass
class TrainingConfig(SFTConfig):
    """TRL's settings for samples that are encoded here.

    It skips TRL's dataset preparation and keeps all columns.
    """

    def __post_init__(self) -> None:
        self.dataset_kwargs = {"skip_prepare_dataset": True}
        self.remove_unused_columns = False
        super().__post_init__()


def parse(arguments: Sequence[str] | None = None) -> tuple[RecipeArguments, TrainingConfig]:
    """The recipe and the settings of a command line.

    Args:
        arguments: by default those of the process.

    Raises:
        ValueError: an unknown key, or a value that does not fit.
    """
    dataclass_types: Any = [RecipeArguments, TrainingConfig]
    parser: Any = TrlParser(dataclass_types)
    return parser.parse_args_and_config(arguments)


def lora_config(recipe: RecipeArguments) -> LoraConfig | None:
    """PEFT's config of the recipe's adapter, or None for a recipe without LoRA."""
    if "lora" not in recipe.train:
        return None
    from peft import LoraConfig  # only LoRA needs PEFT

    whole_modules = [part for part in recipe.train if part in ("mlp1", "vision_model")]
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=recipe.lora_targets,
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
