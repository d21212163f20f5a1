"""The published code of the model card, which the benchmarks compare with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

MODEL_CARD = Path(__file__).resolve().parents[1] / "docs" / "published_model_card.md"
LOADING_STARTS = "path = 'Skywork"  # where the model card's code goes on to load the model


def model_card_code() -> str:
    """The Python block of the model card, as it was published.

    Raises:
        ValueError: the model card has no Python block.
    """
    text = MODEL_CARD.read_text(encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    if block is None:
        raise ValueError(f"{MODEL_CARD} has no block that starts with ```python.")
    return block.group(1)


def model_card_functions() -> dict[str, Any]:
    """Everything that the model card's code defines before it loads the model, by name."""
    namespace: dict[str, Any] = {}
    exec(model_card_code().split(LOADING_STARTS)[0], namespace)
    return namespace
