"""What a generation is told, and what it may write: options, image tokens, broken logits."""

from unittest import mock

import pytest
import torch
from transformers import AutoModel, GenerationConfig, LogitsProcessor

from memory import sizes as memory_sizes
from remote_code import configuration_skywork_chat
from tests import checkpoints

IMAGES = checkpoints.ROOT / "examples" / "images"
CALCULATION, COUNTING = str(IMAGES / "calculation_1.png"), str(IMAGES / "counting_1.png")
GREEDY = {"max_new_tokens": 24, "do_sample": False}

# Every option of transformers' generate: a value that is not its default, and the words of the
# refusal, or None where chat() takes it.
NEEDS_IDS, IS_TEXT, ONE_ANSWER = "needs the token ids", "which is a text", "one answer"
OPTIONS = {
    "max_length": (200, None), "max_new_tokens": (4, None), "min_length": (1, None),
    "min_new_tokens": (1, None), "early_stopping": (True, None), "max_time": (60.0, None),
    "stop_strings": (["#"], None), "do_sample": (True, None), "num_beams": (2, None),
    "use_cache": (False, None), "cache_implementation": ("dynamic", None),
    "cache_config": ({}, None), "temperature": (0.7, None), "top_k": (5, None),
    "top_p": (0.9, None), "min_p": (0.1, None),
    "top_h": (0.5, None), "typical_p": (0.9, None), "epsilon_cutoff": (1e-3, None),
    "eta_cutoff": (1e-3, None), "repetition_penalty": (1.1, None), "length_penalty": (1.1, None),
    "no_repeat_ngram_size": (3, None), "bad_words_ids": ([[50]], None),
    "renormalize_logits": (True, None), "forced_bos_token_id": (50, None),
    "forced_eos_token_id": (999, None), "remove_invalid_values": (True, None),
    "exponential_decay_length_penalty": ((3, 1.1), None), "suppress_tokens": ([50], None),
    "begin_suppress_tokens": ([50], None), "sequence_bias": ({(50,): 1.0}, None),
    "watermarking_config": ({"bias": 2.0}, None), "pad_token_id": (5, None),
    "bos_token_id": (1002, None), "eos_token_id": (999, None),
    "prompt_lookup_num_tokens": (3, None), "disable_compile": (True, None),
    "num_return_sequences": (2, ONE_ANSWER),
    # without effect but beside another option, which is refused, or for other kinds of models
    "assistant_confidence_threshold": (0.3, None), "assistant_lookbehind": (2, None),
    "assistant_ensemble_weight": (None, None), "decoder_start_token_id": (5, None),
    "diversity_penalty": (0.0, None), "low_memory": (True, None), "max_cache_len": (None, None),
    "max_matching_ngram_size": (2, None), "num_assistant_tokens": (3, None),
    "num_assistant_tokens_schedule": ("constant", None), "num_beam_groups": (1, None),
    "speculation_type": (None, None), "target_lookbehind": (2, None),
    "compile_config": (None, None), "continuous_batching_config": (None, None),
    "transformers_version": (None, None),
    "assistant_early_exit": (2, NEEDS_IDS), "constraints": ([1], NEEDS_IDS),
    "dola_layers": ("low", NEEDS_IDS), "encoder_no_repeat_ngram_size": (3, NEEDS_IDS),
    "encoder_repetition_penalty": (1.2, NEEDS_IDS), "force_words_ids": ([[50]], NEEDS_IDS),
    "guidance_scale": (1.5, NEEDS_IDS), "is_assistant": (True, NEEDS_IDS),
    "penalty_alpha": (0.5, NEEDS_IDS), "prefill_chunk_size": (16, NEEDS_IDS),
    "token_healing": (True, NEEDS_IDS), "use_mtp": (True, NEEDS_IDS),
    "output_attentions": (True, IS_TEXT), "output_hidden_states": (True, IS_TEXT),
    "output_scores": (True, IS_TEXT), "output_logits": (True, IS_TEXT),
    "return_dict_in_generate": (True, IS_TEXT),
}  # fmt: skip


def test_the_options_are_those_of_transformers():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert known <= OPTIONS.keys(), "decide whether chat() takes them"


@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_taken_or_refused_by_name(nano_model, nano_tokenizer, name):
    value, refusal = OPTIONS[name]
    options = {"max_new_tokens": 6, "do_sample": False, name: value}
    asks = [
        lambda: nano_model.chat(nano_tokenizer, None, "2 + 2?", options),
        lambda: nano_model.batch_chat(nano_tokenizer, None, ["2 + 2?"], options),
        lambda: list(nano_model.chat_stream(nano_tokenizer, None, "2 + 2?", options)),
    ]
    if name == "num_beams":
        asks.pop()  # transformers' streamers take one beam, and it says so
    for ask in asks:
        if refusal is None:
            assert ask()
        else:
            with pytest.raises(ValueError, match=f"{name}=.*{refusal}"):
                ask()


