"""Decoding with a static cache and compiled code, and a compiler backend for CPUs.

`cache_implementation="static"` means compiled decoding on every device. transformers compiles by
itself on a GPU only.

At batch 1 a decoding step reads every weight once, so a matrix-vector product could be as fast as
memory is. The library calls of torch are far from that: 17 of 48 GB/s in float32 on two cores of an
AMD EPYC with torch 2.15, and each call costs more than the product itself where the matrix is
small. `cpu_backend` therefore rewrites these products as a multiplication and a sum, which inductor
compiles into fused loops over the rows of the weight, on all cores. benchmarks/NOTES.md has the
figures by machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from packaging import version
from torch._subclasses.fake_tensor import FakeTensor
from transformers import GenerationConfig

from .transformers_compat import NUM_PREFIX_IDS, SHARES_STATIC_CACHE

TORCH_VERSION = version.parse(torch.__version__).release
STATIC_CACHE_LOCK = threading.Lock()
CACHES_KEPT_ON_THE_MODEL = ("static", "offloaded_static", "sliding_window", "hybrid")
# Number of elements of a weight up to which half-precision products are rewritten. The library's
# products are as fast from there on.
SMALL_WEIGHT = 1 << 20


def requested_cache(
    keywords: dict[str, Any], generation_config: GenerationConfig | None
) -> str | None:
    """The `cache_implementation` that a call of `generate` asks for."""
    in_config = getattr(generation_config, "cache_implementation", None)
    return keywords.get("cache_implementation") or in_config


def with_compiled_decoding(
    keywords: dict[str, Any], generation_config: GenerationConfig | None, device: torch.device
) -> dict[str, Any]:
    """Keywords for `generate` with which a static cache means compiled decoding.

    transformers compiles by itself where the cache is static (from 4.47), but on a CPU only if the
    compile config asks for it. Before 4.47 a static cache is just a cache.
    """
    given = keywords.get("compile_config") or getattr(generation_config, "compile_config", None)
    CompileConfig = getattr(transformers, "CompileConfig", None)
    is_static = requested_cache(keywords, generation_config) == "static"
    if not is_static or given is not None or CompileConfig is None:
        return keywords
    if device.type == "cpu":
        compile_config = CompileConfig(mode="default", backend=cpu_backend)
        compile_config._compile_all_devices = True
        return {**keywords, "compile_config": compile_config}
    in_main_thread = threading.current_thread() is threading.main_thread()
    if TORCH_VERSION < (2, 13) and not in_main_thread:
        # The default of transformers, "reduce-overhead", has CUDA graphs. They fail in a thread
        # that torch did not start, such as that of chat_stream() (pytorch issue 123177).
        return {**keywords, "compile_config": CompileConfig(mode="default")}
    return keywords


@contextlib.contextmanager
def one_static_cache_at_a_time(
    keywords: dict[str, Any], generation_config: GenerationConfig | None
) -> Iterator[None]:
    """Keep threads apart while they generate with a cache that the model has only once."""
    cache = requested_cache(keywords, generation_config)
    if SHARES_STATIC_CACHE and cache in CACHES_KEPT_ON_THE_MODEL:
        with STATIC_CACHE_LOCK:
            yield
    else:
        yield


def generate_from_embeddings(
    language_model: Any,
    inputs_embeds: torch.Tensor,
    generation_config: GenerationConfig | None = None,
    **keywords: Any,
) -> Any:
    """`generate` of the language model, which gives the new tokens only.

    Args:
        inputs_embeds: (batch, length, H).
        keywords: of transformers' `generate`.

    Returns:
        (batch, new tokens); with `return_dict_in_generate` an output whose `sequences` are that.
    """
    keywords = with_compiled_decoding(keywords, generation_config, inputs_embeds.device)
    keywords["generation_config"] = generation_config
    with one_static_cache_at_a_time(keywords, generation_config):
        output = language_model.generate(inputs_embeds=inputs_embeds, **keywords)
    if torch.is_tensor(output):
        return output[:, NUM_PREFIX_IDS:]
    output.sequences = output.sequences[:, NUM_PREFIX_IDS:]
    return output


# -- the compiler backend for CPUs -----------------------------------------------------------------


def cpu_backend(graph_module: torch.fx.GraphModule, example_inputs: list[torch.Tensor]) -> Any:
    """The backend "inductor" after `rewrite_vector_products`; for `torch.compile(backend=...)`."""
    rewrite_vector_products(graph_module)
    return torch._dynamo.lookup_backend("inductor")(graph_module, example_inputs)


def rewrite_vector_products(graph_module: torch.fx.GraphModule) -> int:
    """Replace every `linear` of a single row by a multiplication and a sum, in place.

    Returns:
        How many were replaced.
    """
    replaced = 0
    for node in list(graph_module.graph.nodes):
        is_linear = node.target is torch.nn.functional.linear
        if node.op == "call_function" and is_linear and _rewrite(node):
            replaced += 1
    graph_module.recompile()
    return replaced


def _rewrite(node: torch.fx.Node) -> bool:
    """Rewrite one `linear` if it is a product of a single row; says whether it was."""
    arguments: dict[str, Any] = dict(zip(("input", "weight", "bias"), node.args))
    arguments.update(node.kwargs)
    rows = arguments["input"]
    weight = arguments["weight"]
    bias = arguments.get("bias")
    if not _is_single_row(rows.meta.get("example_value"), weight.meta.get("example_value")):
        return False
    graph = node.graph
    with graph.inserting_before(node):
        row = graph.call_function(torch.unsqueeze, (rows, -2))
        products = graph.call_function(torch.mul, (row, weight))
        result = graph.call_function(torch.sum, (products, -1))
        if bias is not None:
            result = graph.call_function(torch.add, (result, bias))
    node.replace_all_uses_with(result)
    graph.erase_node(node)
    return True


def _is_single_row(rows: Any, weight: Any) -> bool:
    """Whether `rows` (..., in) is one row whose product with `weight` (out, in) gains by it."""
    if not isinstance(rows, FakeTensor) or not isinstance(weight, FakeTensor):
        return False  # quantized weights have types of their own
    # A dynamic size is a symbol, even where it happens to be 1.
    if not all(isinstance(size, int) and size == 1 for size in rows.shape[:-1]):
        return False
    return weight.dtype == torch.float32 or weight.numel() <= SMALL_WEIGHT
