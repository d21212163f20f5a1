"""Runs the programs that docs/clients.md names, each in an environment of its own: `make clients`.

    python -m tests.clients             # all of them
    python -m tests.clients ms-swift    # one

An environment in .clients holds what a program needs besides the test packages, or in another
version; everything else, torch above all, it takes from this Python's. llama-cpp-python is compiled
while it is installed, which needs a C++ compiler and cmake.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".clients"
# Name to the packages as pip takes them, and the file of its checks
CLIENTS = {
    "llama.cpp": ("llama-cpp-python==0.3.36", "llama_cpp_check.py"),
    "ms-swift": ("ms-swift==4.6.0", "swift_check.py"),
    "LLaMA-Factory": ("llamafactory==0.9.5", "llama_factory_check.py"),
    # Its adapter imports decord, which it does not name among its requirements.
    "lmms-eval": ("lmms-eval==0.7.3 decord", "lmms_eval_check.py"),
}


def environment(name: str, requirement: str) -> Path:
    """The Python of a client's environment, which is made where it is not there."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    installed = folder / "installed.txt"
    if installed.exists() and installed.read_text() == requirement:
        return python
    venv.create(folder, with_pip=True, clear=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    # Behind the environment's own packages on the path, so its versions come first
    (packages / "test_packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    print(f"Installing {requirement} into {folder} (once)", flush=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", *requirement.split()], check=True)
    installed.write_text(requirement)
    return python


def check(name: str) -> bool:
    """Run a client's checks; whether all of them passed."""
    requirement, file = CLIENTS[name]
    python = environment(name, requirement)
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "SKYWORK_PYTHON": sys.executable}
    command = [str(python), "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", f"tests/{file}"]
    print(f"{name}: {requirement}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=settings).returncode == 0


def main() -> None:
    """Run and exit with 1 where any check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(CLIENTS)}; all unless given")
    names = parser.parse_args().names or list(CLIENTS)
    for name in names:
        if name not in CLIENTS:
            parser.error(f"{name!r} is no known program: expected {', '.join(CLIENTS)}.")
    failed = [name for name in names if not check(name)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
