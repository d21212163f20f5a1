"""The whole model: golden files, transformers' InternVL as a second oracle, caches, losses.

The golden files were computed on one processor by one library, and InternVL runs other kernels. So
logits are compared within a tolerance, and greedy ids up to a tie (tests/comparison.py).
"""

import sys

import pytest
import torch
from transformers.generation import GenerationMixin

from benchmarks import models
from remote_code import configuration_skywork_chat, modeling_skywork_chat
from tests import checkpoints, comparison

PROMPT = ("pixel_values", "input_ids", "attention_mask")
# Of logits of the order of 10 in float32, whatever the kernels and the shapes
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def golden_prompt():
    inputs = checkpoints.golden("inputs")
    return {name: inputs[name] for name in PROMPT}


def assert_golden_ids(model, new_ids):
    """Check that new tokens after the golden prompt are the golden file's, up to a tie."""
    expected = checkpoints.golden("expected")["generated_ids"]
    assert new_ids.shape == expected.shape
    (prompt,) = comparison.prompts_of(model, **golden_prompt())
    comparison.assert_same_greedy(prompt.next_logits, new_ids[0].tolist(), expected[0].tolist())


def test_golden_features_logits_and_loss(golden_model):
    inputs, expected = checkpoints.golden("inputs"), checkpoints.golden("expected")
    with torch.no_grad():
        features = golden_model.extract_feature(inputs["pixel_values"])
        output = golden_model(**golden_prompt(), labels=inputs["labels"])
    torch.testing.assert_close(features, expected["image_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.loss.view(1), expected["loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["generated_ids", "batch_generated_ids", "text_generated_ids"])
def test_golden_ids(golden_model, kind):
    inputs, options = checkpoints.golden("inputs"), {"do_sample": False, "pad_token_id": 0}
    if kind == "generated_ids":
        prompt = golden_prompt()
    elif kind == "batch_generated_ids":
        prompt = {name: inputs[f"batch_{name}"] for name in PROMPT}
    else:
        text = inputs["text_input_ids"]
        prompt = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    expected = checkpoints.golden("expected")[kind]
    ids = golden_model.generate(**prompt, max_new_tokens=expected.shape[1], **options)
    assert ids.shape == expected.shape
    comparison.assert_same_rows(golden_model, prompt, ids, expected)


def test_every_loaded_tensor_equals_the_file(golden_model):
    loaded, weights = golden_model.state_dict(), checkpoints.golden("model")
    assert set(loaded) == set(weights)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())


@pytest.fixture(scope="module")
def internvl():
    """transformers' own InternVL with the golden checkpoint's weights mapped across."""
    config = configuration_skywork_chat.SkyworkChatConfig.from_pretrained(checkpoints.GOLDEN)
    return models.build_internvl(
        config, checkpoints.golden("model"), checkpoints.GOLDEN_IMAGE_TOKEN
    )


def test_internvl_features_and_logits(golden_model, internvl):
    with torch.no_grad():
        theirs = internvl(**golden_prompt())
        ours = golden_model(**golden_prompt(), use_cache=True)
        features = internvl.model.get_image_features(golden_prompt()["pixel_values"]).pooler_output
        torch.testing.assert_close(
            golden_model.extract_feature(golden_prompt()["pixel_values"]).flatten(0, 1),
            torch.cat(list(features)).view(-1, 64), atol=1e-5, rtol=1e-5,
        )  # fmt: skip
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-4, rtol=1e-4)


def test_internvl_with_cache_step_by_step(golden_model, internvl):
    """Prefill, then one token at a time: logits equal InternVL's uncached ones at each position."""
    prompt, extra = golden_prompt(), torch.tensor([[31, 77, 5, 250]])
    ids = torch.cat([prompt["input_ids"], extra], 1)
    with torch.no_grad():
        theirs = internvl(input_ids=ids, pixel_values=prompt["pixel_values"]).logits
        output = golden_model(**prompt, use_cache=True)
        for step in range(extra.shape[1]):
            position = prompt["input_ids"].shape[1] + step
            torch.testing.assert_close(
                output.logits[:, -1], theirs[:, position - 1], atol=1e-4, rtol=1e-4
            )
            output = golden_model(
                input_ids=ids[:, position : position + 1],
                attention_mask=torch.ones(1, position + 1, dtype=torch.long),
                past_key_values=output.past_key_values,
                use_cache=True,
            )


