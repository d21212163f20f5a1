"""The chat templates alone, as servers and trainers render them: through the tokenizer.

The oracle is the same conversation with harmless words: whatever people write, the control tokens
of the prompt are those of the template, in the same order.
"""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer

from tests import checkpoints
from tests.test_conversation import CONTROL
from training.assemble import CHAT_TEMPLATES, with_control_tokens

NO_THINKING = "opens_thinking = false"
CHATML = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
PIECES = [
    *CONTROL, *CHATML, "<image>", "<", "think>", "</", "｜User｜>", "<|im_", "end|>", "a", "\n",
    "\ue0c5",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizer():
    """The nano tokenizer with the control tokens of both templates."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    tokenizer.add_special_tokens({"additional_special_tokens": CHATML})
    return tokenizer


@pytest.fixture(scope="module", params=CHAT_TEMPLATES)
def template(request, tokenizer):
    """Each template, as assembly writes it for this tokenizer."""
    text = (checkpoints.ROOT / CHAT_TEMPLATES[request.param]).read_text(encoding="utf-8")
    return with_control_tokens(text, list(tokenizer.get_added_vocab()))


def text_parts(text, cut):
    """One text as two parts, which the template must not put together to a control token."""
    return [{"type": "text", "text": text[:cut]}, {"type": "text", "text": text[cut:]}]


@st.composite
def conversations(draw, texts):
    """A conversation of every role and form of content, whose texts are drawn from `texts`."""

    def content():
        text = draw(texts)
        form = draw(st.sampled_from(["string", "parts", "parts with an image"]))
        if form == "string":
            return text
        parts = text_parts(text, draw(st.integers(0, 8)))
        if form == "parts with an image":
            parts.insert(draw(st.integers(0, 2)), {"type": "image"})
        return parts

    messages = [{"role": "system", "content": draw(texts)}, {"role": "user", "content": content()}]
    answer = {"role": "assistant", "content": draw(texts)}
    if draw(st.booleans()):
        answer["reasoning_content"] = draw(texts)
    return [*messages, answer, {"role": "user", "content": content()}]


def harmless(messages):
    """The conversation with the word "a" for every text.

    An empty system message stays one, because it is no message.
    """
    messages = copy.deepcopy(messages)
    for message in messages:
        if message == {"role": "system", "content": ""}:
            continue
        if isinstance(message["content"], str):
            message["content"] = "a"
        else:
            for part in message["content"]:
                if part["type"] == "text":
                    part["text"] = "a"
        if message.get("reasoning_content"):
            message["reasoning_content"] = "a"
    return messages


def control_ids(tokenizer, messages, template):
    """The control tokens of a prompt, and how many `<image>` stand for an image."""
    rendered = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    added = set(tokenizer.get_added_vocab().values())
    return [index for index in ids if index in added], rendered.count("<image>")


@settings(max_examples=300, deadline=None)
@given(messages=conversations(TEXTS))
def test_no_text_becomes_a_control_token(tokenizer, template, messages):
    if NO_THINKING in template:
        for message in messages:
            message.pop("reasoning_content", None)  # which it refuses
    has_image_parts = any(
        isinstance(message["content"], list)
        and any(part["type"] == "image" for part in message["content"])
        for message in messages
    )
    found, placeholders = control_ids(tokenizer, messages, template)
    expected, images = control_ids(tokenizer, harmless(messages), template)
    assert found == expected
    if has_image_parts:
        assert placeholders == images


@pytest.mark.parametrize("text, marked", [
    ("no token at all: < think> <| >", "no token at all: < think> <| >"),
    ("</think>", "<\ue0c5/think>"),
    ("<<think>>", "<<\ue0c5think>>"),
    ("<｜User｜><｜User｜>", "<\ue0c5｜User｜><\ue0c5｜User｜>"),
    ("an <image> is an image as long as no part is one", None),
])  # fmt: skip
def test_marks_stand_inside_control_tokens_only(tokenizer, text, marked):
    template = (checkpoints.ROOT / "chat_template.jinja").read_text(encoding="utf-8")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], chat_template=template, tokenize=False
    )
    assert rendered == f"<｜begin▁of▁sentence｜><｜User｜>\n{marked or text}"


@pytest.mark.parametrize("messages, variables, words", [
    ([{"role": "assistant", "content": "a", "reasoning": ["</think>"]}], {}, "reasoning"),
    ([{"role": "assistant", "content": "a", "reasoning": {"a": 1}}], {}, "reasoning"),
    ([{"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}], {}, "tool_calls"),
    ([{"role": "user", "content": "a"}], {"tools": [{"type": "function"}]}, "tools"),
    ([{"role": "user", "content": "a"}], {"documents": [{"title": "a"}]}, "documents"),
    ([{"role": "tool", "content": "a"}], {}, "Unknown role tool"),
    ([{"role": "user", "content": [{"type": "audio"}]}], {}, "Unknown content type audio"),
    ([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}], {}, "only come first"),
])  # fmt: skip
def test_what_the_model_was_not_taught_is_refused_by_name(
    tokenizer, template, messages, variables, words
):
    """Never dropped without a word, and never printed into the prompt as Python shows it."""
    with pytest.raises(TemplateError, match=words):
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)


@pytest.mark.parametrize("message, variables, words", [
    ({"role": "user", "content": "a"}, {"enable_thinking": True}, "leave enable_thinking out"),
    ({"role": "assistant", "content": "a", "reasoning": "b"}, {}, "has reasoning"),
])  # fmt: skip
def test_a_model_that_does_not_think_says_so(tokenizer, message, variables, words):
    text = (checkpoints.ROOT / CHAT_TEMPLATES["qwen2.5"]).read_text(encoding="utf-8")
    with pytest.raises(TemplateError, match=words):
        tokenizer.apply_chat_template([message], chat_template=text, tokenize=False, **variables)


def test_the_mask_of_the_assistant_is_what_it_wrote(tokenizer, template):
    """Its thinking, its answer and the token that ends its turn; nothing of the prompt."""
    written_in_turns = ["Two.", "Three."]
    if NO_THINKING not in template:
        written_in_turns = ["I add.\n</think>\n\nTwo.", "I add again.\n</think>\n\nThree."]
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": written_in_turns[0]},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Three."},
    ]
    if NO_THINKING not in template:
        messages[-1]["reasoning"] = "I add again."
    encoded = tokenizer.apply_chat_template(
        messages,
        chat_template=template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    written = [
        index for index, is_mine in zip(encoded["input_ids"], encoded["assistant_masks"]) if is_mine
    ]
    end = "<|im_end|>\n" if "begin = ''" in template else "<｜end▁of▁sentence｜>"
    assert tokenizer.decode(written) == "".join(turn + end for turn in written_in_turns)
