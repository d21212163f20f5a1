"""Silences, by name, what libraries say that nobody who trains can do anything about.

Everything else that they say is left alone.
"""

from __future__ import annotations

import logging
import warnings
from typing import NamedTuple


class Noise(NamedTuple):
    """A warning that is not shown.

    Attributes:
        text: what it begins with.
        logger: the logger that it goes through; None for one of Python's `warnings`.
        reason: why it helps nobody.
    """

    text: str
    logger: str | None
    reason: str


NOISES = (
    Noise(
        "<enum '",
        "torch.utils._pytree",
        "torchao 0.18 registers its enumerations in the way that torch 2.14 has deprecated",
    ),
    Noise(
        "`torch_dtype` is deprecated",
        "transformers.configuration_utils",
        "config.json keeps the name that transformers before 4.56 reads",
    ),
    Noise(
        "`gradient_checkpointing` is deprecated",
        None,
        "transformers 5.24 renames the setting; the recipes keep the name that TRL 1.16 knows",
    ),
    Noise(
        "Passing `repetition_penalty` with `inputs_embeds`",
        None,
        "a penalty on the chain alone is what distillation wants: see training/distill/generate.py",
    ),
)


class _Filter(logging.Filter):
    """Lets everything pass that does not begin with a text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.text)


def silence_libraries() -> None:
    """Show none of `NOISES` from now on."""
    for noise in NOISES:
        if noise.logger is None:
            warnings.filterwarnings("ignore", message=noise.text)
        else:
            logging.getLogger(noise.logger).addFilter(_Filter(noise.text))
