"""Evaluation while training, learning rates of parts, the log of a run; settings without effect."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    TrainingArguments,
)
from trl import SFTConfig

from answers.judging import Judge
from tests import checkpoints
from tests.test_sft import arguments, losses, run, samples  # noqa: F401 - a fixture
from tests.trainers import IMAGES
from training import asking, optimizer, progress, sft
from training.recipe import WITHOUT_EFFECT, RecipeArguments, TrainingConfig
from training.recipe_data import _split
from training.rows import parse_row
from training.sample_encoder import SampleEncoder

# -- learning rates --------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, words", [
    ({"vision_lr": 1e-5}, "vision_lr=1e-05, but train"),
    ({"train": ["mlp1"], "language_model_lr": 1e-5}, "does not name language_model"),
    ({"mlp1_lr": -1.0}, "mlp1_lr=-1 must be above 0"),
    ({"vision_layer_decay": 0.9}, "needs vision_model"),
    ({"train": ["vision_model"], "vision_layer_decay": 1.5}, r"must be in \(0, 1\]"),
    ({"eval_share": 1.0}, r"eval_share=1.0 must be in \[0, 1\)"),
    ({"eval_share": 0.1, "eval_data": ["a.jsonl"]}, "exclude each other"),
    ({"eval_share": 0.1, "streaming": True}, "a stream has no share"),
    ({"eval_answers": 4}, "need eval_data or eval_share"),
    ({"early_stopping_patience": 2}, "need eval_data or eval_share"),
])  # fmt: skip
def test_recipes_that_contradict_themselves_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        RecipeArguments(model="nano", data=["a.jsonl"], **changes)


def test_lora_takes_the_rate_of_the_language_model():
    RecipeArguments(model="nano", data=["a.jsonl"], train=["lora"], language_model_lr=1e-4)


@pytest.mark.parametrize("name, scale", [
    # By hand, for four layers and a decay of 0.5
    ("vision_model.encoder.layers.3.mlp.fc1.weight", 0.5),
    ("vision_model.encoder.layers.0.norm1.weight", 0.5**4),
    ("vision_model.embeddings.position_embedding", 0.5**5),
    ("base_model.model.vision_model.modules_to_save.default.encoder.layers.1.ls1", 0.5**3),
])  # fmt: skip
def test_lower_layers_learn_more_slowly(name, scale):
    assert optimizer.layer_scale(name, 4, 0.5) == scale
    assert optimizer.layer_scale(name, 4, 1.0) == 1.0


def first_updates(folder):
    """The largest change of each part's matrices, by part."""
    before = load_file(checkpoints.NANO / "model.safetensors")
    after = load_file(folder / "model" / "model.safetensors")
    changes = {}
    for name, tensor in before.items():
        change = (after[name].float() - tensor.float()).abs().max().item()
        part = optimizer.part_of(name)
        changes[part] = max(change, changes.get(part, 0.0))
    return changes


def test_each_part_learns_at_its_own_rate(samples, tmp_path):  # noqa: F811
    """Adam's first step is as long as the learning rate, wherever there is a gradient."""
    rates = {"mlp1": 1e-3, "language_model": 1e-4, "vision_model": 2e-4}
    run(
        samples, tmp_path, train=list(rates), max_steps=1, learning_rate=rates["mlp1"],
        language_model_lr=rates["language_model"], vision_lr=rates["vision_model"],
        vision_layer_decay=0.5, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0,
    )  # fmt: skip
    changes = first_updates(tmp_path)
    assert changes["mlp1"] == pytest.approx(1e-3, rel=0.02)
    assert changes["language_model"] == pytest.approx(1e-4, rel=0.02)
    # of the tower the last layer changes most
    assert changes["vision_model"] == pytest.approx(1e-4, rel=0.02)


# -- settings without effect -----------------------------------------------------------------------

OTHER_VALUES = {
    "dataset_kwargs": {"skip_prepare_dataset": False},
    "dataset_num_proc": 2,
    "dataset_text_field": "words",
    "packing": True,
    "packing_strategy": "wrapped",
    "eval_packing": True,
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "shuffle_dataset": True,
    "truncation_mode": "keep_end",
    "completion_only_loss": True,
    "assistant_only_loss": True,
    "chat_template_path": "chat_template.jinja",
    "eos_token": "<|EOT|>",
    "pad_token": "<|EOT|>",
    "router_aux_loss_coef": 0.1,
}
# The other settings of TRL's own, and what they change here
WITH_EFFECT = {
    "model_init_kwargs": "go to from_pretrained",
    "trust_remote_code": "the model's code is always trusted",
    "max_length": "of a sample, in tokens",
    "loss_type": "TRL's loss: nll or dft",
    "activation_offloading": "TRL's, on a GPU",
}


