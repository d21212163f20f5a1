"""What generation by vLLM gets from GRPO. With a real vLLM: tests/vllm_check.py."""

import types

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests import checkpoints
from training import grpo, grpo_recipe, grpo_vllm

START, CONTEXT, END, PLACEHOLDER = 101, 102, 103, [7, 8, 9]
PROMPTS = [
    ([1, 2, 3], [1, 2, 3], "text alone"),
    ([1, 101, 102, 102, 103, 2], [1, 7, 8, 9, 2], "an image"),
    ([101, 102, 103, 101, 102, 102, 103], [7, 8, 9, 7, 8, 9], "two images, at both ends"),
    ([101, 103, 1], [101, 103, 1], "no token of an image between the marks"),
    ([101, 102, 102], [101, 102, 102], "an image that does not end"),
    ([101, 101, 102, 103], [101, 7, 8, 9], "a mark before the mark of an image"),
    ([102, 103], [102, 103], "an image that does not start"),
    ([], [], "nothing"),
]


@pytest.mark.parametrize("ids, expected, reason", PROMPTS, ids=[case[2] for case in PROMPTS])
def test_images_become_placeholders(ids, expected, reason):
    assert grpo_vllm.without_image_tokens(ids, START, CONTEXT, END, PLACEHOLDER) == expected


def test_an_engine_gets_the_prompt_as_it_is_written():
    """What the processor makes of a conversation becomes that conversation's text again."""
    processor = AutoProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    image = torch.zeros(3, 300, 500, dtype=torch.uint8)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "How many shapes?"}]
    messages = [{"role": "user", "content": content}]
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    ids = processor.apply_chat_template([messages], **options)["input_ids"][0]
    asked = []

    def generate(prompts, **keywords):
        asked.append((prompts, keywords))
        return "answers"

    engine = types.SimpleNamespace(generate=generate)
    grpo_vllm.ask_with_placeholders(engine, processor.tokenizer)
    prompts = [{"prompt_token_ids": list(ids), "multi_modal_data": {"image": image}}]
    assert engine.generate(prompts, sampling_params="some") == "answers"
    [([prompt], keywords)] = asked
    text = processor.tokenizer.decode(prompt["prompt_token_ids"])
    assert text == processor.apply_chat_template(messages, add_generation_prompt=True).replace(
        processor.image_token, "<image>"
    )
    assert prompt["multi_modal_data"] == {"image": image} and keywords == {
        "sampling_params": "some"
    }
    assert len(prompts[0]["prompt_token_ids"]) == len(ids)  # the caller's own is as it was


class Generation:
    """As TRL's `VLLMGeneration`: it sends what it iterates over."""

    def __init__(self, model, mode="colocate", enable_sleep_mode=False):
        self.model, self.mode, self.enable_sleep_mode = model, mode, enable_sleep_mode
        self.done = []
        forget = types.SimpleNamespace(reset_encoder_cache=lambda: self.done.append("forgotten"))
        self.llm = types.SimpleNamespace(llm_engine=forget, generate=None)
        self.accelerator = types.SimpleNamespace(is_main_process=True)
        self.vllm_client = types.SimpleNamespace(
            base_url="http://server", session=types.SimpleNamespace(post=self.post)
        )

    def post(self, url):
        self.done.append(url)
        return types.SimpleNamespace(raise_for_status=lambda: None)

    def sync_weights(self):
        self.done.append({name for name, _ in self._iter_named_params()})

    def _iter_named_params(self):
        """TRL's own names: those of the checkpoint, with adapters merged."""
        for name, parameter in self.model.named_parameters():
            if "lora_" in name or "original_module" in name:
                continue
            for part, other in (
                ("base_model.model.", ""),
                (".base_layer", ""),
                ("modules_to_save.default.", ""),
            ):
                name = name.replace(part, other)
            yield name, parameter


@pytest.fixture
def model():
    """nano, of which the projector trains."""
    loaded = AutoModelForImageTextToText.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    loaded.requires_grad_(False)
    loaded.mlp1.requires_grad_(True)
    return loaded


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)


def test_only_what_trains_is_sent_and_images_are_forgotten(model, tokenizer):
    generation = Generation(model)
    grpo_vllm.prepare(generation, model, tokenizer)
    generation.sync_weights()
    names = {f"mlp1.{name}" for name, _ in model.mlp1.named_parameters()}
    assert generation.done == [names, "forgotten"]


def test_a_server_forgets_images_too(model, tokenizer):
    generation = Generation(model, mode="server")
    grpo_vllm.prepare(generation, model, tokenizer)
    generation.sync_weights()
    assert generation.done[1:] == ["http://server/reset_encoder_cache"]


def test_a_vllm_that_sleeps_gets_all_weights(model, tokenizer):
    generation = Generation(model, enable_sleep_mode=True)
    grpo_vllm.prepare(generation, model, tokenizer)
    generation.sync_weights()
    assert generation.done[0] == {name for name, _ in model.named_parameters()}


def test_weights_under_adapters_are_sent_merged(model, tokenizer):
    config = peft.LoraConfig(target_modules=r".*layers\.0\..*q_proj", modules_to_save=["mlp1"])
    adapted = peft.get_peft_model(model, config)
    generation = Generation(adapted)
    grpo_vllm.prepare(generation, adapted, tokenizer)
    generation.sync_weights()
    sent = generation.done[0]
    assert {name for name in sent if name.startswith("mlp1.")} == {
        "mlp1.0.weight", "mlp1.0.bias", "mlp1.1.weight", "mlp1.1.bias", "mlp1.3.weight",
        "mlp1.3.bias",
    }  # fmt: skip
    [adapted_name] = sent - {name for name in sent if name.startswith("mlp1.")}
    assert adapted_name.endswith("layers.0.self_attn.q_proj.weight")


def test_a_missing_vllm_is_found_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr(grpo_vllm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="vLLM is not installed in this environment"):
        grpo_vllm.check_installed()


def test_tiles_that_vllm_would_not_make_are_refused(tmp_path):
    """vLLM tiles as config.json says, whatever a recipe does."""
    data = tmp_path / "data.jsonl"
    data.write_text('{"solution": "2", "conversations": [{"from": "human", "value": "1 + 1?"}]}\n')
    words = ["--model", str(checkpoints.NANO), "--data", str(data), "--max_tiles", "4"]
    words += ["--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--bf16", "false"]
    recipe, config = grpo_recipe.parse(words)
    config.use_vllm = True  # its own check would want vLLM to be there
    with pytest.raises(ValueError, match=r"max_tiles=4: vLLM makes up to 6 tiles"):
        grpo.make_trainer(recipe, config)
