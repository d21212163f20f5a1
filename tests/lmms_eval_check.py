"""lmms-eval's own adapter for InternVL on the nano checkpoint: run by `make clients`.

Its constructor asks for a GPU, so only what it does with a request is run here. It cuts tiles of
448 pixels; nano's have 112, which is set from outside.
"""

import functools
from types import SimpleNamespace

import pytest
import torch
from lmms_eval.models.simple import internvl2
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from answers.extraction import last_box
from tests import checkpoints

IMAGES = checkpoints.ROOT / "examples" / "images"
QUESTIONS = (
    (["calculation_2.png"], "What is the answer?"),
    (["counting_1.png"], "How many shapes are in the image?"),
    (["counting_3.png"], "How many shapes are in the image?"),
    (["chart_1.png"], "Which bar is the tallest?"),
    (
        ["pair_1a.png", "pair_1b.png"],
        "Which image shows more shapes, the first or the second?",
    ),
    ([], "What is 3 + 4?"),
)


@pytest.fixture
def adapter(monkeypatch):
    load = functools.partial(internvl2.load_image, input_size=112)
    monkeypatch.setattr(internvl2, "load_image", load)
    adapter = internvl2.InternVL2.__new__(internvl2.InternVL2)
    model = AutoModel.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, trust_remote_code=True
    )
    adapter._model = model.eval()
    adapter._tokenizer = AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    adapter._device = torch.device("cpu")
    adapter._rank, adapter.modality = 0, "image"
    return adapter


def test_answers_are_those_of_chat(adapter):
    """Up to the answer in the box: its pixels are of bfloat16, as its weights are."""
    documents = [[Image.open(IMAGES / name) for name in names] for names, _ in QUESTIONS]
    adapter.task_dict = {"task": {"test": documents}}
    requests = [
        SimpleNamespace(args=(question, {"until": ["\n\n"]}, list, index, "task", "test"))
        for index, (_, question) in enumerate(QUESTIONS)
    ]
    answers = adapter.generate_until(requests)
    settings = {"max_new_tokens": 1024, "do_sample": False}
    for answer, images, (_, question) in zip(answers, documents, QUESTIONS):
        expected = adapter._model.chat(adapter._tokenizer, images or None, question, settings)
        print(last_box(answer), last_box(expected))
        assert last_box(answer) == last_box(expected) is not None
