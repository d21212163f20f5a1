"""chat() and batch_chat(): which prompt reaches the model; different ways to ask, equal answers.

Answers are compared for equality where the same kernels run on the same shapes, so where the same
prompt and the same tiles are asked about alone. A batch is padded and encodes more tiles at once:
its answers are those of single calls up to a tie (tests/comparison.py).
"""

import copy
import json
import re
import shutil
import sys
import threading

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import (
    AutoModel,
    GenerationConfig,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from remote_code import conversation
from tests import checkpoints, comparison

IMAGES = checkpoints.ROOT / "examples" / "images"
CALCULATION, COUNTING = str(IMAGES / "calculation_1.png"), str(IMAGES / "counting_1.png")
GREEDY = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def tiles(nano_processor):
    """(tiles of both pictures, tiles of each)."""
    features = nano_processor.image_processor([CALCULATION, COUNTING])
    return features["pixel_values"], features["num_patches"].tolist()


@pytest.fixture
def seen(nano_model, monkeypatch):
    """The arguments of every generate() call."""
    calls, generate = [], type(nano_model).generate

    def record(self, **arguments):
        calls.append(arguments)
        return generate(self, **arguments)

    monkeypatch.setattr(type(nano_model), "generate", record)
    return calls


def prompt_of(call, tokenizer, row=0):
    real = call["attention_mask"][row].bool()
    return tokenizer.decode(call["input_ids"][row][real])


def expanded(count):
    return f"<img>{'<IMG_CONTEXT>' * (16 * count)}</img>"


def test_positional_order_and_history(nano_model, nano_tokenizer, tiles, seen):
    pixel_values, counts = tiles
    first, history = nano_model.chat(
        nano_tokenizer, pixel_values[: counts[0]], "What?", GREEDY, None, True, [counts[0]],
        "<img>", "</img>", "<IMG_CONTEXT>", False,
    )  # fmt: skip
    assert history == [("<image>\nWhat?", first)]
    second, longer = nano_model.chat(
        nano_tokenizer,
        pixel_values,
        "<image>\nAnd?",
        GREEDY,
        history=history,
        return_history=True,
        num_patches_list=counts,
    )
    assert longer == [*history, ("<image>\nAnd?", second)] and len(history) == 1
    begin = "<｜begin▁of▁sentence｜><｜User｜>\n"
    assert (
        prompt_of(seen[0], nano_tokenizer)
        == f"{begin}{expanded(counts[0])}\nWhat?<｜Assistant｜><think>\n"
    )
    assert prompt_of(seen[1], nano_tokenizer) == (
        f"{begin}{expanded(counts[0])}\nWhat?<｜Assistant｜><think>\n{first}<｜end▁of▁sentence｜><｜User｜>\n"
        f"{expanded(counts[1])}\nAnd?<｜Assistant｜><think>\n"
    )


def test_a_word_in_a_history_takes_no_image_of_a_batch(nano_model, nano_tokenizer, tiles, seen):
    """The first question has no image, though its history has the word <image>."""
    pixel_values, counts = tiles
    _, history = nano_model.chat(
        nano_tokenizer, None, "What is <image> in HTML?", GREEDY, return_history=True
    )
    questions = ["And <b>?", "<image>\n<image>\nCompare."]
    asked = {"num_patches_list": [[], counts], "history": [history, None]}
    nano_model.batch_chat(nano_tokenizer, pixel_values, questions, GREEDY, **asked)
    first, second = (prompt_of(seen[-1], nano_tokenizer, row) for row in (0, 1))
    assert "<IMG_CONTEXT>" not in first and all(expanded(count) in second for count in counts)


@pytest.mark.parametrize("question, start", [
    ("Which?", "{0}\n{1}\nWhich?"), ("<image>\n<image>\nWhich?", "{0}\n{1}\nWhich?"),
    ("A <image> B <image> C <image>?", "A {0} B {1} C <image>?"),
])  # fmt: skip
def test_placeholders_of_two_images(nano_model, nano_tokenizer, tiles, seen, question, start):
    pixel_values, counts = tiles
    nano_model.chat(nano_tokenizer, pixel_values, question, GREEDY, num_patches_list=counts)
    wanted = start.format(*(expanded(count) for count in counts))
    assert (
        prompt_of(seen[0], nano_tokenizer)
        == f"<｜begin▁of▁sentence｜><｜User｜>\n{wanted}<｜Assistant｜><think>\n"
    )


def test_modes_system_message_and_text_only(nano_model, nano_tokenizer, seen, monkeypatch):
    nano_model.chat(
        nano_tokenizer,
        None,
        "What is <image> in HTML?",
        GREEDY,
        mode="no-think",
        system_message="Be brief.",
    )
    monkeypatch.setattr(nano_model, "system_message", "Always.")  # as VLMEvalKit does
    nano_model.chat(
        tokenizer=nano_tokenizer,
        pixel_values=None,
        num_patches_list=[],
        question="Hi",
        generation_config=GREEDY,
        verbose=False,
    )
    assert prompt_of(seen[0], nano_tokenizer) == (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>\nWhat is <image> in HTML?"
        "<｜Assistant｜><think>\n\n</think>\n\n"
    )
    assert prompt_of(seen[1], nano_tokenizer).startswith(
        "<｜begin▁of▁sentence｜>Always.<｜User｜>\nHi"
    )
    assert seen[0]["pixel_values"] is None


@pytest.mark.parametrize("given", [
    lambda: CALCULATION, lambda: [CALCULATION], lambda: Image.open(CALCULATION),
    lambda: IMAGES / "calculation_1.png",
], ids=["path", "list", "PIL", "Path"])  # fmt: skip
def test_images_in_place_of_tiles(nano_model, nano_tokenizer, tiles, given):
    pixel_values, counts = tiles
    expected = nano_model.chat(nano_tokenizer, pixel_values[: counts[0]], "What?", GREEDY)
    assert nano_model.chat(nano_tokenizer, given(), "What?", GREEDY) == expected


def test_images_become_tiles_in_the_models_dtype(nano_model, nano_tokenizer, tiles, seen):
    """For a model in bf16 never in float32, which takes twice the memory.

    The answer is that to float32's tiles, which the vision tower rounds to the same values.
    """
    pixel_values, counts = tiles
    model = copy.deepcopy(nano_model).to(torch.bfloat16)
    answers = [
        model.chat(nano_tokenizer, given, "What?", GREEDY)
        for given in (CALCULATION, pixel_values[: counts[0]])
    ]
    assert answers[0] == answers[1] and seen[0]["pixel_values"].dtype == torch.bfloat16
    assert torch.equal(seen[0]["pixel_values"], pixel_values[: counts[0]].to(torch.bfloat16))


def test_batch_of_any_mix_equals_single_calls(nano_model, nano_tokenizer, tiles):
    pixel_values, counts = tiles
    first, second = pixel_values.split(counts)
    questions = [
        "What?",
        "What is 12 + 34?",
        "<image>\n<image>\nWhich?",
        "How many shapes are in the image?",
    ]
    images = [CALCULATION, None, [CALCULATION, COUNTING], COUNTING]
    singles = comparison.ask_each(nano_model, nano_tokenizer, images, questions, GREEDY)
    batch = comparison.ask(nano_model.batch_chat, nano_tokenizer, images, questions, GREEDY)
    comparison.assert_same_answers(singles, batch)
    stacked = torch.cat([first, first, second, second])
    nested = [[counts[0]], [], counts, [counts[1]]]
    asked = [nano_tokenizer, stacked, questions, GREEDY]
    answers = nano_model.batch_chat(*asked, num_patches_list=nested)
    # The same tiles in the same batch, and so the same values
    assert answers == batch.texts
    again, histories = nano_model.batch_chat(*asked, num_patches_list=nested, return_history=True)
    assert again == answers
    assert histories[3] == [("<image>\nHow many shapes are in the image?", answers[3])]


def test_a_flat_list_of_tiles_gives_each_question_one_image(
    nano_model, nano_tokenizer, tiles, seen
):
    """As the published batch_chat() reads it; 0 stands for a question without an image."""
    pixel_values, counts = tiles
    nano_model.batch_chat(
        nano_tokenizer, pixel_values, ["A?", "B?"], GREEDY, num_patches_list=counts
    )
    one, none = "<image>\nA?", "B?"
    nano_model.batch_chat(
        nano_tokenizer,
        pixel_values[: counts[0]],
        [one, none],
        GREEDY,
        num_patches_list=[counts[0], 0],
    )
    images = [
        [prompt_of(call, nano_tokenizer, row).count("<img>") for row in range(2)] for call in seen
    ]
    assert images == [[1, 1], [1, 0]]


@pytest.mark.parametrize("questions, lists", [
    (["<image><image>A?", "B?"], "[[3, 7], []]"),  # one each, or both the first's
    (["A?", "<image>\n<image>\nB?"], "[[], [3, 7]]"),
    (["<image>\n<image>\nA?"], "[[3, 7]]"),  # the published code takes one number for each question
    (["<image>A?", "<image>B?", "C?"], "[[3], [7], []]"),
])  # fmt: skip
def test_an_ambiguous_flat_list_is_an_error_that_shows_the_list_to_write(
    nano_model, nano_tokenizer, tiles, seen, questions, lists
):
    pixel_values, counts = tiles
    with pytest.raises(ValueError, match=re.escape(f"images: {lists}")):
        nano_model.batch_chat(
            nano_tokenizer, pixel_values, questions, GREEDY, num_patches_list=counts
        )
    assert not seen


def test_a_word_in_an_earlier_turn_takes_no_image(nano_model, nano_tokenizer, tiles, seen):
    pixel_values, counts = tiles
    word = "What is <image> in HTML?"
    _, history = nano_model.chat(nano_tokenizer, None, word, GREEDY, return_history=True)
    for question in ("What is this?", "<image>\nWhat is this?"):
        nano_model.chat(
            nano_tokenizer,
            pixel_values[: counts[0]],
            question,
            GREEDY,
            history,
            num_patches_list=counts[:1],
        )
    for call in seen[1:]:
        prompt = prompt_of(call, nano_tokenizer)
        assert word in prompt and f"{expanded(counts[0])}\nWhat is this?" in prompt
    batch = comparison.ask(nano_model.batch_chat, nano_tokenizer, None, [word, "Hi"], GREEDY)
    single = comparison.ask(nano_model.chat, nano_tokenizer, None, word, GREEDY)
    comparison.assert_same_answers(single, batch.of(0))


def test_turns_without_thinking_are_replayed_as_they_were(nano_model, nano_tokenizer, seen):
    answer, history = nano_model.chat(
        nano_tokenizer, None, "Hi", GREEDY, return_history=True, mode="no-think"
    )
    nano_model.chat(nano_tokenizer, None, "And?", GREEDY, history, mode="no-think")
    turn = "<｜User｜>\n{}<｜Assistant｜><think>\n\n</think>\n\n"
    assert prompt_of(seen[1], nano_tokenizer) == (
        f"<｜begin▁of▁sentence｜>{turn.format('Hi')}{answer}"
        f"<｜end▁of▁sentence｜>{turn.format('And?')}"
    )
    assert "</think>" not in answer


def test_generation_settings(nano_model, nano_tokenizer, seen, monkeypatch):
    with pytest.raises(ValueError, match="num_return_sequences=2"):
        nano_model.batch_chat(
            nano_tokenizer, None, ["A", "B"], {**GREEDY, "num_return_sequences": 2}
        )
    assert not seen
    nano_model.chat(
        nano_tokenizer, None, "Hi", {**GREEDY, "pad_token_id": None, "eos_token_id": None}
    )
    monkeypatch.setattr(
        nano_model, "generation_config", GenerationConfig(max_new_tokens=3, do_sample=False)
    )
    assert len(nano_tokenizer(nano_model.chat(nano_tokenizer, None, "Hi", None))["input_ids"]) <= 4


def test_what_the_tokenizer_gives_is_what_generate_takes(nano_model, nano_standard, nano_tokenizer):
    inputs = nano_tokenizer("Hi", return_tensors="pt")
    assert set(inputs) == {"input_ids", "attention_mask"}
    new = nano_model.generate(**inputs, max_new_tokens=3, do_sample=False)
    full = nano_standard.generate(**inputs, max_new_tokens=3, do_sample=False)
    # The chat class generates from embeddings, the standard class from ids
    expected = torch.cat([inputs["input_ids"], new], dim=1)
    assert full.shape == expected.shape
    comparison.assert_same_rows(nano_standard, inputs, full, expected)


def test_the_callers_arguments_come_back_unchanged(nano_model, nano_tokenizer, tiles):
    pixel_values, counts = tiles
    options, history = {"max_new_tokens": 4, "do_sample": False}, [("<image>\nWhat?", "x")]
    config = GenerationConfig(max_new_tokens=4, do_sample=False)
    before = copy.deepcopy((options, history, counts, config.to_dict()))
    settings = (
        nano_tokenizer.padding_side,
        nano_tokenizer.pad_token,
        len(nano_tokenizer),
        nano_model.img_context_token_id,
    )
    pixels, attributes = pixel_values.clone(), set(vars(nano_model))
    for generation_config in (options, config):
        nano_model.chat(
            nano_tokenizer, pixel_values, "<image>?", generation_config, history, True, counts
        )
        nano_model.batch_chat(
            nano_tokenizer, pixel_values, ["A", "B"], generation_config, num_patches_list=counts
        )
    assert (options, history, counts, config.to_dict()) == before
    assert torch.equal(pixels, pixel_values) and set(vars(nano_model)) == attributes
    assert settings == (
        nano_tokenizer.padding_side,
        nano_tokenizer.pad_token,
        len(nano_tokenizer),
        nano_model.img_context_token_id,
    )


def test_a_cache_config_comes_back_unchanged(nano_model, nano_tokenizer, monkeypatch):
    """transformers 4.56 to 5.18 takes the backend out of it, and puts the model's config in."""
    generate = type(nano_model.language_model).generate

    def generate_as_then(self, *arguments, cache_config=None, **keywords):
        assert cache_config.pop("backend") == "hqq"
        cache_config["config"] = self.config
        return generate(self, *arguments, **keywords)

    monkeypatch.setattr(type(nano_model.language_model), "generate", generate_as_then)
    options = {**GREEDY, "cache_config": {"backend": "hqq", "nbits": 8}}
    for _ in range(2):
        nano_model.chat(nano_tokenizer, None, "Hi", options)
    assert options == {**GREEDY, "cache_config": {"backend": "hqq", "nbits": 8}}


def test_a_row_that_ended_early_has_no_padding_in_its_answer(nano_model, nano_tokenizer):
    """Not even of an ordinary token: 0 is "!"."""
    assert nano_tokenizer.decode([0]) == "!"
    questions, options = (
        ["What is 3 + 4?", "What is 98 - 19?"],
        {"max_new_tokens": 60, "do_sample": False},
    )
    singles = comparison.ask_each(nano_model, nano_tokenizer, [None, None], questions, options)
    assert len({len(row.new_ids) for row in singles.rows}) == 2
    padded = comparison.ask(
        nano_model.batch_chat,
        nano_tokenizer,
        [None, None],
        questions,
        {**options, "pad_token_id": 0},
    )
    comparison.assert_same_answers(singles, padded)
    assert not any("!" in answer for answer in padded.texts)


def test_a_stop_token_that_can_be_seen_stays(nano_model, nano_tokenizer):
    options = {
        **GREEDY,
        "max_new_tokens": 60,
        "eos_token_id": nano_tokenizer.convert_tokens_to_ids("</think>"),
    }
    assert nano_model.chat(nano_tokenizer, None, "What is 3 + 4?", options).endswith("</think>")


def test_a_generation_config_object_is_the_same_as_a_dict(nano_model, nano_tokenizer):
    by_object = nano_model.chat(nano_tokenizer, CALCULATION, "What?", GenerationConfig(**GREEDY))
    assert by_object == nano_model.chat(nano_tokenizer, CALCULATION, "What?", GREEDY)


def test_streaming_gives_the_answer_in_pieces(nano_model, nano_tokenizer):
    question = "What is the result of the calculation in the image?"
    options = {"max_new_tokens": 120, "do_sample": False}
    streamer = TextIteratorStreamer(nano_tokenizer, skip_prompt=True, skip_special_tokens=True)
    results = []
    thread = threading.Thread(
        target=lambda: results.append(
            nano_model.chat(
                nano_tokenizer, CALCULATION, question, {**options, "streamer": streamer}
            )
        )
    )
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 5 and "".join(pieces).strip() == results[0]
    assert results[0] == nano_model.chat(nano_tokenizer, CALCULATION, question, options)


def test_verbose_logs_prompt_and_answer_and_prints_nothing(
    nano_model, nano_tokenizer, capsys, monkeypatch
):
    records = []
    module = sys.modules[type(nano_model).__module__.replace("modeling_skywork_chat", "chat")]
    monkeypatch.setattr(module.logger, "warning", records.append)
    answer = nano_model.chat(nano_tokenizer, None, "Hello there", GREEDY, verbose=True)
    assert len(records) == 1 and "Hello there" in records[0] and records[0].endswith(answer)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("call, words", [
    ({"num_patches_list": [3]}, ["num_patches_list=[3]", "2"]),
    ({"num_patches_list": [2, 0]}, ["each at least 1"]),
    ({"num_patches_list": [1, 1], "question": "only one <image>"}, ["2 images", "1 <image>"]),
    ({"mode": "fast"}, ["mode='fast'", "no-think"]),
])  # fmt: skip
def test_bad_calls_say_what_was_expected(nano_model, nano_tokenizer, tiles, seen, call, words):
    arguments = {
        "pixel_values": tiles[0][:2],
        "question": "What?",
        "generation_config": GREEDY,
        **call,
    }
    with pytest.raises(ValueError) as error:
        nano_model.chat(nano_tokenizer, **arguments)
    assert all(word in str(error.value) for word in words)
    assert not seen, "nothing expensive may run before the check"


@pytest.mark.parametrize("history, words", [
    ([{"role": "user", "content": "Hi"}], "Turn 1 of the history is {'role'"),
    (
        [("Hi", "Hello"), ["Hi"]],
        r"Turn 2 of the history is \['Hi'\]: expected \(question, answer\)",
    ),
    ([("Hi", 3)], "Turn 1 of the history"), ("Hi", "history is 'Hi': expected a list"),
])  # fmt: skip
def test_other_forms_of_history_are_no_turns(nano_model, nano_tokenizer, history, words):
    with pytest.raises(ValueError, match=words):
        nano_model.chat(nano_tokenizer, None, "What is 3 + 4?", GREEDY, history=history)
    with pytest.raises(ValueError, match=words):
        nano_model.batch_chat(nano_tokenizer, None, ["What is 3 + 4?"], GREEDY, history=[history])


def test_a_batch_of_one_text_is_an_error(nano_model, nano_tokenizer):
    with pytest.raises(ValueError, match=r"one text, 'What is 1 \+ 1\?': pass a list"):
        nano_model.batch_chat(nano_tokenizer, None, "What is 1 + 1?", GREEDY)


@pytest.mark.parametrize("call, words", [
    ({"num_patches_list": [[1], [1], []]}, ["2 questions", "3 entries"]),
    ({"num_patches_list": [1, 1, 1]}, ["3 images", "2 questions"]),
    ({"pixel_values": [CALCULATION]}, ["2 questions", "1 entries"]),
    ({"history": [None]}, ["2 questions", "1 histories"]),
])  # fmt: skip
def test_bad_batches_show_both_numbers(nano_model, nano_tokenizer, tiles, call, words):
    arguments = {
        "pixel_values": tiles[0][:3],
        "questions": ["A", "B"],
        "generation_config": GREEDY,
        **call,
    }
    with pytest.raises(ValueError) as error:
        nano_model.batch_chat(nano_tokenizer, **arguments)
    assert all(word in str(error.value) for word in words)


def test_a_tokenizer_without_image_tokens_is_named(nano_model):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), eos_token="</s>")
    with pytest.raises(ValueError, match="no token <IMG_CONTEXT>"):
        nano_model.chat(bare, torch.zeros(1, 3, 112, 112), "What?", GREEDY)