def test_left_padded_batch_equals_single_rows_of_internvl(golden_model, internvl):
    inputs = checkpoints.golden("inputs")
    ids, mask, pixels = (
        inputs[f"batch_{name}"] for name in ("input_ids", "attention_mask", "pixel_values")
    )
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        batch = golden_model(
            pixel_values=pixels, input_ids=ids, attention_mask=mask, position_ids=positions
        ).logits
        start = 0
        for row in range(2):
            real = mask[row].bool()
            tiles = int((ids[row] == checkpoints.GOLDEN_IMAGE_TOKEN).sum()) // 4
            single = internvl(
                input_ids=ids[row : row + 1, real], pixel_values=pixels[start : start + tiles]
            ).logits
            torch.testing.assert_close(batch[row, real], single[0], atol=1e-4, rtol=1e-4)
            start += tiles


def test_internvl_generates_the_same(internvl, golden_path):
    """The class with transformers' conventions: prompt and completion, token for token."""
    model = modeling_skywork_chat.SkyworkChatForConditionalGeneration.from_pretrained(
        golden_path, torch_dtype=torch.float32
    ).eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": 2}
    ours, theirs = (
        model.generate(**golden_prompt(), **options),
        internvl.generate(**golden_prompt(), **options),
    )
    comparison.assert_same_rows(model, golden_prompt(), ours, theirs)
    assert_golden_ids(model, ours[:, 41:])


@pytest.mark.parametrize("options", [
    pytest.param({"use_cache": False}, id="without a cache"),
    pytest.param({"cache_implementation": "static"}, id="static cache"),
    pytest.param({"prompt_lookup_num_tokens": 3}, id="prompt lookup"),
])  # fmt: skip
def test_ways_of_decoding_agree(golden_path, options):
    model = modeling_skywork_chat.SkyworkChatForConditionalGeneration.from_pretrained(
        golden_path, torch_dtype=torch.float32
    ).eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    basic = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**golden_prompt(), **basic)
    if "cache_implementation" in options:
        options = {**options, "disable_compile": True}
    ids = model.generate(**golden_prompt(), **basic, **options)
    comparison.assert_same_rows(model, golden_prompt(), ids, expected)


def test_generate_from_embeddings_in_the_standard_class(golden_path):
    model = modeling_skywork_chat.SkyworkChatForConditionalGeneration.from_pretrained(
        golden_path, torch_dtype=torch.float32
    ).eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    prompt = dict(golden_prompt())
    expected = model.generate(**prompt, **options)
    embeddings = model.embed(prompt.pop("input_ids"), prompt.pop("pixel_values"))
    new_ids = model.generate(inputs_embeds=embeddings, **prompt, **options)
    ids = torch.cat([golden_prompt()["input_ids"], new_ids], dim=1)
    comparison.assert_same_rows(model, golden_prompt(), ids, expected)


def mean_log_probability(model, ids, length):
    """Of the tokens after the golden prompt: the score by which beam search chooses."""
    (prompt,) = comparison.prompts_of(model, **golden_prompt())
    new_ids = comparison.until_stop(ids[0, length:].tolist(), 2)
    log_probabilities = prompt.logits_along(new_ids)[:-1].log_softmax(-1)
    return log_probabilities.gather(1, torch.tensor(new_ids)[:, None]).mean()


