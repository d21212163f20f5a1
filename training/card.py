"""The model card of what a training leaves: base, data, recipe, figures, and how to load it."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any

from training.recipe import RecipeArguments, TrainingConfig

LOADING = {
    "model": """\
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{path}", torch_dtype="auto", trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained("{path}", trust_remote_code=True)
print(model.chat(tokenizer, "picture.png", "What is in the picture?", {{"max_new_tokens": 512}}))
""",
    "adapter": """\
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained(
    "{base}", torch_dtype="auto", trust_remote_code=True
)
model = PeftModel.from_pretrained(base, "{path}").eval()
""",
    "mlp1": """\
python -m training.assemble out --vision {base} --language-model {base} --mlp1 {path}
""",
}
KINDS = {
    "model": "a complete repository",
    "adapter": "a LoRA adapter",
    "mlp1": "a projector (`mlp1`)",
}
# Settings of Trainer that are worth a line
SETTINGS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "optim",
    "num_train_epochs",
    "max_steps",
    "max_length",
    "seed",
)
PACKAGES = ("torch", "transformers", "trl", "peft")


def model_card(
    recipe: RecipeArguments, config: TrainingConfig, summary: dict[str, Any], result: str
) -> str:
    """A model card in Markdown, with the metadata that the Hugging Face Hub reads.

    Args:
        recipe: of the training.
        config: TRL's settings of it.
        summary: what came out, as in summary.json.
        result: which of the results it is for, a key of `KINDS`.
    """
    path = str(Path(str(config.output_dir)) / result)
    loading = LOADING[result].format(path=path, base=recipe.model)
    language = "bash" if result == "mlp1" else "python"
    return f"""\
{_metadata(recipe, result)}
# {Path(str(config.output_dir)).name}

This is {KINDS[result]}, made by supervised training of {" and ".join(recipe.train)} of
`{recipe.model}` on {", ".join(f"`{name}`" for name in recipe.data)}.

## How to load it

```{language}
{loading}```

## Figures

{_table(_figures(summary))}

## Recipe

{_table(_settings(recipe, config))}

Trained with {", ".join(f"{name} {version(name)}" for name in PACKAGES)}.
"""


def _metadata(recipe: RecipeArguments, result: str) -> str:
    """The YAML in front; a base that is a directory has no name on the Hub."""
    lines = [
        f"library_name: {'peft' if result == 'adapter' else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags: [skywork-r1v, sft, trl]",
    ]
    if not Path(recipe.model).exists():
        lines.append(f"base_model: {recipe.model}")
    return "\n".join(["---", *lines, "---"])


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What came out, without the sizes of files."""
    figures = {}
    for name, value in summary.items():
        if isinstance(value, dict):
            figures.update({f"{name}, {key}": inner for key, inner in value.items()})
        elif value is not None:
            figures[name] = value
    return figures


def _settings(recipe: RecipeArguments, config: TrainingConfig) -> dict[str, Any]:
    """What of a recipe differs from its default, and Trainer's main settings."""
    settings = {}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        is_default = value == field.default or field.name in ("model", "data", "save", "train")
        if not is_default:
            settings[field.name] = value
    for name in SETTINGS:
        settings[name] = getattr(config, name)
    settings["samples of a step"] = (
        config.per_device_train_batch_size * config.gradient_accumulation_steps * config.world_size
    )
    return settings


def _table(rows: dict[str, Any]) -> str:
    lines = ["| what | value |", "|---|---|"]
    for name, value in rows.items():
        shown = getattr(value, "value", value)  # of an enumeration
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines)