def test_nothing_depends_on_chat_having_run(nano_model, nano_tokenizer, tiles):
    """forward and generate work on a model that never chatted; an old script may set the id.

    Bit for bit: the second call is the first one again.
    """
    fresh = type(nano_model).from_pretrained(checkpoints.NANO, torch_dtype=torch.float32).eval()
    pixel_values, counts = tiles
    image_id = nano_tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    assert fresh.img_context_token_id == image_id == fresh.config.image_token_id
    ids = torch.tensor([[1, *[image_id] * (16 * counts[0]), 5]])
    mask = torch.ones_like(ids)
    before = fresh.generate(pixel_values[: counts[0]], ids, mask, max_new_tokens=5, do_sample=False)
    fresh.img_context_token_id = image_id
    assert torch.equal(
        before,
        fresh.generate(pixel_values[: counts[0]], ids, mask, max_new_tokens=5, do_sample=False),
    )


def test_threads_get_their_own_answers(nano_model, nano_tokenizer):
    """Bit for bit: every thread runs the same kernels on the same shapes."""
    jobs = [
        (CALCULATION, "What is the result of the calculation in the image?"),
        (COUNTING, "How many shapes are in the image?"),
        (None, "What is 7 × 8?"),
    ]
    alone = [nano_model.chat(nano_tokenizer, image, question, GREEDY) for image, question in jobs]
    assert len(set(alone)) == 3
    results, errors = {}, []

    def ask(slot):
        image, question = jobs[slot % 3]
        try:
            results[slot] = nano_model.chat(nano_tokenizer, image, question, GREEDY)
        except RuntimeError as error:  # what a tokenizer in use by two threads raises
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(slot,)) for slot in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [results[slot] for slot in range(9)] == alone * 3