def test_every_setting_of_trl_is_known():
    """A new one of another version has to be looked at before it may be ignored."""
    own = {field.name for field in dataclasses.fields(SFTConfig)}
    own -= {field.name for field in dataclasses.fields(TrainingArguments)}
    assert own == {*WITHOUT_EFFECT, *WITH_EFFECT}
    assert OTHER_VALUES.keys() == WITHOUT_EFFECT.keys()


@pytest.mark.parametrize("name", sorted(OTHER_VALUES))
def test_settings_without_effect_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}=.* has no effect"):
        TrainingConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: OTHER_VALUES[name]})


@pytest.mark.parametrize("name", ["dtype", "torch_dtype", "trust_remote_code", "device_map"])
def test_what_the_recipe_says_is_no_keyword_of_the_model(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} cannot be given here"):
        TrainingConfig(
            str(tmp_path), use_cpu=True, bf16=False, model_init_kwargs={name: "bfloat16"}
        )


def test_keywords_of_the_model_reach_it(samples, tmp_path):  # noqa: F811
    keywords = json.dumps({"attn_implementation": "eager"})
    flags = arguments(samples, tmp_path, model_init_kwargs=keywords)
    trainer = sft.make_trainer(*sft.parse(flags))
    assert trainer.model.config.llm_config._attn_implementation == "eager"
    with pytest.raises((ImportError, ValueError), match="no_such"):
        flags = arguments(samples, tmp_path, model_init_kwargs='{"attn_implementation": "no_such"}')
        sft.make_trainer(*sft.parse(flags))


# -- evaluation ------------------------------------------------------------------------------------


