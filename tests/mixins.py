"""Runs transformers' own tests of models on the classes here: `make mixins`.

    python -m tests.mixins

The tests are in transformers' source distribution, which is fetched from the package index and
unpacked into .mixins, beside `parameterized`, which they need. tests/mixins_check.py says which
classes they test, and which of the tests do not apply.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".mixins"
# The source distribution leaves out the tests of generation and of exporters, whose classes the
# common tests import, and a function that fetches their pictures: this one has its own.
MISSING = {
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/fetch_hub_objects_for_ci.py": f"""\
def url_to_local_path(url):
    return {str(ROOT / "examples" / "images" / "counting_3.png")!r}
""",
}


def download(requirement, folder, *options):
    """The file of a package, from the index that pip is configured for."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
    subprocess.run([*command, *options, requirement], check=True)
    return next(Path(folder).iterdir())


def install(folder):
    """Unpack the tests of the installed version of transformers, and what they need."""
    with tempfile.TemporaryDirectory() as downloads:
        source = download(
            f"transformers=={version('transformers')}", downloads, "--no-binary", "transformers"
        )
        with tarfile.open(source) as archive:
            for member in archive.getmembers():
                inside = Path(*Path(member.name).parts[1:])
                if inside.parts[:1] == ("tests",) and member.isfile():
                    target = folder / inside
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.extractfile(member).read())
    for name, text in MISSING.items():
        path = folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
            if path.parts[-3] == "tests":
                (path.parent / "__init__.py").touch()
    (folder / "tests" / "__init__.py").touch()
    with tempfile.TemporaryDirectory() as downloads:
        zipfile.ZipFile(download("parameterized==0.9.0", downloads)).extractall(folder)


def main():
    folder = FOLDER / version("transformers")
    if not (folder / "parameterized").exists():
        install(folder)
    # Both repositories call their tests "tests", so this one's file runs beside the other's.
    check = folder / "test_skywork.py"
    check.write_text((ROOT / "tests" / "mixins_check.py").read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pytest", str(check), "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    sys.exit(subprocess.run(command, cwd=folder, env=environment).returncode)


if __name__ == "__main__":
    main()
