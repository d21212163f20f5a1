"""Repositories put together from parts.

They are complete, can be loaded, and are equal to their sources; each misfit is one clear error.
"""

import errno
import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    AutoTokenizer,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from remote_code import conversation
from serving.engines import prompt_ids_for_vllm
from tests import checkpoints
from training import assemble as assembly
from training.assemble import assemble
from training.assembly_plan import AssemblyPlan
from training.nano import text, tokenizer
from training.rows import ChatSample
from training.sample_encoder import IGNORED, SampleEncoder

GREEDY = {"max_new_tokens": 4, "do_sample": False}


def write_language_model(folder, seed=0, **changes):
    torch.manual_seed(seed)
    tokenizer.write(folder)
    config = {
        **text.CONFIG,
        "num_hidden_layers": 2,
        "max_window_layers": 2,
        "bos_token_id": 1002,
        "eos_token_id": 999,
    }
    Qwen2ForCausalLM(Qwen2Config(**{**config, **changes})).to(torch.bfloat16).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two children of one base, an encoder alone, and a repository assembled from the first."""
    folder = tmp_path_factory.mktemp("parts")
    write_language_model(folder / "instruct", 1)
    write_language_model(folder / "reasoning", 2)
    vision = folder / "vision"
    vision.mkdir()
    weights = load_file(checkpoints.NANO / "model.safetensors")
    save_file(
        {
            name.removeprefix("vision_model."): w
            for name, w in weights.items()
            if name.startswith("vision_model.")
        },
        vision / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((checkpoints.NANO / "config.json").read_text())["vision_config"]
    (vision / "config.json").write_text(json.dumps({**config, "model_type": "intern_vit_6b"}))
    assemble(folder / "whole", vision, folder / "instruct", settings={"max_dynamic_patch": 6})
    return folder


def test_a_repository_from_parts_works(parts):
    """AutoModel, tokenizer and processor load it, and its tensors are those of the sources.

    The embeddings of the image tokens are the mean of the others.
    """
    model = AutoModel.from_pretrained(
        parts / "whole", trust_remote_code=True, torch_dtype=torch.bfloat16
    ).eval()
    tokens = AutoTokenizer.from_pretrained(parts / "whole", trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(parts / "whole", trust_remote_code=True)
    assert tokens.convert_tokens_to_ids(["<img>", "</img>", "<IMG_CONTEXT>"]) == [1021, 1022, 1023]
    assert model.config.image_token_id == 1023 and model.config.template == "skywork-r1v"
    assert model.config.llm_config.rope_parameters["rope_theta"] == 1e6
    ours, vision = model.state_dict(), load_file(parts / "vision" / "model.safetensors")
    language = load_file(parts / "instruct" / "model.safetensors")
    for name, tensor in vision.items():
        assert torch.equal(ours[f"vision_model.{name}"], tensor), name
    for name, tensor in language.items():
        if name != "model.embed_tokens.weight":
            assert torch.equal(ours[f"language_model.{name}"], tensor), name
    old, new = (
        language["model.embed_tokens.weight"],
        ours["language_model.model.embed_tokens.weight"],
    )
    assert torch.equal(old[:1021], new[:1021])
    torch.testing.assert_close(
        new[1021:].float(), old[:1021].float().mean(0).expand(3, -1), atol=1e-3, rtol=1e-2
    )
    answer = model.chat(tokens, checkpoints.ROOT / "examples" / "image1.jpg", "What?", GREEDY)
    assert isinstance(answer, str)
    inputs = processor(
        images=[checkpoints.ROOT / "examples" / "image1.jpg"],
        text="<image>\nWhat?",
        return_tensors="pt",
    )
    assert len(inputs["pixel_values"]) * 16 == int((inputs["input_ids"] == 1023).sum())


def test_the_config_reads_alike_on_every_version(parts):
    """The config has no key that only transformers 5 writes.

    Version 4.37 would silently take another rotary base.
    """
    config = json.loads((parts / "whole" / "config.json").read_text())
    assert (
        config["llm_config"]["rope_theta"] == 1e6 and "rope_parameters" not in config["llm_config"]
    )
    assert config["torch_dtype"] == config["llm_config"]["torch_dtype"] == "bfloat16"
    assert (
        config["auto_map"] == json.loads((checkpoints.ROOT / "config.json").read_text())["auto_map"]
    )


def test_swapping_the_language_model(parts, tmp_path):
    """Vision encoder and projector stay, and the other child comes in.

    Its logits on text are its own, bit for bit: the same layers run on the same shapes.
    """
    notes = assemble(
        tmp_path / "swapped", parts / "whole", parts / "reasoning", mlp1=parts / "whole"
    )
    assert not any("mlp1 is new" in note for note in notes)
    before, after = (
        load_file(folder / "model.safetensors")
        for folder in (parts / "whole", tmp_path / "swapped")
    )
    for name in before:
        same = torch.equal(before[name], after[name])
        if name.startswith(("vision_model.", "mlp1.")):
            assert same, name
        elif name.endswith("q_proj.weight"):
            assert not same, name
    model = AutoModel.from_pretrained(
        tmp_path / "swapped", trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    child = Qwen2ForCausalLM.from_pretrained(parts / "reasoning", dtype=torch.float32).eval()
    ids = torch.arange(0, 1000, 7)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, child(ids).logits)
    config = json.loads((tmp_path / "swapped" / "config.json").read_text())
    assert config["max_dynamic_patch"] == 6  # a setting of the source


def test_language_model_of_a_repository(parts, tmp_path):
    """A language model can be taken from a repository, which has the image tokens already."""
    notes = assemble(tmp_path / "again", parts / "vision", parts / "whole", mlp1=parts / "whole")
    assert not any("appended" in note for note in notes)
    first, second = (
        load_file(folder / "model.safetensors") for folder in (parts / "whole", tmp_path / "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_vocabulary_that_is_full_grows(parts, tmp_path):
    write_language_model(tmp_path / "full", 3, vocab_size=1021)
    notes = assemble(tmp_path / "out", parts / "vision", tmp_path / "full")
    assert any("grown from 1021 to 1024 rows" in note for note in notes)
    weights, old = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(tmp_path / "full" / "model.safetensors"),
    )
    for ours, theirs in (("language_model.lm_head.weight", "lm_head.weight"),):
        assert weights[ours].shape == (1024, 256) and torch.equal(weights[ours][:1021], old[theirs])
        torch.testing.assert_close(
            weights[ours][1022].float(), old[theirs].float().mean(0), atol=1e-3, rtol=1e-2
        )
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.get_input_embeddings().weight.shape[0] == 1024


def test_tied_heads(parts, tmp_path):
    write_language_model(tmp_path / "tied", 4, tie_word_embeddings=True)
    assemble(tmp_path / "out", parts / "vision", tmp_path / "tied")
    assert "language_model.lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_new_projectors_follow_the_seed(parts, tmp_path):
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        assemble(tmp_path / str(number), parts / "vision", parts / "instruct", seed=seed)
        weights.append(load_file(tmp_path / str(number) / "model.safetensors")["mlp1.1.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert weights[0].float().std() == pytest.approx(1024**-0.5, rel=0.02)


def test_new_projectors_give_features_of_the_size_of_embeddings(parts):
    """The embeddings of text have a root mean square of 0.02.

    Without scaling that of the features would be 0.6, and 9 in later layers.
    """
    model = AutoModel.from_pretrained(
        parts / "whole", trust_remote_code=True, torch_dtype=torch.float32
    ).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        features = model.mlp1(torch.randn(64, 1024, generator=generator))
        embeddings = model.get_input_embeddings().weight[:1021]
    assert features.square().mean().sqrt() == pytest.approx(
        float(embeddings.square().mean().sqrt()), rel=0.15
    )


def test_a_chatml_language_model(parts, tmp_path):
    """A language model with Qwen2.5's control tokens gets the other template."""
    folder = write_language_model(tmp_path / "qwen", 5)
    serialized = json.loads((folder / "tokenizer.json").read_text())
    for token in serialized["added_tokens"]:
        renamed = {"<｜User｜>": "<|im_start|>", "<｜Assistant｜>": "<|im_end|>"}
        token["content"] = renamed.get(token["content"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(serialized))
    assemble(tmp_path / "out", parts / "vision", folder)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True)
    messages = [{"role": "system", "content": "Be brief."}]
    messages += [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hm.\n</think>\n\nOh"},
    ]
    messages += [{"role": "user", "content": "And?"}]
    prompt = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked = conversation.get_conv_template("skywork-r1v3")
    asked.system_message = "Be brief."
    for role, text_of_turn in zip((0, 1, 0, 1), ("Hi", "Hm.\n</think>\n\nOh", "And?", None)):
        asked.append_message(asked.roles[role], text_of_turn)
    assert prompt == asked.get_prompt()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["template"] == "skywork-r1v3"


