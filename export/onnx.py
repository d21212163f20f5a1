"""Writes the vision part of a checkpoint as an ONNX file: pixels of tiles to features of tokens.

    pip install onnx onnxscript
    python -m export.onnx Skywork-R1V-38B out
    python -m export.onnx nano out --dtype float16

`out` then has `vision.onnx` and, beside it, the weights in `vision.onnx.data`. Its input is
`pixel_values` (tiles, 3, side, side) as the image processor makes them, for any number of tiles;
its output is `features` (tiles, tokens of a tile, width of the language model). Only the weights of
the vision tower and the projector are read.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import durable
from memory import sizes
from training.checkpoint import Checkpoint
from training.command_line import argument_parser, exit_code

DTYPES = ("float32", "float16")
PARTS = ("vision_model", "mlp1")
PACKAGES = ("onnx", "onnxscript")
NAME = "vision.onnx"


class VisionPart(nn.Module):
    """The vision tower and the projector, as one function of pixels."""

    def __init__(self, model: sizes.Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Features (tiles, tokens, width) of pixels (tiles, 3, side, side)."""
        return self.model.extract_feature(pixel_values)


def load_vision_part(folder: str | Path, dtype: torch.dtype = torch.float32) -> VisionPart:
    """The vision part of a checkpoint, without the language model ever in memory.

    Raises:
        FileNotFoundError: not a checkpoint's directory.
    """
    model = sizes.model_without_weights(sizes.load_config(folder))
    model.language_model = nn.Identity()
    for name in PARTS:
        checkpoint = Checkpoint(folder, prefix=f"{name}.")
        weights = {key: checkpoint.read(key).to(dtype) for key in checkpoint.names}
        getattr(model, name).load_state_dict(weights, assign=True)
    return VisionPart(model).eval()


def export(folder: str | Path, out: str | Path, dtype: str = "float32") -> Path:
    """Write the vision part of a checkpoint.

    Args:
        folder: the checkpoint's directory.
        out: a directory for the file and its weights, made anew.
        dtype: of weights, pixels and features: "float32" or "float16".

    Returns:
        The ONNX file.

    Raises:
        FileNotFoundError: not a checkpoint's directory.
        ImportError: onnx or onnxscript is not installed.
        ValueError: another dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not written: expected one of {', '.join(DTYPES)}.")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is needed: pip install {' '.join(missing)}")
    out = Path(out)
    torch_dtype = getattr(torch, dtype)
    part = load_vision_part(folder, torch_dtype)
    side = part.model.config.vision_config.image_size
    tiles = torch.export.Dim("tiles", min=1)
    with durable.new_directory(out) as temporary, torch.no_grad():
        torch.onnx.export(
            part,
            (torch.zeros(2, 3, side, side, dtype=torch_dtype),),
            temporary / NAME,
            input_names=["pixel_values"],
            output_names=["features"],
            dynamic_shapes={"pixel_values": {0: tiles}},
            external_data=True,
            dynamo=True,
            verbose=False,
        )
    return out / NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 after an error that is printed in one line.
    """
    parser = argument_parser("export.onnx", __doc__)
    parser.add_argument("model", help="a checkpoint's directory")
    parser.add_argument("out", help="the directory of the ONNX file")
    parser.add_argument("--dtype", default="float32", help="float32 (the default) or float16")
    options = parser.parse_args(arguments)
    return exit_code(lambda: print(export(options.model, options.out, options.dtype)))


if __name__ == "__main__":
    sys.exit(main())
