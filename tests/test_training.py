"""Training libraries as they are: TRL's SFT and GRPO, PEFT, and the Trainer of transformers.

Images have different numbers of tiles.
"""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, get_peft_model
from PIL import Image
from transformers import (
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from tests import checkpoints

SIZES = [(112, 112), (300, 200), (200, 100), (100, 300)]  # 1, 7, 3 and 4 tiles


def pictures():
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in SIZES
    ]


def load():
    return AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    )


@pytest.fixture
def projector_model():
    """mlp1 alone trainable, and the weights before."""
    model = load()
    model.requires_grad_(False)
    model.mlp1.requires_grad_(True)
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)


def assert_only_mlp1_changed(model, before):
    changed = {
        name
        for name, tensor in model.state_dict().items()
        if not torch.equal(tensor.cpu(), before[name])
    }
    assert changed == {name for name in before if name.startswith("mlp1.")}


@pytest.mark.parametrize("form", ["prompt and completion", "messages", "assistant only"])
def test_sft_trainer(projector_model, processor, tmp_path, form):
    """TRL collates the two forms by different calls of the processor.

    With `assistant_only_loss` it asks for the mask of what the assistant wrote.
    """
    model, before = projector_model
    asked = [{"role": "user", "content": "What is it?"}]
    answered = [{"role": "assistant", "content": "thought</think>\n\nnoise"}]
    row = (
        {"messages": asked + answered}
        if form != "prompt and completion"
        else {"prompt": asked, "completion": answered}
    )
    rows = [{"images": [picture], **row} for picture in pictures()]
    arguments = SFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
        bf16=False,  # ten times slower on a CPU without bf16 units
        assistant_only_loss=form == "assistant only",
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=processor
    )
    if form == "assistant only":
        labels = next(iter(trainer.get_train_dataloader()))["labels"]
        kept = [processor.decode(row[row != -100]) for row in labels]
        assert kept == 2 * ["thought</think>\n\nnoise<｜end▁of▁sentence｜>"]
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert all(np.isfinite(loss) for loss in losses) and trainer.state.global_step == 2
    assert_only_mlp1_changed(trainer.accelerator.unwrap_model(trainer.model), before)


def test_grpo_trainer(projector_model, processor, tmp_path):
    model, before = projector_model
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": "What is it?"}], "image": picture}
            for picture in pictures()
        ]
    )

    def reward(completions, **_):
        return [float(index % 3) for index, _ in enumerate(completions)]

    arguments = GRPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=2,
        max_completion_length=6, report_to=[], use_cpu=True, bf16=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=dataset,
        processing_class=processor,
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert_only_mlp1_changed(trainer.accelerator.unwrap_model(trainer.model), before)


def batch(processor, indices=(0, 1)):
    images = [[pictures()[index]] for index in indices]
    prompts = [
        processor.apply_chat_template(
            [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
                {"role": "assistant", "content": "a</think>b"},
            ]
        )
        for _ in indices
    ]
    inputs = processor(
        images=images, text=prompts, padding=True, padding_side="right", return_tensors="pt"
    )
    return {
        **inputs,
        "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100),
    }


def test_lora_on_both_towers_saved_and_merged(processor, tmp_path):
    """One step changes the answer; the adapter loads again; merging gives the same logits."""
    language = r"language_model\.model\.layers\.\d+\.self_attn\.(q|v)_proj"
    vision = r"vision_model\.encoder\.layers\.\d+\.attn\.qkv"
    targets = f"({language})|({vision})"
    torch.manual_seed(0)
    model = get_peft_model(load(), LoraConfig(r=4, target_modules=targets))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("vision_model" in name for name in names) and any(
        "language_model" in name for name in names
    )
    assert all("lora_" in name for name in names)
    inputs = batch(processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        trained = model(**inputs).logits
        assert not torch.allclose(trained, load().eval()(**inputs).logits, atol=1e-3)
        model.save_pretrained(tmp_path / "adapter")
        loaded = PeftModel.from_pretrained(load(), tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(**inputs).logits, trained, atol=1e-5, rtol=1e-5)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**inputs).logits, trained, atol=1e-4, rtol=1e-4)
        merged.save_pretrained(tmp_path / "merged")
        again = AutoModelForImageTextToText.from_pretrained(
            tmp_path / "merged", trust_remote_code=True
        ).eval()
        torch.testing.assert_close(again(**inputs).logits, trained, atol=1e-4, rtol=1e-4)
    chat = AutoModel.from_pretrained(tmp_path / "merged", trust_remote_code=True)
    assert (
        chat.chat(processor.tokenizer, None, "Hi", {"max_new_tokens": 2, "do_sample": False})
        is not None
    )


def peft_config(method):
    """A configuration for the language model alone."""
    attention = r"language_model\.model\.layers\.\d+\.self_attn\.(k|v)_proj"
    down = r"language_model\.model\.layers\.\d+\.mlp\.down_proj"
    if method == "IA3":
        return IA3Config(target_modules=f"({attention})|({down})", feedforward_modules=down)
    if method == "DoRA":
        return LoraConfig(r=4, target_modules=attention, use_dora=True)
    return PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_layers=4, token_dim=256,
        num_attention_heads=4,
    )  # fmt: skip


@pytest.mark.parametrize("method", ["IA3", "DoRA", "prefix tuning"])
def test_other_methods_of_peft_train_and_generate(processor, method):
    """Two steps lower the loss, and `generate` runs on what was trained."""
    torch.manual_seed(0)
    base = load()
    config = peft_config(method)
    if method == "prefix tuning":
        llm = base.config.llm_config
        config.num_layers = llm.num_hidden_layers
        config.token_dim = llm.num_key_value_heads * (llm.hidden_size // llm.num_attention_heads)
        config.num_attention_heads = llm.num_key_value_heads
    model = get_peft_model(base, config)
    inputs = batch(processor)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0]
    model.eval()
    prompt = processor(images=pictures()[0], text="<image>\nWhat?", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert written.shape[1] > prompt["input_ids"].shape[1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_trainer_with_gradient_checkpointing(projector_model, processor, tmp_path, reentrant):
    model, before = projector_model
    rows = [batch(processor, (index,)) for index in range(4)]

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            return rows[index]

    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, gradient_accumulation_steps=2,
        report_to=[], gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant}, use_cpu=True,
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=Rows(), data_collator=lambda features: features[0]
    )
    trainer.train()
    assert (
        model.vision_model.encoder.gradient_checkpointing
        and model.language_model.model.gradient_checkpointing
    )
    assert_only_mlp1_changed(model, before)


def test_accumulated_gradients_equal_those_of_the_whole_batch(processor):
    """Batches with different numbers of labels: num_items_in_batch makes the sum right."""
    model = load()
    whole = batch(processor, (0, 1, 2))
    parts = [batch(processor, (index,)) for index in range(3)]
    count = sum(int((part["labels"][:, 1:] != -100).sum()) for part in parts)

    def gradients(batches):
        model.zero_grad()
        for inputs in batches:
            model(**inputs, num_items_in_batch=count).loss.backward()
        return model.mlp1[1].weight.grad.clone()

    torch.testing.assert_close(gradients([whole]), gradients(parts), atol=1e-6, rtol=1e-3)
