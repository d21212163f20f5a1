"""ms-swift on the nano checkpoint through integrations/swift_plugin.py: run by `make clients`.

Its engine answers as `chat()` does, and its trainer has the losses of `training.sft` on the same
two samples. Both compute in float32.
"""

import sys

import pytest
import torch
from PIL import Image
from swift.infer_engine import InferRequest, RequestConfig, TransformersEngine
from transformers import AutoModel, AutoTokenizer

import integrations.swift_plugin  # noqa: F401 - registers model and template
from tests import checkpoints, trainers


@pytest.fixture(scope="module")
def model():
    return AutoModel.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def engine():
    return TransformersEngine(
        str(checkpoints.NANO), model_type="skywork_r1v", torch_dtype=torch.float32
    )


@pytest.mark.parametrize("messages, images", [
    ([("user", "What is 3 + 4?")], []),
    ([("system", "Be brief."), ("user", "What is 12 - 5?")], []),
    ([("user", "<image>\nHow many shapes are in the image?")], ["counting_3.png"]),
    (
        [("user", "<image>\n<image>\nWhich image shows more shapes, the first or the second?")],
        ["counting_1.png", "counting_3.png"],
    ),
    (
        [
            ("user", "<image>\nHow many shapes are in the image?"),
            ("assistant", "I count.\n</think>\n\nAnswer: \\boxed{6}"),
            ("user", "What is 3 + 4?"),
        ],
        ["counting_3.png"],
    ),
], ids=["text", "system", "image", "two images", "second turn"])  # fmt: skip
def test_answers_are_those_of_chat(model, engine, messages, images):
    """ms-swift puts a newline behind an image by itself, so the question here has none."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    *earlier, (_, question) = messages
    system = next((text for role, text in messages if role == "system"), None)
    turns = [text for role, text in earlier if role != "system"]
    expected = model.chat(
        tokenizer,
        [Image.open(trainers.IMAGES / name) for name in images] or None,
        question,
        {"max_new_tokens": 200, "do_sample": False},
        history=list(zip(turns[::2], turns[1::2])) or None,
        **({"system_message": system} if system else {}),
    )
    request = InferRequest(
        messages=[
            {"role": role, "content": text.replace("<image>\n", "<image>")}
            for role, text in messages
        ],
        images=[str(trainers.IMAGES / name) for name in images],
    )
    [reply] = engine.infer([request], RequestConfig(max_tokens=200, temperature=0))
    assert reply.choices[0].message.content == expected


@pytest.mark.parametrize("part", ["mlp1", "language_model"])
def test_training_has_the_same_losses(tmp_path, part):
    """Equal batches in float32; the second loss is after one step of AdamW."""
    # ms-swift puts a line end behind an image by itself
    data = trainers.write_lines(tmp_path / "theirs.jsonl", trainers.samples(newline=False))
    settings = {
        **trainers.SHARED,
        "model": checkpoints.NANO, "dataset": data, "output_dir": tmp_path / "theirs",
        "external_plugins": checkpoints.ROOT / "integrations" / "swift_plugin.py",
        "tuner_type": "full", "torch_dtype": "float32", "split_dataset_ratio": 0,
        "add_version": False, "gradient_checkpointing": False,
        "freeze_vit": True, "freeze_llm": part == "mlp1", "freeze_aligner": part != "mlp1",
    }  # fmt: skip
    trainers.run([sys.executable, "-m", "swift.cli.sft", *trainers.flags(settings)])
    found = trainers.losses(tmp_path / "theirs" / "logging.jsonl")
    expected = trainers.our_losses(tmp_path, part)
    print(f"{part}: losses {found} by ms-swift, {expected} by training.sft")
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected[1] < expected[0]
