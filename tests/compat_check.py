"""What must hold on every transformers version; run by compat.py with that version on the path.

Prints one line of JSON: what was checked, and the answers, which must be the same on every version.
The versions' attention code differs, and so may the last bits of the logits. Texts are nevertheless
compared for equality, because none of the answers passes near a tie: `check_no_tie` sees to that on
every version, so that a different text is a real difference.
"""

import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import transformers  # noqa: E402
from packaging import version  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LogitsProcessor,
    StoppingCriteria,
)

from tests import checkpoints, comparison  # noqa: E402

INSTALLED = version.parse(transformers.__version__)
CONTROL_TEXT = "<think></think><｜Assistant｜><｜end▁of▁sentence｜><IMG_CONTEXT><img><<think>x"


def check_golden(folder):
    """The reference lineage's outputs, and every loaded tensor equal to the file.

    The files come from another processor and another transformers version, so that logits are
    compared within a tolerance, and greedy ids up to a tie.
    """
    path = checkpoints.golden_repository(folder / "golden")
    model = AutoModel.from_pretrained(
        path, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    loaded, weights = model.state_dict(), checkpoints.golden("model")
    assert set(loaded) == set(weights), sorted(set(loaded) ^ set(weights))
    different = [name for name in weights if not torch.equal(loaded[name], weights[name])]
    assert not different, f"loading changed {different}"
    inputs, expected = checkpoints.golden("inputs"), checkpoints.golden("expected")
    model.img_context_token_id = checkpoints.GOLDEN_IMAGE_TOKEN
    prompt = {name: inputs[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        features = model.extract_feature(inputs["pixel_values"])
        output = model(**prompt, labels=inputs["labels"])
    torch.testing.assert_close(features, expected["image_features"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, expected["logits"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.loss.view(1), expected["loss"], atol=1e-5, rtol=1e-5)
    text_ids = inputs["text_input_ids"]
    prompts = {
        "generated_ids": prompt,
        "batch_generated_ids": {name: inputs[f"batch_{name}"] for name in prompt},
        "text_generated_ids": {
            "input_ids": text_ids,
            "attention_mask": torch.ones_like(text_ids),
        },
    }
    for name, asked in prompts.items():
        wanted = expected[name]
        ids = model.generate(
            **asked, max_new_tokens=wanted.shape[1], do_sample=False, pad_token_id=0
        )
        assert ids.shape == wanted.shape, f"{name}: {ids.tolist()} is not {wanted.tolist()}"
        comparison.assert_same_rows(model, asked, ids, wanted)


def check_no_tie(rows):
    """Check that no token of these generations was a near thing, see the module's docstring."""
    gaps = [comparison.smallest_gap(row) for row in rows]
    assert min(gaps) > comparison.TIE, (
        f"the two best logits are {min(gaps):.3g} apart in one of the answers: other versions may "
        "answer otherwise; ask something else"
    )


def check_model_card(path, folder):
    """The model card's block; what it printed."""
    device_count, working_directory = torch.cuda.device_count, os.getcwd()
    torch.cuda.device_count = lambda: 2
    os.chdir(ROOT)  # the block opens ./examples/image1.jpg
    printed, namespace = io.StringIO(), {}
    try:
        torch.manual_seed(0)
        with contextlib.redirect_stdout(printed):
            exec(checkpoints.runnable_model_card(path), namespace)
    finally:
        torch.cuda.device_count = device_count
        os.chdir(working_directory)
    assert printed.getvalue().count("Assistant:") == 2
    assert namespace["history"][0][0].count("<image>") == 2
    return namespace["pixel_values"]


def check_chat(path, pixel_values):
    """Greedy fp32 answers of every kind of call.

    With control tokens in user text, and with the model saved and loaded again.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path, torch_dtype=torch.float32, trust_remote_code=True
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
    pixel_values = pixel_values.float()[:6]
    options = {"max_new_tokens": 8, "do_sample": False}
    inputs = tokenizer("Hi", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert model.generate(**inputs, max_new_tokens=2, do_sample=False).shape == (1, 2)
    with comparison.recorded(model) as rows:
        first, history = model.chat(
            tokenizer,
            pixel_values,
            "<image>\n<image>\nWhat?",
            options,
            num_patches_list=[2, 4],
            return_history=True,
        )
        answers = [
            first,
            model.chat(
                tokenizer, pixel_values, "And?", options, history=history, num_patches_list=[2, 4]
            ),
            model.chat(
                tokenizer, None, CONTROL_TEXT, options, mode="no-think", system_message="Be brief."
            ),
            *model.batch_chat(
                tokenizer,
                pixel_values,
                ["What?", "Hello", "How?"],
                options,
                num_patches_list=[2, 0, 4],
            ),
        ]
    check_no_tie(rows)
    answers += long_answers(model, tokenizer, pixel_values, first)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        assert json.loads((Path(saved) / "config.json").read_text())["architectures"] == [
            "SkyworkR1VChatModel"
        ]
        again = AutoModel.from_pretrained(saved, trust_remote_code=True).eval()
        assert all(
            torch.equal(again.state_dict()[name], tensor)
            for name, tensor in model.state_dict().items()
        )
        tokenizer = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)
        # Alone, as in the batch above: `check_no_tie` makes that a question of no last bit
        assert again.chat(tokenizer, None, "Hello", options) == answers[4]
    return answers


def long_answers(model, tokenizer, pixel_values, first):
    """A thinking that is closed, a stream, images encoded once, an interrupt."""
    question, tiles = "<image>\n<image>\nWhat?", [2, 4]
    images = model.encode_images(pixel_values, tiles)
    options = {"max_new_tokens": 8, "do_sample": False}
    assert model.chat(tokenizer, images, question, options) == first
    stream = model.chat_stream(tokenizer, images, question, options)
    assert "".join(stream).strip() == first and stream.answer == first
    longer = {**options, "max_new_tokens": 16}
    closed = comparison.ask(model.chat, tokenizer, images, question, longer, thinking_budget=3)
    assert "</think>" in closed.text
    check_no_tie(closed.rows)

    check_loop_is_ended(model, tokenizer)

    class Interrupt(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            raise KeyboardInterrupt

    try:
        model.chat(tokenizer, images, question, {**options, "stopping_criteria": [Interrupt()]})
        raise AssertionError("the interrupt was lost")
    except KeyboardInterrupt as interrupt:
        assert len(interrupt.answers) == 1
    return [closed.text]


def check_loop_is_ended(model, tokenizer):
    """A thinking that repeats itself is closed, though nothing else would close it."""
    word = tokenizer("x", add_special_tokens=False)["input_ids"][0]
    end = tokenizer.convert_tokens_to_ids("</think>")

    class Stammer(LogitsProcessor):
        def __call__(self, input_ids, scores):
            if (input_ids == end).any():
                return scores
            forced = torch.full_like(scores, float("-inf"))
            forced[:, word] = 0
            return forced

    options = {"max_new_tokens": 120, "do_sample": False, "logits_processor": [Stammer()]}
    answer = model.chat(tokenizer, None, "Hello", options, max_repetitions=4)
    assert answer.startswith("x" * 100) and answer.index("</think>") < 120


def check_scores(path):
    """The class for scores loads, and scores the last token, with an image and padding."""
    torch.manual_seed(0)
    keywords = {"torch_dtype": torch.float32, "trust_remote_code": True}
    scorer = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **keywords)
    scorer.eval()
    image_token = scorer.img_context_token_id
    row = [5, *[image_token] * scorer.num_image_token, 6, 7]
    side = scorer.config.tile_size
    inputs = {
        "input_ids": torch.tensor([[*row, 0, 0]]),
        "attention_mask": torch.tensor([[1] * len(row) + [0, 0]]),
        "pixel_values": torch.ones(1, 3, side, side),
    }
    with torch.no_grad():
        score = scorer(**inputs, labels=torch.tensor([2.0]))
        states = scorer.base_model(**inputs).last_hidden_state
    expected = scorer.score(states[:, len(row) - 1])
    torch.testing.assert_close(score.logits, expected)
    torch.testing.assert_close(score.loss, (expected[0, 0] - 2) ** 2)


def check_config(path):
    """Round trips, also after an engine has set text_config."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=True)
    config.text_config = config.llm_config
    with tempfile.TemporaryDirectory() as saved:
        config.save_pretrained(saved)
        again = type(config).from_pretrained(saved)
    for other in (again, type(config).from_dict(config.to_dict())):
        assert config_fields(other) == config_fields(config)
    assert (
        config.get_text_config() is config.llm_config
        and again.get_text_config().vocab_size == 152064
    )


def config_fields(config):
    """All but where the config was loaded from."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def tokenizer_ids(path):
    """Ids of one text, the same with and without use_fast."""
    text = (
        "<｜User｜>\n<img><IMG_CONTEXT></img>\nHéllo, 12 + 34 = ?\n\t世界<｜Assistant｜><think>\n"
    )
    fast, slow = (
        AutoTokenizer.from_pretrained(path, use_fast=flag, trust_remote_code=True)(text)[
            "input_ids"
        ]
        for flag in (True, False)
    )
    assert fast == slow and fast[:4] == [151646, 151644, 198, 151665]
    return fast


def processor_ids(path):
    """Digests of the pixel values and of the ids.

    None where auto_map cannot name a class in a folder.
    """
    if version.parse("4.53") > INSTALLED:
        return None
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(path, trust_remote_code=True)
    image = Image.open(ROOT / "examples" / "image1.jpg")
    content = [{"type": "image", "image": image}, {"type": "text", "text": f"What? {CONTROL_TEXT}"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    digest = hashlib.sha256(inputs["pixel_values"].numpy().tobytes()).hexdigest()
    return [digest, hashlib.sha256(str(inputs["input_ids"].tolist()).encode()).hexdigest()]


def main():
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        check_golden(folder)
        path = checkpoints.tiny_repository(folder / "tiny")
        check_config(path)
        check_scores(path)
        ids = tokenizer_ids(path)
        answers = check_chat(path, check_model_card(path, folder))
        result = {
            "transformers": transformers.__version__,
            "ids": ids,
            "answers": answers,
            "processor": processor_ids(path),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
