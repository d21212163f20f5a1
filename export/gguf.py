"""Writes a checkpoint as GGUF files, for llama.cpp and the programs that are built on it.

    pip install gguf
    python -m export.gguf Skywork-R1V-38B out                      # bf16, as the weights are
    python -m export.gguf Skywork-R1V-38B out --dtype q8_0
    python -m export.gguf Skywork-R1V-38B out --quantize Q4_K_M    # pip install llama-cpp-python
    python -m export.gguf . --sizes                                # sizes alone; needs no weights

Two files are written into `out`: the language model (`model-bf16.gguf`, or another dtype's name)
with its tokenizer and chat template, and the vision part (`mmproj-bf16.gguf`: vision tower and
projector). `--quantize` writes a third, `model-Q4_K_M.gguf`, by llama.cpp's own quantization.
Tensors pass one at a time, so memory stays at the largest of them.

    llama-server -m out/model-Q4_K_M.gguf --mmproj out/mmproj-bf16.gguf --jinja

What llama.cpp does differently (docs/clients.md has a figure for each):

- it tiles pictures on a grid of its own, which follows the size of a picture and not its ratio
  alone;
- its GELU in the vision part is the approximation by tanh;
- it normalizes the vision part by RMSNorm in the shape of InternViT-6B only (3200 × 45). Any other
  checkpoint with `norm_type="rms_norm"`, such as nano, answers about words and not about pictures;
- it does not normalize text to NFC.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from export import gguf_sizes, gguf_text, gguf_vision, gguf_writing
from memory import sizes
from training.command_line import argument_parser, exit_code

logger = logging.getLogger(__name__)


def export(
    model: str | Path, out: str | Path, dtype: str = "bf16", quantize: str | None = None
) -> list[Path]:
    """Write the language model and the vision part of a checkpoint as GGUF files.

    Args:
        model: a checkpoint's directory.
        out: the directory of the files, made where it is missing.
        dtype: of the matrices: "f32", "f16", "bf16" or "q8_0". Vectors, position embeddings and
            the patch embedding stay in float32.
        quantize: a name of llama.cpp's quantizations, such as "Q4_K_M" or "Q6_K", for one file of
            the language model more; or None.

    Returns:
        The files, in the order in which they were written.

    Raises:
        FileNotFoundError: not a checkpoint's directory, or one without its tokenizer.
        ImportError: gguf, or llama-cpp-python for `quantize`, is not installed.
        ValueError: an unknown dtype or quantization, or a checkpoint that llama.cpp's classes
            cannot compute.
    """
    gguf_writing.check_dtype(dtype)
    if quantize is not None:
        gguf_writing.check_quantization(quantize)
    model, out = Path(model), Path(out)
    config = sizes.load_config(model)
    text = gguf_text.text_file(model, config)
    vision = gguf_vision.vision_file(model, config)
    for difference in gguf_vision.differences(config):
        logger.warning(difference)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for content, name in ((text, "model"), (vision, "mmproj")):
        path = out / f"{name}-{dtype}.gguf"
        gguf_writing.write(path, content, dtype)
        files.append(path)
    if quantize is not None:
        path = out / f"model-{quantize}.gguf"
        gguf_writing.quantize(files[0], path, quantize)
        files.append(path)
    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit code: 0, or 1 after an error that is printed in one line.
    """
    parser = argument_parser("export.gguf", __doc__)
    parser.add_argument("model", help="a checkpoint's directory")
    parser.add_argument("out", nargs="?", help="the directory of the GGUF files")
    parser.add_argument("--dtype", default="bf16", help="f32, f16, bf16 (the default) or q8_0")
    parser.add_argument("--quantize", help="llama.cpp's quantization, such as Q4_K_M or Q6_K")
    parser.add_argument("--sizes", action="store_true", help="print sizes and write nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if options.out is None and not options.sizes:
        parser.error("give a directory for the files, or --sizes.")
    return exit_code(lambda: _export_and_print(options))


def _export_and_print(options: argparse.Namespace) -> None:
    """Do what the command line asks."""
    if options.sizes:
        print(gguf_sizes.table(sizes.load_config(options.model)))
        return
    for path in export(options.model, options.out, options.dtype, options.quantize):
        print(f"{path}: {path.stat().st_size / sizes.GIGABYTE:.2f} GB")


if __name__ == "__main__":
    sys.exit(main())
