"""What the checks of other trainers share: two samples, and the losses of `training.sft` on them.

`training.sft` runs with the Python of the test packages, which `make clients` names in
SKYWORK_PYTHON: other trainers take other versions of TRL and transformers.
"""

import json
import os
import subprocess

from tests import checkpoints

IMAGES = checkpoints.ROOT / "examples" / "images"
STEPS = 2
LEARNING_RATE = 1e-3
# Settings that transformers' Trainer has, so that every trainer here takes them
SHARED = {
    "max_steps": STEPS, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
    "weight_decay": 0, "adam_beta2": 0.999, "optim": "adamw_torch", "warmup_steps": 0,
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "logging_steps": 1,
    "save_strategy": "no", "bf16": False, "dataloader_num_workers": 0, "report_to": "none",
}  # fmt: skip
QUESTIONS = (
    (["counting_3.png"], "How many shapes are in the image?", "I see.</think>\\boxed{5}"),
    (["counting_1.png", "chart_1.png"], "What is this?", "A chart.</think>\\boxed{9}"),
)
TEXT_QUESTIONS = (
    ([], "What is 3 + 4?", "I add.</think>\\boxed{8}"),
    ([], "What is 12 - 5?", "I take away.</think>\\boxed{2}"),
)


def flags(settings):
    """Settings as arguments of a command line."""
    arguments = []
    for name, value in settings.items():
        arguments += [f"--{name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return arguments


def samples(newline=True, questions=QUESTIONS):
    """Chat messages with images, as data sets of reasoning models have them.

    Args:
        newline: whether each `<image>` is followed by a line end; some programs add it.
        questions: image names, question and answer of each sample.
    """
    rows = []
    for names, question, answer in questions:
        placeholder = "<image>\n" if newline else "<image>"
        messages = [
            {"role": "user", "content": placeholder * len(names) + question},
            # The templates open the thinking by themselves, and take it off here
            {"role": "assistant", "content": "<think>\n" + answer},
        ]
        rows.append({"messages": messages, "images": [str(IMAGES / name) for name in names]})
    return rows


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(command):
    done = subprocess.run(command, cwd=checkpoints.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]


def losses(log):
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry][:STEPS]


def our_losses(folder, train, questions=QUESTIONS):
    """The losses of `training.sft` on the samples, before the first step and after it."""
    rows = []
    for names, question, answer in questions:
        content = "<image>\n" * len(names) + question
        turns = [{"from": "human", "value": content}, {"from": "gpt", "value": answer}]
        rows.append({"image": [str(IMAGES / name) for name in names], "conversations": turns})
    data = write_lines(folder / "ours.jsonl", rows)
    settings = {
        **SHARED, "model": checkpoints.NANO, "data": data, "output_dir": folder / "ours",
        "train": train, "model_dtype": "float32", "global_batch_size": 2,
    }  # fmt: skip
    del settings["gradient_accumulation_steps"]  # follows from the batches
    recipe = ("--config", "training/recipes/nano/alignment_sft.yaml")
    run([os.environ["SKYWORK_PYTHON"], "-m", "training.sft", *recipe, *flags(settings)])
    return losses(folder / "ours" / "log.jsonl")