def history(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("count, share", [(10, 0.2), (41, 0.25), (1000, 0.01)])
def test_a_share_is_evaluated_on_and_not_trained_on(count, share):
    trained, evaluated = _split(count, share, seed=3)
    assert len(evaluated) == round(share * count)
    assert sorted(trained + evaluated) == list(range(count))
    assert (trained, evaluated) == _split(count, share, seed=3)
    assert evaluated != _split(count, share, seed=4)[1]


@pytest.mark.parametrize("count, share", [(3, 0.1), (1, 0.5), (2, 0.9)])
def test_a_share_of_nothing_is_refused(count, share):
    with pytest.raises(ValueError, match="leaves none"):
        _split(count, share, seed=0)


def test_no_sample_of_the_evaluation_takes_the_place_of_a_broken_one(samples, tmp_path):  # noqa: F811
    trainer = sft.make_trainer(*sft.parse(arguments(samples, tmp_path, eval_share=0.5)))
    trained = set(trainer.train_dataset.with_format(None)["line"])
    evaluated = set(trainer.eval_dataset.with_format(None)["line"])
    assert trained and evaluated and not trained & evaluated
    for number in trained:
        assert set(trainer.source._candidates(number)) == trained


def test_evaluation_while_training(samples, tmp_path):  # noqa: F811
    """Losses of other samples, answers, the best checkpoint, the log, and the summary."""
    summary = run(
        samples, tmp_path / "out", max_steps=6, eval_share=0.2, eval_strategy="steps", eval_steps=2,
        eval_answers=3, eval_new_tokens=60, save_strategy="steps", save_steps=2,
        load_best_model_at_end="true", metric_for_best_model="eval_loss", learning_rate=3e-2,
        lr_scheduler_type="constant",
    )  # fmt: skip
    entries = history(tmp_path / "out")
    evaluations = progress.values_by_step(entries, "eval_loss")
    assert list(evaluations) == [2, 4, 6]
    assert list(progress.values_by_step(entries, "eval_right")) == [2, 4, 6]
    assert all(0 <= entry["eval_right"] <= 1 for entry in entries if "eval_right" in entry)
    best = min(evaluations, key=evaluations.get)
    assert summary["best_checkpoint"].endswith(f"checkpoint-{best}")
    assert summary["eval_loss"] == {"first": evaluations[2], "last": evaluations[6]}
    # what is saved are the weights of the best checkpoint
    saved = load_file(tmp_path / "out" / "model" / "model.safetensors")
    weights = load_file(tmp_path / "out" / f"checkpoint-{best}" / "model.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(saved[name], tensor)
    steps = [entry for entry in entries if "loss" in entry]
    assert all(entry["samples_per_second"] > 0 for entry in steps)
    assert all(entry["tokens_per_second"] > entry["tiles_per_second"] > 0 for entry in steps)
    assert steps[-1]["remaining_seconds"] == 0
    assert (tmp_path / "out" / "loss.png").stat().st_size > 5000


def test_training_stops_when_nothing_gets_better(samples, tmp_path):  # noqa: F811
    """At a learning rate of 0 nothing changes, so the second and third evaluations end it."""
    few = tmp_path / "few.jsonl"
    few.write_text("".join(samples.read_text().splitlines(keepends=True)[-2:]))
    summary = run(
        samples, tmp_path / "out", max_steps=20, eval_data=few, eval_strategy="steps",
        image_root=samples.parent, eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end="true", early_stopping_patience=2, learning_rate=0.0,
    )  # fmt: skip
    assert summary["steps"] == 3


def test_evaluations_need_data(samples, tmp_path):  # noqa: F811
    flags = arguments(samples, tmp_path, eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="set eval_data or eval_share"):
        sft.make_trainer(*sft.parse(flags))


@pytest.mark.parametrize("right, text, answer", [
    ("So.</think>3", "I see 3.</think>\n\nAnswer: \\boxed{3}", "3"),
    ("So.</think>3", "\\boxed{4}</think> No: \\boxed{3}", "3"),
    ("So.</think>3", "\\boxed{4}</think>Three.", "Three."),  # a box in the thinking is no answer
    ("So.</think>3", "It never ends \\boxed{3}", None),
    # The prompt has closed the thinking, or opened none
    ("3", "three", "three"),
    ("3", "I see \\boxed{3}.", "3"),
])  # fmt: skip
def test_final_answers(right, text, answer):
    with Judge() as judge:
        assert asking.Reply(text, right).judged(judge).answer == answer


def test_what_is_in_a_box_is_compared_as_mathematics():
    reply = asking.Reply("So.</think>\\boxed{0.5}", "So.</think>\\boxed{\\frac{1}{2}}")
    with Judge() as judge:
        assert reply.judged(judge).is_right
        with pytest.raises(ValueError, match="nothing follows the thinking"):
            asking.Reply("So.</think>3", "So.</think>").judged(judge)


def test_right_answers_are_counted_as_chat_gives_them(tmp_path):
    """Five pictures, of two of which the data have a wrong answer."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    encoder = SampleEncoder(model.config, tokenizer, processor.image_processor, 2048)
    rows = [
        (["counting_1.png"], "How many shapes are in the image?", "9"),
        (["counting_3.png"], "How many shapes are in the image?", "6"),
        (["counting_3.png"], "How many shapes are in the image?", "5"),
        ([], "What is 3 + 4?", "7"),
        ([], "What is 3 + 4?", "8"),
    ]
    encoded = []
    for names, question, answer in rows:
        row = {
            "images": [str(IMAGES / name) for name in names],
            "messages": [
                {"role": "user", "content": "<image>\n" * len(names) + question},
                {"role": "assistant", "content": f"So.</think>\\boxed{{{answer}}}"},
            ],
        }
        encoded.append(encoder(parse_row(row)))
    assert asking.count_right(model, tokenizer, encoded, 200) == 3


# -- the log ---------------------------------------------------------------------------------------


def test_the_log_is_there_while_training_goes_on(samples, tmp_path):  # noqa: F811
    """A run that dies after two steps has a log of both, and goes on with it."""
    flags = arguments(samples, tmp_path, max_steps=4, save_strategy="steps", save_steps=1)
    trainer = sft.make_trainer(*sft.parse(flags))

    class Dies(Exception):
        pass

    original = trainer.training_step

    def step(*given, **keywords):
        if trainer.state.global_step == 2:
            raise Dies
        return original(*given, **keywords)

    trainer.training_step = step
    with pytest.raises(Dies):
        trainer.train()
    before = history(tmp_path)
    assert list(progress.values_by_step(before, "loss")) == [1, 2]
    sft.train(*sft.parse(flags))
    after = history(tmp_path)
    assert list(progress.values_by_step(after, "loss")) == [1, 2, 3, 4]
    assert losses(tmp_path)[2] == before[-1]["loss"]
    tokens = list(progress.values_by_step(after, "num_tokens").values())
    assert tokens == sorted(tokens) and tokens[2] > tokens[1]


@pytest.mark.parametrize("values, count, means", [
    ([], 3, []),
    ([2.0, 4.0, 6.0, 8.0], 2, [2.0, 3.0, 5.0, 7.0]),
])  # fmt: skip
def test_running_means(values, count, means):
    assert progress.running_mean(values, count) == means
