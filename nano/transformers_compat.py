"""Every difference between transformers versions that the model code has to know.

Each branch names the version and the reason. All other files read as if there were one version.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import transformers
from packaging import version
from torch import nn

# The oldest and the newest minor version that the tests run on; requirements.txt and the
# documentation are checked against it.
SUPPORTED_VERSIONS = ("4.37", "5.24")
TRANSFORMERS_VERSION = version.parse(transformers.__version__)


def at_least(minimum: str) -> bool:
    """Whether the installed transformers is `minimum` or newer; its development builds count."""
    return TRANSFORMERS_VERSION.release >= version.parse(minimum).release


# Up to 4.37 `generate(inputs_embeds=...)` puts a begin-of-sentence token in front of what it
# returns. Later versions return the generated ids alone.
NUM_PREFIX_IDS = 0 if at_least("4.38") else 1

# Up to 4.37 the positions of `inputs_embeds` do not count against `max_length`.
EMBEDDINGS_COUNT_IN_MAX_LENGTH = at_least("4.38")

# From 4.53 on `auto_map` can name a class in a folder, such as "preprocessor/module.Class".
LOADS_CLASSES_FROM_FOLDERS = at_least("4.53")

# From 5.24 on the keyword of the cache, and the field of an output that has it, is `cache`.
CACHE_NAME = "cache" if at_least("5.24") else "past_key_values"

# Up to 5.14 a static cache is kept on the model, and every call of `generate` gets the same one.
SHARES_STATIC_CACHE = not at_least("5.15")

# Up to 4.57 every generation config has a `max_length` of 20 that nobody asked for.
UNREQUESTED_MAX_LENGTH = 20


def fill_unless_loaded(parameter: torch.Tensor | None, method: str, *arguments: float) -> None:
    """Initialise a parameter in place, unless it is None or a checkpoint has filled it.

    From 5.0 on `_init_weights` runs after loading. Up to 5.12 it also runs for a module of which
    the file had only some of the parameters; loading marks those with `_is_hf_initialized`.

    Args:
        method: of the tensor, such as `"normal_"` or `"fill_"`.
        arguments: of that method.
    """
    if parameter is not None and not getattr(parameter, "_is_hf_initialized", False):
        getattr(parameter.data, method)(*arguments)


def accepted_keywords(module: nn.Module, keywords: dict[str, Any]) -> dict[str, Any]:
    """Those of `keywords` that the module's forward takes; decoders take any only since 4.46."""
    parameters = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return {name: value for name, value in keywords.items() if name in parameters}


def given_cache(past_key_values: Any, keywords: dict[str, Any]) -> Any:
    """The cache that a call was given under either of its names.

    Args:
        keywords: of the call; `cache` is removed from them.
    """
    cache = keywords.pop("cache", None)
    return past_key_values if cache is None else cache


def cached_length(past_key_values: Any) -> int:
    """Number of positions in a cache, which before 4.46 may be a tuple of (key, value) pairs."""
    if past_key_values is None:
        return 0
    if hasattr(past_key_values, "get_seq_length"):
        return int(past_key_values.get_seq_length())
    return past_key_values[0][0].shape[-2] if past_key_values else 0


def stopping_decision(stop: bool, input_ids: torch.Tensor) -> torch.Tensor | bool:
    """A stopping criterion's answer: one for each row since 4.39, one for all rows before."""
    if at_least("4.39"):
        return input_ids.new_full((len(input_ids),), stop, dtype=torch.bool)
    return stop


def with_dtype_keyword(keywords: dict[str, Any]) -> dict[str, Any]:
    """A copy in which the dtype has the name it has in this version: `dtype` from 4.56 on."""
    keywords = dict(keywords)
    if at_least("4.56"):
        if "torch_dtype" in keywords:
            keywords.setdefault("dtype", keywords.pop("torch_dtype"))
    elif "dtype" in keywords:
        keywords["torch_dtype"] = keywords.pop("dtype")
    return keywords


def default_loading_dtype() -> torch.dtype | str:
    """The dtype of a model that is loaded without naming one: since 5.0 as it was saved."""
    return "auto" if at_least("5.0") else torch.float32


def loads_meta_first() -> bool:
    """Whether loading always takes little memory, and has no keyword for it: since 5.0."""
    return at_least("5.0")


def commit_of(config: Any) -> str | None:
    """The commit of the Hub repository that a config came from; versions up to 5.17 keep it."""
    return getattr(config, "_commit_hash", None)