def write_instruct_model(folder, **renamed):
    """A language model with Qwen2.5's control tokens, of which `<think>` is none."""
    write_language_model(folder, 5)
    serialized = json.loads((folder / "tokenizer.json").read_text())
    names = {
        "<｜User｜>": "<|im_start|>", "<｜Assistant｜>": "<|im_end|>",
        "<think>": "<|fim_a|>", "</think>": "<|fim_b|>", **renamed,
    }  # fmt: skip
    for token in serialized["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    (folder / "tokenizer.json").write_text(json.dumps(serialized))
    return folder


QWEN_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."


@pytest.fixture(scope="module")
def instruct(parts, tmp_path_factory):
    """A repository with an instruct model, assembled twice: the second takes the first's part."""
    folder = tmp_path_factory.mktemp("instruct")
    language_model = write_instruct_model(folder / "qwen")
    assemble(folder / "first", parts / "vision", language_model)
    assemble(folder / "second", parts / "vision", folder / "first")
    return folder / "second"


def test_an_instruct_model_is_not_made_to_think(instruct):
    """The prompt is Qwen2.5's own, as its model card's template writes it."""
    config = json.loads((instruct / "config.json").read_text())
    assert config["template"] == "qwen2.5"
    tokenizer = AutoTokenizer.from_pretrained(instruct, trust_remote_code=True)
    model = AutoModel.from_pretrained(instruct, trust_remote_code=True, torch_dtype=torch.float32)
    seen = []
    model.generate = lambda **inputs: seen.append(inputs) or torch.zeros(1, 0, dtype=torch.int64)
    history = [("Hi", "a</think>b")]
    for options in ({}, {"mode": "no-think"}, {"system_message": ""}, {"system_message": "Short."}):
        model.chat(tokenizer, None, "And?", {"max_new_tokens": 1}, history=history, **options)
    rest = (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\na</think>b<|im_end|>\n"
        "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )
    default = f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n"
    short = "<|im_start|>system\nShort.<|im_end|>\n"
    prompts = [tokenizer.decode(inputs["input_ids"][0]) for inputs in seen]
    assert prompts == [default + rest, default + rest, rest, short + rest]
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a</think>b"},
        {"role": "user", "content": "And?"},
    ]
    processor = AutoProcessor.from_pretrained(instruct, trust_remote_code=True)
    for system, inputs in zip((None, None, "", "Short."), seen):
        messages = turns if system is None else [{"role": "system", "content": system}, *turns]
        encoded = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        assert torch.as_tensor(encoded["input_ids"]).flatten().tolist() == (
            inputs["input_ids"][0].tolist()
        )
    template = conversation.get_conv_template(config["template"])
    for system, inputs in ((None, seen[0]), ("", seen[2]), ("Short.", seen[3])):
        question = {"question": "And?", "images": [], "history": history, "system": system}
        ids = prompt_ids_for_vllm(tokenizer, template, question)
        assert ids == inputs["input_ids"][0].tolist()
    with pytest.raises(ValueError, match="does not think"):
        model.chat(tokenizer, None, "Hi", {"max_new_tokens": 99}, thinking_budget=5)


@pytest.mark.parametrize("answer, learned", [
    ("Three.", "Three."),
    ("I count.\n</think>\n\nThree.", "I count.\n\nThree."),  # chains of thought, without marks
    ("<think>\n\n</think>\n\nThree.", "Three."),
])  # fmt: skip
def test_an_instruct_model_learns_answers_alone(instruct, answer, learned):
    processor = AutoProcessor.from_pretrained(instruct, trust_remote_code=True)
    config = AutoConfig.from_pretrained(instruct, trust_remote_code=True)
    encode = SampleEncoder(config, processor.tokenizer, processor.image_processor, 2000)
    sample = encode(ChatSample([("Hi", answer)], []))
    labels = sample["labels"]
    assert processor.tokenizer.decode(sample["input_ids"][labels == IGNORED]) == (
        f"<|im_start|>system\n{QWEN_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert processor.tokenizer.decode(labels[labels != IGNORED]) == f"{learned}<|im_end|>\n"


@pytest.mark.parametrize("renamed, asked, name", [
    ({}, None, "qwen2.5"),
    ({"<think>": "<think>"}, None, "skywork-r1v3"),  # QwQ, Qwen3
    ({}, "skywork-r1v3", "skywork-r1v3"),  # R1V3, whose tokenizer is Qwen2.5's
])  # fmt: skip
def test_the_template_follows_from_the_tokenizer_or_is_asked_for(
    parts, tmp_path, renamed, asked, name
):
    language_model = write_instruct_model(tmp_path / "qwen", **renamed)
    settings = {} if asked is None else {"template": asked}
    plan = AssemblyPlan(parts / "vision", language_model, settings=settings)
    assert plan.config["template"] == name
    assert any(name in note for note in plan.notes)


def test_a_template_that_nobody_knows_is_an_error(parts):
    with pytest.raises(ValueError, match="'chatml' is unknown; expected one of skywork-r1v,"):
        AssemblyPlan(parts / "vision", parts / "whole", settings={"template": "chatml"})


CHATS = {
    "a question": [("user", "Hi")],
    "a system message": [("system", "Be brief."), ("user", "Hi")],
    "several turns": [
        ("user", "Hi"),
        ("assistant", "Hm.\n</think>\n\nOh"),
        ("user", "And?"),
        ("assistant", "So.\n</think>\n\nYes"),
        ("user", "<image>\nWhat?"),
    ],
    "everything": [
        ("system", "Be brief.\n"),
        ("user", " Hi "),
        ("assistant", "\n</think>\n\nOh"),
        ("user", "And?"),
    ],
}


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", assembly.CHAT_TEMPLATES)
def test_chat_templates_write_what_the_conversation_does(nano_tokenizer, name, chat, thinks):
    template = (checkpoints.ROOT / assembly.CHAT_TEMPLATES[name]).read_text(encoding="utf-8")
    messages = [{"role": role, "content": content} for role, content in CHATS[chat]]
    prompt = nano_tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        **({} if thinks else {"enable_thinking": False}),
    )
    asked = conversation.get_conv_template(name)
    assert asked.name == name
    roles = {"user": asked.roles[0], "assistant": asked.roles[1]}
    for role, content in CHATS[chat]:
        if role == "system":
            asked.system_message = content
        else:
            asked.append_message(roles[role], content)
    asked.append_message(asked.roles[1], None)
    skipped = "" if thinks else asked.skipped_thinking
    assert prompt == asked.begin + asked.get_prompt() + skipped


def test_the_chat_templates_differ_in_control_tokens_only():
    """Which stand at the head, so that a change to the rest is made in both files."""
    rests = []
    for name in assembly.CHAT_TEMPLATES:
        path = checkpoints.ROOT / assembly.CHAT_TEMPLATES[name]
        head, start, rest = path.read_text(encoding="utf-8").partition("{#- A control token that")
        assert start and "<|" in head and "<|" not in rest and "<｜" not in rest
        rests.append(rest)
    assert len(set(rests)) == 1


@pytest.mark.parametrize("name", assembly.CHAT_TEMPLATES)
def test_a_template_gets_the_control_tokens_of_the_tokenizer(nano_tokenizer, name):
    """Whatever tokenizer a model is assembled with, each of its added tokens is protected."""
    template = (checkpoints.ROOT / assembly.CHAT_TEMPLATES[name]).read_text(encoding="utf-8")
    tokens = ["<|new|>", "<it's>", "</think>"]
    changed = assembly.with_control_tokens(template, tokens)
    messages = [{"role": "user", "content": "".join(tokens) + "<|EOT|>"}]
    rendered = nano_tokenizer.apply_chat_template(messages, chat_template=changed, tokenize=False)
    assert "<\ue0c5|new|><\ue0c5it's><\ue0c5/think><|EOT|>" in rendered


def test_the_default_template_has_every_control_token_of_the_tokenizer(root_tokenizer):
    template = (checkpoints.ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    control_tokens = sorted(
        root_tokenizer.get_added_vocab(), key=root_tokenizer.get_added_vocab().get
    )
    spaced = " ".join(template.split())
    listed = ", ".join(f"'{token}'" for token in control_tokens)
    assert f"control_tokens or [ {listed} ] -%}}" in spaced


def change_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def drop_tensor(folder, name):
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_vocabulary(folder):
    serialized = json.loads((folder / "tokenizer.json").read_text())
    first, second = list(serialized["model"]["vocab"])[300:302]
    vocab = serialized["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (folder / "tokenizer.json").write_text(json.dumps(serialized))


MISFITS = {
    "another width": (
        lambda folder: write_language_model(folder, hidden_size=128, num_attention_heads=2),
        "mlp1",
        ValueError,
        "vision width of 1024 to a language width of 256.*need 1024 and 128",
    ),
    "another base vocabulary": (other_vocabulary, "mlp1", ValueError, "another base vocabulary"),
    "tied, but two heads": (
        lambda folder: change_config(folder, tie_word_embeddings=True),
        None,
        ValueError,
        "differs from the embeddings",
    ),
    "untied, but no head": (
        lambda folder: drop_tensor(folder, "lm_head.weight"),
        None,
        ValueError,
        "there is no lm_head.weight",
    ),
    "a missing tensor": (
        lambda folder: drop_tensor(folder, "model.norm.weight"),
        None,
        ValueError,
        "1 tensors are missing: model.norm.weight",
    ),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        None,
        FileNotFoundError,
        "no weights",
    ),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        None,
        FileNotFoundError,
        "no tokenizer.json",
    ),
    "another architecture": (
        lambda folder: change_config(
            folder, architectures=["LlamaForCausalLM"], model_type="llama"
        ),
        None,
        ValueError,
        "'llama'; expected a Qwen2ForCausalLM",
    ),
    "quantized": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "awq"}),
        None,
        ValueError,
        "quantized",
    ),
    "config and weights of two models": (
        lambda folder: change_config(folder, intermediate_size=512),
        None,
        ValueError,
        "does not fit its weights",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_one_clear_error(parts, tmp_path, name):
    spoil, mlp1, kind, message = MISFITS[name]
    shutil.copytree(parts / "reasoning", tmp_path / "child")
    spoil(tmp_path / "child")
    with pytest.raises(kind, match=message):
        assemble(
            tmp_path / "out", parts / "vision", tmp_path / "child", mlp1=mlp1 and parts / "whole"
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_sources_that_are_none(parts, tmp_path):
    for arguments, message in (
        ((parts / "instruct", parts / "instruct"), "no InternViT tensors"),
        ((tmp_path / "nowhere", parts / "instruct"), "nowhere: expected a checkpoint's directory"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            assemble(tmp_path / "out", *arguments)
    with pytest.raises(ValueError, match=r"no tensors named mlp1"):
        assemble(tmp_path / "out", parts / "vision", parts / "instruct", mlp1=parts / "vision")
    with pytest.raises(FileExistsError, match="exists"):
        assemble(parts / "whole", parts / "vision", parts / "instruct")


def test_interruption_keeps_whole_shards(parts, tmp_path, monkeypatch):
    """Nothing looks complete before it is, and a second run writes only what is missing.

    The result is the same as without an interruption.
    """
    written, write_shard = [], assembly.write_shard

    def breaks_at_third(path, *arguments):
        if len(written) == 2:
            path.with_suffix(".tmp").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.name)
        write_shard(path, *arguments)

    monkeypatch.setattr(assembly, "write_shard", breaks_at_third)
    settings = {"max_shard_bytes": 2_000_000, "settings": {"max_dynamic_patch": 6}}
    with pytest.raises(
        OSError, match="disk is full; free some space and run the same command again"
    ):
        assemble(tmp_path / "out", parts / "vision", parts / "instruct", **settings)
    assert (
        not (tmp_path / "out").exists() and not (tmp_path / "out.partial" / "config.json").exists()
    )
    again = []
    monkeypatch.setattr(
        assembly, "write_shard", lambda path, *a: (again.append(path.name), write_shard(path, *a))
    )
    assemble(tmp_path / "out", parts / "vision", parts / "instruct", **settings)
    assert not set(again) & set(written) and len(written) == 2 and len(again) >= 3
    assert not list((tmp_path / "out").glob("*.tmp")) and not (tmp_path / "out.partial").exists()
    weights = {}
    for shard in (tmp_path / "out").glob("*.safetensors"):
        weights |= load_file(shard)
    whole = load_file(parts / "whole" / "model.safetensors")
    assert weights.keys() == whole.keys() and all(
        torch.equal(weights[name], whole[name]) for name in whole
    )
    model = AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert model.config.max_dynamic_patch == 6


def test_other_sizes_of_files_start_over(parts, tmp_path, monkeypatch):
    """Files of the same names may hold other tensors."""
    write_shard, written = assembly.write_shard, []

    def breaks_at_third(path, *arguments):
        written.append(path.name)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_shard(path, *arguments)

    monkeypatch.setattr(assembly, "write_shard", breaks_at_third)
    with pytest.raises(OSError, match="disk is full"):
        assemble(tmp_path / "out", parts / "vision", parts / "instruct", max_shard_bytes=2_000_000)
    monkeypatch.setattr(assembly, "write_shard", write_shard)
    assemble(tmp_path / "out", parts / "vision", parts / "instruct", max_shard_bytes=2_200_000)
    weights = {
        name for shard in (tmp_path / "out").glob("*.safetensors") for name in load_file(shard)
    }
    assert weights == load_file(parts / "whole" / "model.safetensors").keys()


def test_other_sources_start_over(parts, tmp_path, monkeypatch):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "plan.json").write_text("another plan")
    (partial / "model.safetensors").write_bytes(b"of another plan")
    assemble(tmp_path / "out", parts / "vision", parts / "instruct")
    assert load_file(tmp_path / "out" / "model.safetensors")


def test_a_disk_without_room_is_found_before_writing(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OSError, match=r"0\.0 GB are needed and 0\.0 GB are free") as raised:
        assemble(tmp_path / "out", parts / "vision", parts / "instruct")
    assert raised.value.errno == errno.ENOSPC


def test_memory_stays_at_the_largest_tensor(parts, tmp_path):
    """A language model of 0.9 GB, whose largest tensor is 155 MB, is not held in memory."""
    folder = tmp_path / "large"
    write_language_model(
        folder, 6, intermediate_size=151_000, num_hidden_layers=4, max_window_layers=4
    )
    program = (
        "import resource, sys; from training.assemble import assemble\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"assemble({str(tmp_path / 'out')!r}, {str(parts / 'vision')!r}, {str(folder)!r})\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=checkpoints.ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    grown = int(done.stdout.split()[-1])
    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert total > 0.9e9
    assert grown < 0.5e9, f"{grown / 1e9:.2f} GB for {total / 1e9:.2f} GB of weights"


def test_older_checkpoints_with_pickled_weights(parts, tmp_path):
    shutil.copytree(parts / "instruct", tmp_path / "old")
    torch.save(
        load_file(tmp_path / "old" / "model.safetensors"), tmp_path / "old" / "pytorch_model.bin"
    )
    (tmp_path / "old" / "model.safetensors").unlink()
    assemble(
        tmp_path / "out", parts / "vision", tmp_path / "old", settings={"max_dynamic_patch": 6}
    )
    first, second = (
        load_file(folder / "model.safetensors") for folder in (parts / "whole", tmp_path / "out")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_command_line(parts, tmp_path):
    command = [
        sys.executable,
        "-m",
        "training.assemble",
        str(tmp_path / "out"),
        "--vision",
        str(parts / "vision"),
    ]
    done = subprocess.run(
        [*command, "--language-model", str(tmp_path)],
        cwd=checkpoints.ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(
        "error: --language-model"
    )