@pytest.mark.parametrize("name, value", [
    ("assistant_model", object()), ("guidance_scale", 2.0), ("prefill_chunk_size", 8),
])  # fmt: skip
def test_generate_from_embeddings_refuses_what_needs_ids(nano_model, name, value):
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match=f"{name}=.*{NEEDS_IDS}"):
        nano_model.generate(input_ids=ids, max_new_tokens=2, **{name: value})
    config = GenerationConfig(max_new_tokens=2)
    setattr(config, name, value)
    with pytest.raises(ValueError, match=f"{name}=.*{NEEDS_IDS}"):
        nano_model.generate(input_ids=ids, generation_config=config)


@pytest.mark.parametrize("name", ["input_ids", "pixel_values", "inputs_embeds", "attention_mask"])
def test_chat_makes_its_own_inputs(nano_model, nano_tokenizer, name):
    with pytest.raises(ValueError, match=f"{name} is made of the question"):
        nano_model.chat(nano_tokenizer, None, "Hi", {name: torch.zeros(1, 1), **GREEDY})


def test_guidance_works_in_the_standard_class(nano_standard, nano_processor):
    """Where the prompt has ids: with a scale of 1 it changes nothing, with another it runs."""
    inputs = nano_processor(images=CALCULATION, text="<image>\nCalculate.", return_tensors="pt")
    plain = nano_standard.generate(**inputs, **GREEDY)
    assert torch.equal(nano_standard.generate(**inputs, **GREEDY, guidance_scale=1.0), plain)
    assert len(nano_standard.generate(**inputs, **GREEDY, guidance_scale=1.5)[0])


class TestImageTokensAreNeverWritten:
    """Also where the model wants to: here its head is made to prefer them above all."""

    @pytest.fixture
    def eager_to_draw(self, nano_standard, monkeypatch):
        """A processor list that makes image tokens and the begin token the best ones."""

        class Prefer(LogitsProcessor):
            def __call__(self, input_ids, scores):
                scores = scores.clone()
                scores[:, [1023, 1002]] = 1e4
                return scores

        return [Prefer()]

    def test_in_both_classes(self, nano_model, nano_standard, eager_to_draw):
        ids = torch.tensor([[1002, 1000, 5]])
        options = {"max_new_tokens": 8, "logits_processor": eager_to_draw}
        for model in (nano_model, nano_standard):
            for sampling in ({"do_sample": False}, {"do_sample": True}, {"num_beams": 2}):
                written = model.generate(input_ids=ids, **options, **sampling)
                new = written[:, 3:] if model is nano_standard else written
                assert not {1023, 1002} & set(new.flatten().tolist())

    def test_the_end_of_a_text_is_not_among_them(self, root_config):
        """The 38B model's llm_config names it as the token that begins a text."""
        assert root_config.llm_config.bos_token_id == root_config.llm_config.eos_token_id
        config = configuration_skywork_chat.SkyworkChatConfig(**root_config.to_dict())
        model = memory_sizes.model_without_weights(config)
        published = GenerationConfig.from_pretrained(checkpoints.ROOT)
        for generation_config in (model.generation_config, published):
            model.generation_config = generation_config
            assert root_config.llm_config.eos_token_id not in model.never_generated_ids
            assert root_config.image_token_id in model.never_generated_ids

    def test_in_chat(self, nano_model, nano_tokenizer, eager_to_draw):
        """All of the images' tokens there, whose ids the tokenizer has."""
        with mock.patch.object(nano_model, "generate", wraps=nano_model.generate) as generate:
            nano_model.chat(nano_tokenizer, None, "Hi", dict(GREEDY))
        suppressed = {
            token
            for processor in generate.call_args.kwargs["logits_processor"]
            for token in getattr(processor, "ids", ())
        }
        assert suppressed == {1021, 1022, 1023, 1002}

    def test_those_of_another_engine_are_words(self, nano_standard, nano_processor):
        """Scoring a completion that has one, as GRPO does."""
        inputs = nano_processor(
            images=[[CALCULATION], [COUNTING]],
            text=["<image>\nCalculate.", "<image>\nCount."],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        written = torch.tensor([[5, 1023, 6], [1023, 1023, 7]])
        ids = torch.cat([inputs["input_ids"], written], dim=1)
        mask = torch.cat([inputs["attention_mask"], torch.ones_like(written)], dim=1)
        with torch.no_grad():
            output = nano_standard(
                input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"]
            )
            alone = nano_standard(**inputs)
        assert torch.isfinite(output.logits).all()
        for row, length in enumerate(inputs["attention_mask"].sum(dim=1)):
            # what stands before the completion does not see it
            torch.testing.assert_close(
                output.logits[row, :length], alone.logits[row, :length], atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_an_error(nano_tokenizer, damage):
    """Rather than "!!!!", of which the first token of the vocabulary is made."""
    model = AutoModel.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    with torch.no_grad():
        model.language_model.lm_head.weight[3, 7] = damage
        model.language_model.model.norm.weight[7] = damage
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        model.chat(nano_tokenizer, None, "Hi", dict(GREEDY))


def test_chat_takes_a_processor_for_its_tokenizer(nano_model, nano_tokenizer, nano_processor):
    for ask in (nano_model.chat, nano_model.batch_chat, nano_model.chat_stream):
        question = ["Hi"] if ask.__name__ == "batch_chat" else "Hi"
        answers = [
            "".join(ask(given, None, question, dict(GREEDY)))
            for given in (nano_processor, nano_tokenizer)
        ]
        assert answers[0] == answers[1]
