"""`make chat`: streamed output, and one clear line for everything that goes wrong."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests import checkpoints

CHAT = checkpoints.ROOT / "examples" / "chat.py"


def run(*arguments, folder=None, **settings):
    environment = dict(os.environ, HF_HUB_OFFLINE="1", **settings)
    return subprocess.run(
        [sys.executable, str(CHAT), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        cwd=folder or checkpoints.ROOT,
    )


def test_it_answers_about_the_shipped_image_from_anywhere(tmp_path):
    done = run(folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Image:") and lines[1].startswith("Question:")
    assert "Thinking:" in lines and "Final answer:" in lines
    assert lines.index("Thinking:") < lines.index("Final answer:") and "\\boxed{0}" in done.stdout


def test_another_checkpoint_is_asked_about_the_shipped_image(tmp_path):
    """The result of a fine-tuning, for example, whose context may be as short."""
    shutil.copytree(checkpoints.NANO, tmp_path / "mine")
    done = run("--model", tmp_path / "mine")
    assert (
        done.returncode == 0 and "calculation_1.png" in done.stdout and "\\boxed{0}" in done.stdout
    ), done.stderr


def test_images_and_question_of_ones_own():
    image = checkpoints.ROOT / "examples" / "images" / "counting_3.png"
    done = run("--image", image, "--question", "How many shapes are in the image?")
    assert done.returncode == 0 and "\\boxed{6}" in done.stdout, done.stderr
    two = run("--image", image, image, "--question", 'What\'s "different"?')
    shown = os.path.relpath(image, checkpoints.ROOT)
    assert two.returncode == 0 and f"{shown}, {shown}" in two.stdout


def test_a_console_without_the_letters_of_a_question():
    """As Windows has: what it cannot print becomes a question mark, and the answer comes."""
    done = run("--question", "图 3 + 4?", "--max-new-tokens", "4", PYTHONIOENCODING="cp1252:strict")
    assert done.returncode == 0, done.stderr
    assert "Question: ? 3 + 4?" in done.stdout


def broken(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("arguments, words", [
    (["--model", "./no/such/model"], "./no/such/model: no such directory"),
    (["--model", "Skywork/Not-Downloaded"], "Skywork/Not-Downloaded"),
    (["--image", "no-such.png"], "no-such.png: no such image file"),
    (["--image", "{text}"], "not an image"),
    (["--image", "{empty}"], "empty"),
])  # fmt: skip
def test_failures_are_one_line(tmp_path, arguments, words):
    files = {
        "text": broken(tmp_path, "text.png", b"words"),
        "empty": broken(tmp_path, "empty.png", b""),
    }
    done = run(*[argument.format(**files) for argument in arguments])
    assert done.returncode == 1
    # torch logs what torchao does when transformers imports it, where that is installed
    errors = [
        line
        for line in done.stderr.splitlines()
        if line.strip() and not re.match(r"W\d{4} .*torch/", line)
    ]
    assert len(errors) == 1 and errors[0].startswith("error: ") and words in errors[0], done.stderr