def test_chatml_template_is_used_where_the_config_names_it(
    nano_model, nano_tokenizer, seen, monkeypatch
):
    get = conversation.get_conv_template
    monkeypatch.setattr(nano_model, "conv_template", get("skywork-r1v3"))
    nano_model.chat(nano_tokenizer, None, "Hi", GREEDY)
    assert (
        prompt_of(seen[0], nano_tokenizer)
        == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_no_question_has_no_answer(nano_model, nano_tokenizer):
    assert nano_model.batch_chat(nano_tokenizer, None, [], GREEDY) == []
    assert nano_model.batch_chat(nano_tokenizer, None, [], GREEDY, return_history=True) == ([], [])


@pytest.mark.parametrize("images", ["a.jpg", Image.new("RGB", (8, 8))], ids=["a path", "an image"])
def test_one_image_is_no_list_of_entries(nano_model, nano_tokenizer, images):
    with pytest.raises(
        ValueError,
        match="expected pixel_values, or a list with an entry for each of the 5 questions",
    ):
        nano_model.batch_chat(nano_tokenizer, images, ["?"] * 5, GREEDY)


def test_settings_of_tiles_that_differ_between_files_are_an_error(nano_tokenizer, tmp_path):
    """Engines read config.json, and chat() tiles by preprocessor_config.json."""
    folder = tmp_path / "nano"
    shutil.copytree(checkpoints.NANO, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tiles = config["max_dynamic_patch"]
    config["max_dynamic_patch"] = tiles + 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    image = str(checkpoints.ROOT / "examples" / "image1.jpg")
    with pytest.raises(ValueError, match=f"max_dynamic_patch is {tiles + 1} in config.json"):
        model.chat(nano_tokenizer, image, "What?", {"max_new_tokens": 1})
