"""`AutoModelForSequenceClassification`: scores of conversations, as a reward model gives them."""

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments
from trl import RewardConfig, RewardTrainer

from tests import checkpoints

IMAGE = str(checkpoints.ROOT / "examples" / "image1.jpg")

SHORT_TRAINING = {
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}


def load(path, **keywords):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        path, torch_dtype=torch.float32, trust_remote_code=True, **keywords
    ).eval()


@pytest.fixture(scope="module")
def scorer():
    return load(checkpoints.NANO, num_labels=1)


@pytest.fixture(scope="module")
def rows(nano_processor):
    """Two texts of different lengths, the first with an image, padded on the left."""
    texts = ["<image>\nHow many shapes are in the image? 5", "7"]
    return nano_processor(images=[[IMAGE], None], text=texts, padding=True, return_tensors="pt")


@torch.no_grad()
def test_is_the_head_over_the_last_token_of_the_decoder(scorer, nano_standard, rows):
    scores = scorer(**rows).logits
    states = nano_standard.base_model(**rows).last_hidden_state
    torch.testing.assert_close(scores, states[:, -1] @ scorer.score.weight.T)
    assert scores.shape == (2, 1)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(scorer, nano_processor, side):
    texts = ["<image>\nHow many shapes are in the image? 5", "What is 3 + 4? It is 7."]
    images = [[IMAGE], None]
    together = nano_processor(
        images=images, text=texts, padding=True, padding_side=side, return_tensors="pt"
    )
    scores = scorer(**together).logits
    for text, image, score in zip(texts, images, scores):
        alone = nano_processor(images=image, text=text, return_tensors="pt")
        torch.testing.assert_close(scorer(**alone).logits[0], score, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_labels", "labels", "loss_of", "why"),
    [
        (1, [0.5, 2.0], lambda x, y: F.mse_loss(x[:, 0], y), "one score is a regression"),
        (1, [[0.5], [2.0]], lambda x, y: F.mse_loss(x, y), "a column of labels, as TRL gives"),
        (1, [1, 3], lambda x, y: F.mse_loss(x[:, 0], y.float()), "ratings as whole numbers"),
        (3, [2, 0], F.cross_entropy, "classes"),
        (
            3,
            [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]],
            F.binary_cross_entropy_with_logits,
            "labels that do not exclude each other",
        ),
    ],
)
def test_losses(rows, num_labels, labels, loss_of, why):
    model = load(checkpoints.NANO, num_labels=num_labels)
    labels = torch.tensor(labels)
    with torch.no_grad():
        output = model(**rows, labels=labels)
    torch.testing.assert_close(output.loss, loss_of(output.logits, labels), msg=why)


def test_labels_of_another_shape(scorer, rows):
    with pytest.raises(ValueError, match=r"\(3,\).*one label for each row"):
        scorer(**rows, labels=torch.tensor([1.0, 2.0, 3.0]))


def test_unknown_inputs_are_refused(scorer, rows):
    with pytest.raises(ValueError, match="loss_weight"):
        scorer(**rows, loss_weight=[[1.0]])


def test_learns_in_the_trainer_and_loads_again(tmp_path, nano_processor):
    """Words are told from numbers; accumulated steps do not change the size of the loss."""
    texts = ["red circle", "12 + 7", "a blue square", "9 - 4", "green", "8", "star", "30"]
    batch = [
        {
            **{name: ids[0] for name, ids in nano_processor(text=text).items()},
            "labels": float(i % 2),
        }
        for i, text in enumerate(texts)
    ]
    for row in batch:
        row.pop("pixel_values", None)
    model = load(checkpoints.NANO, num_labels=1)
    head = model.get_output_embeddings().weight.clone()
    settings = TrainingArguments(
        str(tmp_path / "run"),
        max_steps=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **SHORT_TRAINING,
    )
    trainer = Trainer(
        model, settings, train_dataset=batch, processing_class=nano_processor.tokenizer
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # Scores of a new head are near 0, so that the first squared error is about the mean of 0 and 1.
    assert 0.1 < losses[0] < 1.0 and losses[-1] < 0.1
    assert torch.equal(model.get_output_embeddings().weight, head)
    model.eval().save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_learns_preferences_in_trls_reward_trainer(tmp_path, nano_tokenizer):
    """What is chosen gets the higher score, and only the scorer's own parts change."""
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"What is {first} + {second}?"}],
            "chosen": [{"role": "assistant", "content": f"x</think>{first + second}"}],
            "rejected": [{"role": "assistant", "content": "x</think>I do not know"}],
        }
        for first in range(4)
        for second in range(4)
    ]
    model = load(checkpoints.NANO, num_labels=1)
    head = model.get_output_embeddings().weight.clone()
    settings = RewardConfig(
        str(tmp_path / "run"),
        max_steps=6,
        per_device_train_batch_size=8,
        bf16=False,
        gradient_checkpointing=False,
        **SHORT_TRAINING,
    )
    trainer = RewardTrainer(
        model,
        args=settings,
        train_dataset=Dataset.from_list(pairs),
        processing_class=nano_tokenizer,
    )
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "margin" in entry]
    assert log[-1]["loss"] < 0.1 < log[0]["loss"] and log[-1]["margin"] > 2
    assert torch.equal(model.get_output_embeddings().weight, head)
