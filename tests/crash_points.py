"""Stops a long-running command at each of its file operations, and starts it again.

    python -m tests.crash_points assembly FOLDER

It prints a JSON object: the number of points, and of each that failed what was wrong. This process
only imports; every run of a command is a fork of it, so that a stop is as sudden as a `kill -9`.
Before the command is started again, the file that was last touched is emptied at every other
point, as a power cut may leave a file that was not flushed.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

import torch
import yaml

from serving import offline
from tests import checkpoints
from training import assemble, select, sft
from training.distill import pipeline
from training.distill.recipe import read_recipe

IMAGES = checkpoints.ROOT / "examples" / "images"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")
STOPPED = 9


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def conversation(number):
    image = str(IMAGES / f"counting_{1 + number % 2}.png")
    turns = [("human", "<image>\nHow many?"), ("gpt", f"Ich zähle {number}.\n</think>\n\n{number}")]
    return {
        "id": str(number),
        "images": [image],
        "conversations": [{"from": role, "value": text} for role, text in turns],
    }


def assembly(folder):
    """Three files of weights and all the others of a repository."""
    assemble.assemble(
        folder / "model", checkpoints.NANO, checkpoints.NANO, checkpoints.NANO,
        max_shard_bytes=9_000_000,
    )  # fmt: skip


def selection(folder):
    """Half of six lines, scored two at a time."""
    write_lines(folder / "pool.jsonl", [conversation(number) for number in range(6)])
    settings = select.JudgingSettings(batch_size=2, dtype="float32")
    select.select(folder / "pool.jsonl", folder / "chosen.jsonl", checkpoints.NANO, 0.5, settings)


def answers(folder):
    """Three questions, one of them about an image."""
    questions = [{"question": "Was ergibt 1 + 1, geschätzt?"}, {"question": "2 + 2?"}]
    questions.append({"question": "How many?", "images": [str(IMAGES / "counting_1.png")]})
    write_lines(folder / "questions.jsonl", questions)
    sys.argv = [
        "offline", str(folder / "questions.jsonl"), str(folder / "answers.jsonl"), "--batch-size",
        "1", "--max-new-tokens", "8", "--engine", "transformers", "--dtype", "float32",
    ]  # fmt: skip
    assert offline.main() == 0


def training(folder):
    """Two steps of the projector with a checkpoint after each, and its weights."""
    write_lines(folder / "samples.jsonl", [conversation(number) for number in range(4)])
    recipe = checkpoints.ROOT / "training" / "recipes" / "nano" / "alignment_sft.yaml"
    options = {
        "config": recipe, "model": checkpoints.NANO, "data": folder / "samples.jsonl",
        "output_dir": folder / "run", "max_steps": 2, "save_strategy": "steps", "save_steps": 1,
        "per_device_train_batch_size": 1, "global_batch_size": 2, "bf16": "false",
        "model_dtype": "float32", "save": "mlp1", "dataloader_num_workers": 0, "logging_steps": 1,
    }  # fmt: skip
    flags = []
    for name, value in options.items():
        flags += [f"--{name}", str(value)]
    sft.train(*sft.parse(flags))


def distillation(folder):
    """Three samples scored by rule: a right one, one that is replaced, and one set aside."""
    rows = []
    for number, (solution, box) in enumerate((("7", "7"), ("9", "9"), ("1", "2"))):
        turns = [("human", f"What is 3 + {4 + number}?"), ("gpt", f"</think>\\boxed{{{box}}}")]
        messages = [{"from": role, "value": text} for role, text in turns]
        rows.append({"conversations": messages, "difficulty": number, "solution": solution})
    write_lines(folder / "rows.jsonl", rows)
    path = checkpoints.ROOT / "training" / "recipes" / "nano" / "distill.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content |= {"data": [str(folder / "rows.jsonl")], "output_dir": str(folder / "out"), "tries": 1}
    content["generator"] |= {"model": str(checkpoints.NANO), "batch_size": 1}
    content["sampling"]["max_new_tokens"] = 32
    (folder / "distill.yaml").write_text(yaml.safe_dump(content))
    pipeline.Distillation(read_recipe(str(folder / "distill.yaml"))).run()


COMMANDS = {
    command.__name__: command for command in (assembly, selection, answers, training, distillation)
}
# Of a command with many operations every so many points are tried.
STRIDES = {"training": 3, "distillation": 3}


def contents(paths):
    """What a command has made: the bytes of its files, but for what its last start alone did."""
    found = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file():
                found[str(file.relative_to(path.parent))] = file.read_bytes()
    for name in found:
        if name.endswith("summary.json"):
            found[name] = {**json.loads(found[name]), "seconds": 0, "samples": 0}
        elif name.endswith("README.md"):  # the model card has the summary's figures
            lines = found[name].splitlines()
            found[name] = [
                line for line in lines if not line.startswith((b"| seconds", b"| samples,"))
            ]
    return found


def run(command, folder, stop_before=None):
    """Run a command in a fork; its exit status. `stop_before` is the number of an operation."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            if stop_before is not None:
                sys.addaudithook(StopBefore(stop_before, folder))
            command(folder)
    except BaseException:
        (folder.parent / "error.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


class StopBefore:
    """An audit hook that ends the process before an operation on a file below a folder.

    The path of the operation before that is left in "last.txt" beside the folder.
    """

    def __init__(self, number, folder):
        self.remaining = number
        self.folder = str(folder)
        self.last = ""

    def __call__(self, event, arguments):
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & WRITING:
                return
        elif event in OPERATIONS:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        if not str(path).startswith(self.folder):
            return
        self.remaining -= 1
        if not self.remaining:
            self.folder = "nothing is below this"  # the next line opens a file as well
            Path(sys.argv[2]).joinpath("last.txt").write_text(self.last)
            os._exit(STOPPED)
        self.last = str(path)


def main():
    torch.set_num_threads(1)
    name = sys.argv[1]
    command = COMMANDS[name]
    base = Path(sys.argv[2])
    folder = base / "work"  # the same for every run, since results may name their paths
    arguments = list(sys.argv)
    folder.mkdir()
    assert run(command, folder) == 0, (base / "error.txt").read_text()
    expected = contents(command_outputs(command, folder))
    failures = []
    point = 0
    tried = 0
    while True:
        point += STRIDES.get(name, 1)
        shutil.rmtree(folder)
        folder.mkdir()
        sys.argv = arguments
        status = run(command, folder, stop_before=point)
        if status == 0:
            break
        tried += 1
        last = Path((base / "last.txt").read_text())
        if tried % 2 and last.is_file():
            last.write_bytes(b"")
        if run(command, folder) != 0:
            error = (base / "error.txt").read_text().strip().splitlines()[-1]
            failures.append(f"before operation {point}, after {last}: {error}")
        elif contents(command_outputs(command, folder)) != expected:
            found = contents(command_outputs(command, folder))
            names = {*found, *expected}
            other = sorted(name for name in names if found.get(name) != expected.get(name))
            failures.append(f"before operation {point}, after {last}: other {other}")
    print(json.dumps({"points": tried, "failures": failures}))


def command_outputs(command, folder):
    """The files that a command makes, without running it."""
    return {
        assembly: (folder / "model",),
        selection: (folder / "chosen.jsonl",),
        answers: (folder / "answers.jsonl",),
        training: (folder / "run" / "mlp1", folder / "run" / "summary.json"),
        distillation: (
            folder / "out" / "distilled.jsonl",
            folder / "out" / "set_aside.jsonl",
            folder / "out" / "report.json",
        ),
    }[command]


if __name__ == "__main__":
    main()
