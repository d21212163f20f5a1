"""Prompts: templates, control tokens in user text, placeholders, split answers."""

import copy
import json
import logging
import pickle
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from remote_code import conversation
from tests import checkpoints
from training.assemble import without_generation_markers

CONTROL = [
    "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>",
    "<IMG_CONTEXT>", "<img>", "</img>", "<tool_call>", "<|EOT|>",
]  # fmt: skip
TOKENIZER = AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)


def make(turns, system="", name="skywork-r1v"):
    template = conversation.get_conv_template(name)
    template.system_message = system
    for index, text in enumerate(turns):
        template.append_message(template.roles[index % 2], text)
    template.append_message(template.roles[1], None)
    return template


def ids_of(template, images=()):
    return conversation.encode_segments(TOKENIZER, template.segments(images), template.begin)


def test_prompt_of_r1v():
    template = make(["First?", "thought\n</think>\n\nAnswer", "Second?"], system="Be brief.")
    assert template.get_prompt() == (
        "Be brief.<｜User｜>\nFirst?<｜Assistant｜><think>\n"
        "thought\n</think>\n\nAnswer<｜end▁of▁sentence｜>"
        "<｜User｜>\nSecond?<｜Assistant｜><think>\n"
    )


def test_prompt_of_r1v3():
    template = make(["First?", "A", "Second?"], system="Be brief.", name="skywork-r1v3")
    assert template.get_prompt() == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nFirst?<|im_end|>\n<|im_start|>assistant\n<think>\nA<|im_end|>\n"
        "<|im_start|>user\nSecond?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert make(["Hi"], name="skywork-r1v3").get_prompt().startswith("<|im_start|>user\n")


def test_a_copy_is_independent():
    template = make(["Hi"])
    other = template.copy()
    other.append_message(other.roles[0], "more")
    other.system_message = "x"
    assert len(template.messages) == 2 and template.system_message == ""
    assert conversation.get_conv_template("skywork-r1v").messages == []


def test_an_unknown_name_falls_back_with_one_warning(caplog):
    """conftest.py forgets the warnings of earlier tests, so that this one comes."""
    with caplog.at_level(logging.WARNING):
        names = {conversation.get_conv_template("no-such-template").name for _ in range(3)}
    assert names == {"skywork-r1v"}
    assert sum("no-such-template" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("tokenizer", ["root", "nano"])
def test_plain_text_gives_the_ids_of_the_whole_prompt(tokenizer):
    tokenizer = AutoTokenizer.from_pretrained(
        getattr(checkpoints, tokenizer.upper()), trust_remote_code=True
    )
    template = make(
        ["Was ist 3 × 4?", "12 </think>\n\n\\boxed{12}", "世界 and  two  spaces\n\n"],
        system="Système.",
    )
    ids = conversation.encode_segments(tokenizer, template.segments(), template.begin)
    # to which the tokenizer adds its one begin token
    assert ids == tokenizer(template.get_prompt())["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id


text_with_control = st.lists(
    st.one_of(
        st.sampled_from([*CONTROL, "<", ">", "<think", "hi ", "\n", "<image>"]), st.text(max_size=6)
    ),
    max_size=8,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    question=text_with_control,
    earlier=text_with_control,
    answer=text_with_control,
    system=text_with_control,
)
def test_no_user_text_becomes_a_control_token(question, earlier, answer, system):
    # The first one of an answer closes the thinking that the template opened
    answer = answer.replace("</think>", "")
    added = set(TOKENIZER.get_added_vocab().values())
    template = make([earlier, answer, question], system=system)
    plain = make(["a", "b", "c"], system="d")
    ids = ids_of(template)
    assert [index for index in ids if index in added] == [
        index for index in ids_of(plain) if index in added
    ]
    # and nothing is lost: up to Unicode normalisation, which this tokenizer does to all text
    decoded = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    wanted = template.begin + template.get_prompt()
    assert unicodedata.normalize("NFC", decoded) == unicodedata.normalize("NFC", wanted)


def test_an_answer_closes_its_thinking_once():
    ids = ids_of(make(["a", "b</think>c</think>d", "e"]))
    assert ids.count(TOKENIZER.convert_tokens_to_ids("</think>")) == 1


@settings(max_examples=100, deadline=None)
@given(
    before=st.integers(0, 4),
    counts=st.lists(st.integers(1, 5), max_size=4),
    filler=st.text("ab <im", max_size=5),
)
def test_placeholders_expand_up_to_the_images_given(before, counts, filler):
    question = "<image>".join([filler] * (before + 1))
    context, image_start = (
        TOKENIZER.convert_tokens_to_ids(token) for token in ("<IMG_CONTEXT>", "<img>")
    )
    if before < len(counts):
        with pytest.raises(ValueError) as error:
            ids_of(make([question]), counts)
        assert f"{len(counts)} image" in str(error.value) and f"{before} <image>" in str(
            error.value
        )
        return
    ids = ids_of(make([question]), counts)
    assert ids.count(context) == sum(counts) and ids.count(image_start) == len(counts)
    decoded = TOKENIZER.decode(ids, clean_up_tokenization_spaces=False)
    assert decoded.count("<image>") == before - len(counts)


def test_images_of_earlier_turns_come_first():
    template = make(["<image>\nA", "x", "B <image>"])
    text = "".join(part for part, _ in template.segments([1, 2]))
    assert text.index("<img><IMG_CONTEXT></img>\nA") < text.index(
        "B <img><IMG_CONTEXT><IMG_CONTEXT></img>"
    )


@pytest.mark.parametrize("text, opened, thinking, answer", [
    ("thought\n</think>\n\nanswer", True, "thought", "answer"),
    ("<think>\nthought</think>answer", True, "thought", "answer"),
    ("thought that never ended", True, "thought that never ended", ""),
    ("an answer without thinking", False, "", "an answer without thinking"),
    ("<think>cut off", False, "cut off", ""),
    ("</think>answer", True, "", "answer"),
    ("thought</think>", True, "thought", ""),
    ("a</think>b</think>c", True, "a", "b</think>c"),
    ("", True, "", ""),
])  # fmt: skip
def test_split_thinking(text, opened, thinking, answer):
    assert conversation.split_thinking(text, opened) == (thinking, answer)


def _messages(turns, system, parts):
    messages = [{"role": "system", "content": system}] if system else []
    for index, text in enumerate(turns):
        content = text
        if parts:
            pieces = text.split("<image>\n")
            content = [{"type": "image"}] * (len(pieces) - 1) + [
                {"type": "text", "text": pieces[-1]}
            ]
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return messages


@pytest.mark.parametrize("parts", [False, True], ids=["content as a string", "content as parts"])
@pytest.mark.parametrize("turns, system", [
    (["Hello"], ""),
    (["Hello", "a</think>b", "Again"], "Be brief."),
    (["<image>\n<image>\nWhich?", "a</think>b", "<image>\nAnd this?"], ""),
])  # fmt: skip
def test_the_jinja_template_gives_the_ids_of_chat(turns, system, parts):
    template = make(turns, system=system)
    rendered = TOKENIZER.apply_chat_template(
        _messages(turns, system, parts), tokenize=False, add_generation_prompt=True
    )
    assert rendered == template.begin + template.get_prompt()
    assert TOKENIZER(rendered, add_special_tokens=False)["input_ids"] == ids_of(template)


def test_the_jinja_template_can_skip_thinking_and_rejects_unknown_roles():
    rendered = TOKENIZER.apply_chat_template(
        _messages(["Hi"], "", False),
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    template = make(["Hi"])
    assert rendered == template.begin + template.get_prompt() + template.skipped_thinking
    for bad in (
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "video"}]}],
    ):
        with pytest.raises(Exception, match="expected"):
            TOKENIZER.apply_chat_template(bad, tokenize=False)