def test_beam_search_equals_internvl(internvl, golden_path):
    """The same beam; or, as the kernels differ, another of the same score."""
    model = modeling_skywork_chat.SkyworkChatForConditionalGeneration.from_pretrained(
        golden_path, torch_dtype=torch.float32
    ).eval()
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    options = {
        "max_new_tokens": 8,
        "num_beams": 3,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    ours = model.generate(**golden_prompt(), **options)
    theirs = internvl.generate(**golden_prompt(), **options)
    length = golden_prompt()["input_ids"].shape[1]
    assert torch.equal(ours[:, :length], theirs[:, :length])
    if not torch.equal(ours, theirs):
        torch.testing.assert_close(
            mean_log_probability(model, ours, length),
            mean_log_probability(model, theirs, length),
            atol=comparison.TIE,
            rtol=0,
        )


@pytest.mark.parametrize(
    "kept", [1, 5, torch.tensor([0, 3, 40])], ids=["last", "last five", "chosen"]
)
def test_logits_to_keep(golden_model, kept):
    with torch.no_grad():
        full = golden_model(**golden_prompt()).logits
        part = golden_model(**golden_prompt(), logits_to_keep=kept).logits
    expected = full[:, kept] if torch.is_tensor(kept) else full[:, -kept:]
    # The head's product has another shape
    torch.testing.assert_close(part, expected, **CLOSE)


def test_embeddings_and_features_replace_ids_and_pixels(golden_model):
    prompt = golden_prompt()
    with torch.no_grad():
        expected = golden_model(**prompt).logits
        features = golden_model.extract_feature(prompt["pixel_values"])
        by_features = golden_model(
            input_ids=prompt["input_ids"],
            attention_mask=prompt["attention_mask"],
            image_features=features,
        )
        embeds = golden_model.embed(prompt["input_ids"], prompt["pixel_values"])
        by_embeds = golden_model(inputs_embeds=embeds, attention_mask=prompt["attention_mask"])
    torch.testing.assert_close(by_features.logits, expected, **CLOSE)
    torch.testing.assert_close(by_embeds.logits, expected, **CLOSE)


def test_backbone_gives_what_the_head_takes(golden_model):
    with torch.no_grad():
        hidden = golden_model.base_model(
            **golden_prompt(), logits_to_keep=3, use_cache=False
        ).last_hidden_state
        logits = golden_model.get_output_embeddings()(hidden)
        expected = golden_model(**golden_prompt()).logits
    torch.testing.assert_close(logits, expected, **CLOSE)  # one of them with a cache
    assert "base_model" not in dict(golden_model.named_modules())


def test_loss_is_the_mean_over_labels_or_divided_as_told(golden_model):
    labels = checkpoints.golden("inputs")["labels"]
    with torch.no_grad():
        mean = golden_model(**golden_prompt(), labels=labels).loss
        divided = golden_model(
            **golden_prompt(), labels=labels, num_items_in_batch=torch.tensor(70)
        ).loss
        nothing = golden_model(**golden_prompt(), labels=torch.full_like(labels, -100)).loss
    # A mean, and a sum that is divided: two ways to add up
    torch.testing.assert_close(divided, mean * 7 / 70, atol=1e-5, rtol=1e-5)
    assert nothing == 0, "no term at all"
    with pytest.raises(ValueError, match="logits_to_keep=0"):
        golden_model(**golden_prompt(), labels=labels, logits_to_keep=2)


def test_flagged_tiles_are_left_out(golden_model):
    prompt, generator = golden_prompt(), torch.Generator().manual_seed(0)
    padding = torch.randn(2, 3, 56, 56, generator=generator)
    padded = torch.cat([prompt["pixel_values"], padding])
    flags = torch.tensor([1, 1, 1, 1, 1, 0, 0]).view(-1, 1)
    with torch.no_grad():
        expected = golden_model(**prompt).logits
        logits = golden_model(**{**prompt, "pixel_values": padded}, image_flags=flags).logits
        torch.testing.assert_close(logits, expected, **CLOSE)
        text = checkpoints.golden("inputs")["text_input_ids"]
        flagged = golden_model(
            input_ids=text, pixel_values=padded[:1], image_flags=torch.tensor([0])
        )
        torch.testing.assert_close(flagged.logits, golden_model(input_ids=text).logits, **CLOSE)


@pytest.mark.parametrize(
    "tiles, numbers",
    [(4, ("20 image tokens", "16 features")), (0, ("20 image tokens", "0 features"))],
)
def test_images_that_do_not_match_show_both_numbers(golden_model, tiles, numbers):
    prompt = golden_prompt()
    prompt["pixel_values"] = prompt["pixel_values"][:tiles] if tiles else None
    with pytest.raises(ValueError) as error:
        golden_model(**prompt)
    assert all(number in str(error.value) for number in numbers)


def test_images_twice_are_an_error(golden_model):
    inputs = checkpoints.golden("inputs")
    pixels, ids = inputs["pixel_values"], inputs["input_ids"]
    features = golden_model.extract_feature(pixels)
    with pytest.raises(ValueError, match="not both"):
        golden_model.generate(pixel_values=pixels, input_ids=ids, visual_features=features)
    with pytest.raises(ValueError, match="not both"):
        golden_model(pixel_values=pixels, input_ids=ids, image_features=features)


def test_images_beside_embeddings(golden_model):
    """As in transformers' own models, image tokens are known by their embedding.

    Bit for bit: the same features go to the same places.
    """
    prompt = golden_prompt()
    embeds = golden_model.get_input_embeddings()(prompt["input_ids"])
    given = {name: value for name, value in prompt.items() if name != "input_ids"}
    with torch.no_grad():
        expected = golden_model(**prompt).logits
        assert torch.equal(golden_model(inputs_embeds=embeds, **given).logits, expected)
    ids = golden_model.generate(**prompt, max_new_tokens=4)
    assert torch.equal(golden_model.generate(inputs_embeds=embeds, **given, max_new_tokens=4), ids)
    filled = golden_model.embed(prompt["input_ids"], prompt["pixel_values"])
    with pytest.raises(ValueError, match="0 image tokens"):
        golden_model(inputs_embeds=filled, **given)


def test_images_without_tokens_are_an_error(golden_model):
    inputs = checkpoints.golden("inputs")
    with pytest.raises(ValueError, match=r"0 image tokens .* 20 features"):
        golden_model(input_ids=inputs["text_input_ids"], pixel_values=inputs["pixel_values"])


def test_chunks_of_tiles_change_nothing_and_bound_the_work(golden_model, monkeypatch):
    """Nothing but the last bits: products of other shapes add up in another order."""
    generator = torch.Generator().manual_seed(0)
    pixel_values, sizes = torch.randn(23, 3, 56, 56, generator=generator), []
    hook = golden_model.vision_model.encoder.register_forward_pre_hook(
        lambda _, args: sizes.append(len(args[0]))
    )
    with hook, torch.no_grad():
        whole = golden_model.extract_feature(pixel_values)
        assert sizes == [23]
        features = sys.modules[type(golden_model).extract_feature.__module__]
        monkeypatch.setattr(features, "POSITIONS_PER_CHUNK_ON_CPU", 5 * 17)
        chunked = golden_model.extract_feature(pixel_values)
    assert sizes == [23, 5, 5, 5, 5, 3]
    # As close as the golden files ask for, and no two tiles are that close to each other
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)
    between_tiles = (whole[:, None] - whole).abs().flatten(2).amax(-1)
    assert between_tiles.fill_diagonal_(1).min() > 1e-2


