"""Runs compat_check.py on other versions of transformers, each beside this environment's torch.

    python -m tests.compat 4.37.2 5.0.0        # these
    python -m tests.compat --all --write-docs  # the last patch of every minor, and the table

A version goes, with the packages it pins, into .compat/VERSION, which is put in front of the
environment's packages.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from importlib.metadata import version as version_of_package
from pathlib import Path

from remote_code.transformers_compat import SUPPORTED_VERSIONS

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".compat"
PAGE = ROOT / "docs" / "compatibility.md"
DEFAULT_VERSIONS = ("4.37.2", "4.46.3", "4.51.3", "4.53.3", "4.57.6", "5.0.0", "5.8.1")
OLDEST, NEWEST = (tuple(map(int, minor.split("."))) for minor in SUPPORTED_VERSIONS)
TABLE_START, TABLE_END = "<!-- compat:start -->", "<!-- compat:end -->"


def installed_version():
    """The version of transformers in this environment, such as "5.8.1"."""
    return version_of_package("transformers")


def all_versions():
    """The last patch of every released minor that is not older than `OLDEST`.

    The package index lists them; minors newer than the supported ones are among them.
    """
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "transformers"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    latest = {}
    for found in re.findall(r"\b\d+\.\d+\.\d+\b", listing.split("Available versions:")[1]):
        release = tuple(int(number) for number in found.split("."))
        if release[:2] >= OLDEST:
            latest[release[:2]] = max(release, latest.get(release[:2], release))
    return [".".join(map(str, latest[minor])) for minor in sorted(latest)]


def install(version):
    """The folder with that version, installed if it is not there yet.

    None for the version that this environment has by itself.
    """
    if version == installed_version():
        return None
    folder = FOLDER / version
    if not (folder / "transformers" / "__init__.py").exists():
        uv = Path(sys.executable).with_name("uv")
        command = [
            str(uv),
            "pip",
            "install",
            "-q",
            "--python",
            sys.executable,
            "--target",
            str(folder),
        ]
        subprocess.run([*command, f"transformers=={version}"], check=True)
    return folder


def check(version):
    """(result of compat_check.py, or None where it failed; what it said on standard error)."""
    folder = install(version)
    environment = dict(os.environ, PYTHONPATH=str(folder or ""), TOKENIZERS_PARALLELISM="false")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "compat_check.py")],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        return None, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    if result["transformers"] != version:
        return None, f"expected transformers {version}, ran {result['transformers']}"
    return result, done.stderr


def same_answers(result, reference):
    """Whether token ids, answers and the processor's output are those of the reference.

    The processor's output counts where that version can load the processor.
    """
    if result["processor"] not in (None, reference["processor"]):
        return False
    return result["ids"] == reference["ids"] and result["answers"] == reference["answers"]


def table(results, reference):
    """The Markdown table of results by version."""
    rows = [
        "| transformers | golden files, model card's snippet, chat | AutoProcessor (local path) |",
        "|---|---|---|",
    ]
    for version, result in results.items():
        if result is None:
            rows.append(f"| {version} | fails | – |")
            continue
        verdict = "yes, same answers" if same_answers(result, reference) else "runs, other answers"
        rows.append(
            f"| {version} | {verdict} | {'yes' if result['processor'] else 'cannot load it'} |"
        )
    return "\n".join(rows)


def write_docs(text):
    """Put the table between the markers of docs/compatibility.md."""
    before, rest = PAGE.read_text(encoding="utf-8").split(TABLE_START)
    after = rest.split(TABLE_END)[1]
    PAGE.write_text(f"{before}{TABLE_START}\n{text}\n{TABLE_END}{after}", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*")
    parser.add_argument(
        "--all",
        action="store_true",
        help=f"the last patch of every minor version from {SUPPORTED_VERSIONS[0]} on",
    )
    parser.add_argument(
        "--write-docs", action="store_true", help=f"write the table to {PAGE.relative_to(ROOT)}"
    )
    arguments = parser.parse_args()
    versions = arguments.versions or (
        all_versions() if arguments.all else [*DEFAULT_VERSIONS, installed_version()]
    )
    reference, error = check(installed_version())
    if reference is None:
        sys.exit(error)
    results, failed = {}, 0
    for version in versions:
        results[version], error = (
            (reference, "") if version == installed_version() else check(version)
        )
        good = results[version] is not None and same_answers(results[version], reference)
        failed += not good
        print(f"{version}: {'same answers' if good else 'FAILED'}", flush=True)
        if not good:
            print(error[-3000:] or results[version], file=sys.stderr)
    if arguments.write_docs:
        write_docs(table(results, reference))
    print(f"{len(versions) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