def test_the_template_file_and_the_tokenizers_are_one():
    """Versions before 4.49 read tokenizer_config.json, where some do not know the markers."""

    text = (checkpoints.ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    text = without_generation_markers(text)
    assert "generation -%}" not in text
    for folder in (checkpoints.ROOT, checkpoints.NANO):
        assert (
            json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))[
                "chat_template"
            ]
            == text
        )


@pytest.mark.parametrize("token, index", [
    ("<｜end▁of▁sentence｜>", 151643), ("<｜User｜>", 151644), ("<｜Assistant｜>", 151645),
    ("<｜begin▁of▁sentence｜>", 151646),
    ("<think>", 151648), ("</think>", 151649),
    ("<img>", 151665), ("</img>", 151666), ("<IMG_CONTEXT>", 151667),
])  # fmt: skip
def test_ids_of_the_root_tokenizer(root_tokenizer, token, index):
    assert root_tokenizer.convert_tokens_to_ids(token) == index
    assert root_tokenizer(token, add_special_tokens=False)["input_ids"] == [index]


def test_nano_has_the_same_added_tokens_in_the_same_order(root_tokenizer, nano_tokenizer):
    def names(tokenizer):
        return [
            token
            for token, _ in sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
        ]

    assert names(root_tokenizer) == names(nano_tokenizer)


def test_a_question_survives_copies_and_pickles():
    question = conversation.Question("<image>\nWhat?", 1)
    for copied in (
        copy.copy(question),
        copy.deepcopy(question),
        pickle.loads(pickle.dumps(question)),
    ):
        assert (
            copied == question and copied.num_images == 1 and type(copied) is conversation.Question
        )
    template = make([question])
    assert template.copy().messages[0][1].num_images == 1


def test_images_that_a_history_is_about_must_come_again():
    history = [(conversation.Question("<image>\nWhat?", 1), "A shape.")]
    with pytest.raises(ValueError, match="about 1 image, but 0 came"):
        conversation.add_image_placeholders("And why?", history, 0)
    assert conversation.add_image_placeholders("And why?", history, 1).num_images == 0
    assert (
        conversation.add_image_placeholders("And why?", [("<image>\nWhat?", "x")], 0).num_images
        == 0
    ), "plain text may be words"


def test_an_image_without_those_before_it_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        conversation.add_image_placeholders(
            "<image>\nAnd this?", [(conversation.Question("<image>\nWhat?", 1), "x")], 1
        )
    assert "1 <image> and 0 images (of 1 given the history accounts for 1)" in caplog.text