def test_the_language_model_is_a_generation_mixin(golden_model):
    """vLLM's reference runner asks for it, and calls generate on it with embeddings."""
    assert isinstance(golden_model.language_model, GenerationMixin)
    prompt = golden_prompt()
    embeds = golden_model.embed(prompt["input_ids"], prompt["pixel_values"])
    ids = golden_model.language_model.generate(
        inputs_embeds=embeds,
        attention_mask=prompt["attention_mask"],
        max_new_tokens=24,
        do_sample=False,
        pad_token_id=0,
    )
    assert_golden_ids(golden_model, ids)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementation_reaches_both_towers(golden_path, implementation):
    from transformers import AutoModel

    model = AutoModel.from_pretrained(
        golden_path, trust_remote_code=True, attn_implementation=implementation
    ).eval()
    assert model.vision_model.config._attn_implementation == implementation
    assert model.language_model.config._attn_implementation == implementation
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    with torch.no_grad():
        torch.testing.assert_close(
            model(**golden_prompt()).logits,
            checkpoints.golden("expected")["logits"],
            atol=1e-4,
            rtol=1e-4,
        )
    other = "sdpa" if implementation == "eager" else "eager"
    model.set_attn_implementation(other)
    assert (
        model.vision_model.config._attn_implementation
        == model.language_model.config._attn_implementation
        == other
    )


def test_a_language_model_given_its_own_attention_keeps_it():
    config = configuration_skywork_chat.SkyworkChatConfig(**checkpoints.tiny_config())
    config.llm_config.attn_implementation = "eager"  # what scripts of the published lineage set
    model = modeling_skywork_chat.SkyworkChatModel(config)
    assert model.language_model.config._attn_implementation == "eager"
    assert model.vision_model.config._attn_implementation == "sdpa"
