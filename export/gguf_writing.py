"""A GGUF file from metadata and tensors, one tensor in memory at a time.

The file takes its name when it is whole (see `durable`).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import durable

DTYPES = ("f32", "f16", "bf16", "q8_0")
SUFFIXES = (".weight", ".bias")  # which the library's table of names leaves out
# Tensors that llama.cpp computes with in float32 whatever the file's dtype is
KEPT_IN_FLOAT32 = ("v.patch_embd.", "v.position_embd.")


@dataclasses.dataclass(frozen=True)
class TensorSource:
    """A tensor of the file: its name there, its shape in torch's order, and how to read it."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class GgufContent:
    """What goes into one file.

    Attributes:
        architecture: as llama.cpp calls the class that computes it: "qwen2" or "clip".
        kind: "model", or "mmproj" for a vision part.
        name: of the model.
        describe: adds the further metadata to a `gguf.GGUFWriter`.
        tensors: in the order in which they are written.
    """

    architecture: str
    kind: str
    name: str
    describe: Callable[[Any], None]
    tensors: list[TensorSource]


def library() -> Any:
    """The package `gguf`.

    Raises:
        ImportError: it is not installed, with the command that installs it.
    """
    return _package("gguf", "gguf")


def _package(name: str, distribution: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"{distribution} is needed: pip install {distribution}") from error


def named_tensor(
    names: Any, name: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor], source: str
) -> TensorSource:
    """A tensor under llama.cpp's name for it.

    Args:
        names: a `gguf.TensorNameMap`.
        name: as the map knows the tensor.
        shape: in torch's order.
        read: gives the tensor.
        source: what the checkpoint calls it, for the error.

    Raises:
        ValueError: the map has no such name.
    """
    target = names.get_name(name, try_suffixes=SUFFIXES)
    if target is None:
        raise ValueError(f"llama.cpp's class has no tensor like {source} of the checkpoint.")
    return TensorSource(target, shape, read)


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a dtype that files are not written in."""
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is not written here: expected one of {', '.join(DTYPES)}. Others are "
            "quantizations of llama.cpp (quantize='Q4_K_M')."
        )


def storage_type(tensor: TensorSource, dtype: str) -> Any:
    """The `gguf.GGMLQuantizationType` that a tensor is stored in.

    Vectors, position embeddings and the patch embedding are stored in float32. A matrix whose rows
    are no whole number of q8_0's blocks of 32 is stored in float16.
    """
    types = library().GGMLQuantizationType
    if len(tensor.shape) == 1 or tensor.name.startswith(KEPT_IN_FLOAT32):
        return types.F32
    chosen = types[dtype.upper()]
    block, _ = library().GGML_QUANT_SIZES[chosen]
    return types.F16 if tensor.shape[-1] % block else chosen


def stored_bytes(shape: tuple[int, ...], kind: Any) -> int:
    """Bytes of a tensor of a shape, stored as a `gguf.GGMLQuantizationType`."""
    block, block_bytes = library().GGML_QUANT_SIZES[kind]
    return math.prod(shape) // block * block_bytes


def write(path: Path, content: GgufContent, dtype: str) -> None:
    """Write a file whose matrices have a dtype of `DTYPES`."""
    gguf = library()
    kinds = [storage_type(tensor, dtype) for tensor in content.tensors]
    with durable.replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, content.architecture)
        writer.add_type(content.kind)
        writer.add_name(content.name)
        content.describe(writer)
        writer.add_file_type(_file_type(dtype))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for tensor, kind in zip(content.tensors, kinds):
            size = stored_bytes(tensor.shape, kind)
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype("float32"), size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in tqdm(list(zip(content.tensors, kinds)), desc=path.name, unit="tensors"):
            values = tensor.read().to(torch.float32).reshape(tensor.shape).contiguous().numpy()
            writer.write_tensor_data(gguf.quants.quantize(values, kind))
        writer.close()
        durable.flush(temporary)


def _file_type(dtype: str) -> int:
    types = library().LlamaFileType
    return types.ALL_F32 if dtype == "f32" else types[f"MOSTLY_{dtype.upper()}"]


def check_quantization(name: str) -> None:
    """Check that llama.cpp has a quantization.

    Raises:
        ImportError: llama-cpp-python is not installed.
        ValueError: no quantization has this name.
    """
    _quantization(name)


def _quantization(name: str) -> int:
    llama_cpp = _package("llama_cpp", "llama-cpp-python")
    prefix = "LLAMA_FTYPE_MOSTLY_"
    known = [entry.removeprefix(prefix) for entry in dir(llama_cpp) if entry.startswith(prefix)]
    if name not in known:
        raise ValueError(
            f"quantize={name!r} is no quantization of llama.cpp: expected one of "
            f"{', '.join(sorted(known))}."
        )
    return getattr(llama_cpp, prefix + name)


def quantize(source: Path, target: Path, name: str) -> None:
    """Quantize a file by llama.cpp.

    Raises:
        ValueError: llama.cpp refuses the file; its own message is on stderr.
    """
    llama_cpp = _package("llama_cpp", "llama-cpp-python")
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = _quantization(name)
    with durable.replacing(target) as temporary:
        failed = llama_cpp.llama_model_quantize(
            str(source).encode(), str(temporary).encode(), llama_cpp.ctypes.byref(settings)
        )
        if failed:
            raise ValueError(
                f"llama.cpp could not quantize {source} to {name}; see its message above."
            )
        durable.flush(temporary)
