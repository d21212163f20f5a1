"""The processor: messages to model inputs, the same ids as chat(); the standard class, a pipeline.

Ids and pixels are compared bit for bit: they come from the same tokenizer and the same operations
on each value. Answers of the two classes are compared up to a tie (tests/comparison.py): one
generates from embeddings, the other from ids.
"""

import base64
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, pipeline

from remote_code import conversation
from tests import checkpoints, comparison
from tests.test_conversation import CONTROL

IMAGES = checkpoints.ROOT / "examples" / "images"
CALCULATION, COUNTING = IMAGES / "calculation_1.png", IMAGES / "counting_1.png"


def user(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


def image(value=CALCULATION, key="image"):
    return {"type": "image", key: value}


def as_base64(path):
    return base64.b64encode(path.read_bytes()).decode()


def inputs_of(processor, messages, **options):
    defaults = {
        "add_generation_prompt": True,
        "tokenize": True,
        "return_dict": True,
        "return_tensors": "pt",
    }
    return processor.apply_chat_template(messages, **{**defaults, **options})


def chat_ids(processor, turns, counts, system=""):
    template = conversation.get_conv_template()
    template.system_message = system
    for index, words in enumerate(turns):
        template.append_message(template.roles[index % 2], words)
    template.append_message(template.roles[1], None)
    segments = template.segments([count * processor.num_image_token for count in counts])
    return conversation.encode_segments(processor.tokenizer, segments, template.begin)


@pytest.mark.parametrize("part", [
    pytest.param(lambda: image(Image.open(CALCULATION)), id="PIL"),
    pytest.param(lambda: image(str(CALCULATION), "path"), id="path"),
    pytest.param(lambda: image(f"file://{CALCULATION}", "url"), id="URL"),
    pytest.param(lambda: image(as_base64(CALCULATION), "base64"), id="base64"),
    pytest.param(
        lambda: {
            "type": "image_url",
            "image_url": {"url": "data:image/png;base64," + as_base64(CALCULATION)},
        },
        id="OpenAI's image_url",
    ),
    pytest.param(
        lambda: image({"bytes": Path(CALCULATION).read_bytes(), "path": None}),
        id="datasets, not decoded",
    ),
    pytest.param(lambda: image({"bytes": None, "path": str(CALCULATION)}), id="a path of datasets"),
])  # fmt: skip
def test_images_of_messages(nano_processor, part):
    inputs = inputs_of(nano_processor, [user(part(), text("What?"))])
    expected = nano_processor.image_processor(CALCULATION)
    assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
    assert inputs["input_ids"][0].tolist() == chat_ids(
        nano_processor, ["<image>\nWhat?"], expected["num_patches"].tolist()
    )


def test_an_image_part_of_another_form_is_named(nano_processor):
    with pytest.raises(
        ValueError, match=r"An image is a dict of \['file_id'\]: expected a url, bytes or a path"
    ):
        inputs_of(nano_processor, [user(image({"file_id": "7"}), text("What?"))])


def test_settings_of_the_image_processor_hold_for_messages(nano_processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.png"
    Image.open(COUNTING).save(path, exif=exif)
    messages = [user(image(str(path)), text("What?"))]
    upright, stored = (
        inputs_of(nano_processor, messages, images_kwargs={"apply_exif_orientation": value})
        for value in (True, False)
    )
    assert torch.equal(
        stored["pixel_values"], nano_processor.image_processor(COUNTING)["pixel_values"]
    )
    assert not torch.equal(upright["pixel_values"][-1], stored["pixel_values"][-1])


def test_several_turns_and_images(nano_processor):
    messages = [
        {"role": "system", "content": "Be brief."},
        user(image(), image(COUNTING), text("Which?")),
        {"role": "assistant", "content": "thought</think>first"},
        user(text("Why?")),
    ]
    inputs = inputs_of(nano_processor, messages)
    counts = nano_processor.image_processor([CALCULATION, COUNTING])["num_patches"].tolist()
    turns = ["<image>\n<image>\nWhich?", "thought</think>first", "Why?"]
    assert inputs["input_ids"][0].tolist() == chat_ids(nano_processor, turns, counts, "Be brief.")


control_text = st.lists(
    st.one_of(st.sampled_from([*CONTROL, "<image>", "a"]), st.text(max_size=4)), max_size=6
).map("".join)


@settings(max_examples=60, deadline=None)
@given(words=control_text)
def test_typed_control_tokens_are_text(nano_processor, words):
    """In messages with images every <image> typed is text as well.

    There the parts say where the images are.
    """
    counts = [int(nano_processor.image_processor(CALCULATION)["num_patches"])]
    inputs = inputs_of(nano_processor, [user(image(), text(words))])
    assert inputs["input_ids"][0].tolist() == chat_ids(
        nano_processor, ["<image>\n" + words], counts
    )
    before = inputs_of(nano_processor, [user(text(words), image())])["input_ids"][0].tolist()
    context = nano_processor.image_token_id
    assert before.count(context) == counts[0] * nano_processor.num_image_token
    assert nano_processor.decode(before).count("<image>") == words.count("<image>")


@settings(max_examples=60, deadline=None)
@given(words=control_text, cuts=st.lists(st.integers(0, 40), max_size=3))
def test_text_cut_into_parts_is_one_text(nano_processor, words, cuts):
    """A control token cannot be put together from several parts either."""
    edges = [0, *sorted(min(cut, len(words)) for cut in cuts), len(words)]
    parts = [text(words[start:stop]) for start, stop in zip(edges, edges[1:])]
    for role in ("user", "assistant"):
        whole = inputs_of(
            nano_processor, [{"role": role, "content": [text(words)]}], add_generation_prompt=False
        )
        cut = inputs_of(
            nano_processor, [{"role": role, "content": parts}], add_generation_prompt=False
        )
        assert torch.equal(whole["input_ids"], cut["input_ids"])


def test_a_word_in_an_earlier_turn_takes_no_image(nano_processor):
    messages = [
        user(text("What is <image> in HTML?")),
        {"role": "assistant", "content": "a</think>b"},
        user(image(), text("?")),
    ]
    decoded = nano_processor.decode(inputs_of(nano_processor, messages)["input_ids"][0])
    assert "What is <image> in HTML?" in decoded and decoded.index("<img>") > decoded.index(
        "b<｜end▁of▁sentence｜>"
    )
    as_string = [{"role": "user", "content": "What is <image> in HTML?"}, *messages[1:]]
    assert nano_processor.decode(inputs_of(nano_processor, as_string)["input_ids"][0]) == decoded


@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image", "image_path": "x.png"}])
def test_an_image_part_without_an_image_is_an_error(nano_processor, part):
    with pytest.raises(ValueError, match=r"The part \{'type': 'image'.* has no image"):
        inputs_of(nano_processor, [user(part, image(), text("What?"))])


def test_padding_sides_and_decode(nano_processor):
    messages = [[user(text("Hi"))], [user(image(), text("A longer question?"))]]
    left = inputs_of(nano_processor, messages, padding=True)
    singles = [inputs_of(nano_processor, m)["input_ids"][0] for m in messages]
    for row, (single, mask) in enumerate(zip(singles, left["attention_mask"])):
        assert torch.equal(left["input_ids"][row][mask.bool()], single)
    assert left["attention_mask"][0, 0] == 0 and left["attention_mask"][0, -1] == 1
    right = inputs_of(nano_processor, messages, padding=True, padding_side="right")
    assert right["attention_mask"][0, 0] == 1 and right["attention_mask"][0, -1] == 0
    decoded = nano_processor.batch_decode(left["input_ids"], skip_special_tokens=True)
    assert "Hi" in decoded[0] and "A longer question?" in decoded[1]
    fixed = inputs_of(nano_processor, messages[0], padding="max_length", max_length=50)
    assert fixed["input_ids"].shape == (1, 50)


def test_call_with_texts_and_images(nano_processor):
    one = nano_processor(images=CALCULATION, text="<image>\nWhat?", return_tensors="pt")
    bos = nano_processor.tokenizer.bos_token_id
    assert one["input_ids"][0].tolist().count(bos) == 1 and one["input_ids"][0, 0] == bos
    flat = nano_processor(images=[CALCULATION, COUNTING], text=["<image> a", "<image> b"])
    nested = nano_processor(images=[[CALCULATION], [COUNTING]], text=["<image> a", "<image> b"])
    assert flat["input_ids"] == nested["input_ids"] and isinstance(flat["input_ids"], list)
    mixed = nano_processor(images=[None, [COUNTING]], text=["no image, but <image>", "<image> b"])
    assert len(mixed["pixel_values"]) == int(
        nano_processor.image_processor(COUNTING)["num_patches"]
    )
    assert "pixel_values" not in nano_processor(text="only text")


@pytest.mark.parametrize("images, texts, words", [
    ([CALCULATION, COUNTING], "one <image>", ["2 images", "1 <image>"]),
    ([CALCULATION], ["<image> a", "<image> b"], ["1 images", "2 texts"]),
    ([[CALCULATION]], ["a", "b"], ["2 texts", "1 lists"]),
    (None, None, ["No text"]),
])  # fmt: skip
def test_mismatches_show_both_numbers(nano_processor, images, texts, words):
    with pytest.raises(ValueError) as error:
        nano_processor(images=images, text=texts)
    assert all(word in str(error.value) for word in words)


def test_an_image_is_never_cut(nano_processor):
    with pytest.raises(ValueError, match="max_length=20 would cut"):
        nano_processor(images=CALCULATION, text="<image>\nWhat?", truncation=True, max_length=20)
    cut = nano_processor(text="a b c d e f g h", truncation=True, max_length=4)
    assert len(cut["input_ids"][0]) == 4


def test_forms_of_the_result(nano_processor):
    messages = [user(text("Hi"))]
    rendered = nano_processor.apply_chat_template(messages, add_generation_prompt=True)
    assert rendered == "<｜begin▁of▁sentence｜><｜User｜>\nHi<｜Assistant｜><think>\n"
    ids = nano_processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    assert ids == nano_processor.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    skipped = nano_processor.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False
    )
    assert skipped == rendered + "\n</think>\n\n"


def test_messages_are_not_changed(nano_processor):
    messages = [user(image(), text("<think>"))]
    nano_processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert messages == [user(image(), text("<think>"))]


def test_save_and_load(nano_processor, tmp_path):
    nano_processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    messages = [user(image(), text("What?"))]
    ours, theirs = inputs_of(nano_processor, messages), inputs_of(again, messages)
    assert torch.equal(ours["input_ids"], theirs["input_ids"]) and again.num_image_token == 16


def test_the_standard_class_answers_as_chat(
    nano_model, nano_standard, nano_tokenizer, nano_processor
):
    question = "What is the result of the calculation in the image?"
    options = {"max_new_tokens": 40, "do_sample": False}
    expected = comparison.ask(nano_model.chat, nano_tokenizer, CALCULATION, question, options)
    inputs = inputs_of(nano_processor, [user(image(), text(question))])
    with comparison.recorded(nano_standard) as rows:
        ids = nano_standard.generate(**inputs, **options)
    prompt_length = inputs["input_ids"].shape[1]
    assert torch.equal(ids[:, :prompt_length], inputs["input_ids"])
    answer = nano_processor.decode(ids[0, prompt_length:], skip_special_tokens=True).strip()
    comparison.assert_same_answers(expected, comparison.Answers(answer, [answer], rows))


def test_several_samples_keep_their_own_images(nano_standard, nano_processor):
    """num_return_sequences repeats rows of different numbers of tiles.

    Bit for bit: two beams are computed either way, and the best of them is returned, or both.
    """
    messages = [
        [user(image(), text("What?"))],
        [user(image(COUNTING), text("How many shapes are in the image?"))],
    ]
    inputs = inputs_of(nano_processor, messages, padding=True)
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 2}
    single = nano_standard.generate(**inputs, **options)
    double = nano_standard.generate(**inputs, **options, num_return_sequences=2)
    assert torch.equal(double[::2], single)


def test_pipeline(nano_model, nano_tokenizer):
    pipe = pipeline(
        "image-text-to-text",
        model=str(checkpoints.NANO),
        trust_remote_code=True,
        dtype=torch.float32,
    )
    question = "What is the result of the calculation in the image?"
    options = {"max_new_tokens": 40, "do_sample": False}
    with comparison.recorded(pipe.model) as rows:
        result = pipe(
            text=[user(image(str(CALCULATION), "url"), text(question))],
            return_full_text=False,
            **options,
        )
    answer = result[0]["generated_text"].strip()
    expected = comparison.ask(nano_model.chat, nano_tokenizer, CALCULATION, question, options)
    comparison.assert_same_answers(expected, comparison.Answers(answer, [answer], rows))


@pytest.mark.parametrize("answer, replayed", [
    # as chat() gives it
    ({"content": "I add.\n</think>\n\nIt is 46."}, "I add.\n</think>\n\nIt is 46."),
    # what a client keeps of a reasoning server's answer
    ({"content": "It is 46."}, "\n</think>\n\nIt is 46."),
    ({"content": "\n\nIt is 46.", "reasoning": "I add.\n"}, "I add.\n</think>\n\nIt is 46."),
    ({"content": "It is 46.", "reasoning_content": "I add."}, "I add.\n</think>\n\nIt is 46."),
    # as vLLM has it
    ({"content": [{"type": "text", "text": "\n\nIt is 46."}]}, "\n</think>\n\nIt is 46."),
    ({"content": None, "reasoning": "I add"}, "I add\n</think>\n\n"),  # cut while thinking
    (
        {"content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "46."}]},
        "\n</think>\n\nIt is 46.",
    ),
])  # fmt: skip
def test_earlier_answers_close_their_thinking(nano_processor, answer, replayed):
    """Which the template opens; the last message is left as it is, to be continued."""
    messages = [{"role": "user", "content": "12 + 34?"}, {"role": "assistant", **answer}]
    opened = "<｜begin▁of▁sentence｜><｜User｜>\n12 + 34?<｜Assistant｜><think>\n"
    longer = [*messages, {"role": "user", "content": "And?"}]
    for template in (nano_processor, nano_processor.tokenizer):
        rendered = template.apply_chat_template(longer, add_generation_prompt=True, tokenize=False)
        expected = (
            f"{opened}{replayed}<｜end▁of▁sentence｜><｜User｜>\nAnd?<｜Assistant｜><think>\n"
        )
        assert rendered == expected
    last = nano_processor.apply_chat_template(
        [messages[0], {"role": "assistant", "content": "I ad"}]
    )
    assert last == f"{opened}I ad<｜end▁of▁sentence｜>"


def test_settings_of_the_call_reach_it(nano_processor):
    """Through apply_chat_template as through the call itself."""
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": CALCULATION}, {"type": "text", "text": "?"}],
        }
    ]
    settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    plain = nano_processor.apply_chat_template(messages, **settings)
    fast = nano_processor.apply_chat_template(messages, **settings, fast_resize=True)
    half = nano_processor.apply_chat_template(messages, **settings, dtype=torch.bfloat16)
    assert torch.equal(half["pixel_values"], plain["pixel_values"].to(torch.bfloat16))
    assert not torch.equal(plain["pixel_values"], fast["pixel_values"])
    tensors = nano_processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, processor_kwargs={"return_tensors": "pt"}
    )
    assert torch.equal(tensors["input_ids"], plain["input_ids"])
    with pytest.raises(TypeError, match="max_dynamic_patches=4 is no keyword of this processor"):
        nano_processor.apply_chat_template(
            messages, **settings, processor_kwargs={"max_dynamic_patches": 4}
        )
    padded = nano_processor.apply_chat_template(
        messages,
        **settings,
        processor_kwargs={
            "padding": True,
            "pad_to_multiple_of": 64,
            "return_attention_mask": False,
        },
    )
    assert padded["input_ids"].shape[1] % 64 == 0 and "attention_mask" not in padded


@pytest.mark.parametrize("part, expected", [
    # OpenAI's second interface, and the answer that it gave before
    ({"type": "input_text", "text": "What?"}, "What?"),
    ({"type": "output_text", "text": "What?"}, "What?"),
    ({"text": "What?"}, "What?"),  # without a type
    ("What?", "What?"),
    ({"type": "input_image", "image_url": str(CALCULATION)}, "<image>\n"),
    ({"type": "image_pil", "image_pil": Image.open(CALCULATION)}, "<image>\n"),
    ({"type": "Image", "image": str(CALCULATION)}, "<image>\n"),
    ({"image": str(CALCULATION)}, "<image>\n"),
    ({"image_url": {"url": str(CALCULATION)}}, "<image>\n"),
])  # fmt: skip
def test_parts_as_people_write_them(nano_processor, part, expected):
    rendered = nano_processor.apply_chat_template([user(part)])
    assert rendered == f"<｜begin▁of▁sentence｜><｜User｜>\n{expected}"
    inputs = inputs_of(nano_processor, [user(part)])
    assert ("pixel_values" in inputs) == (expected == "<image>\n")


class TestVideos:
    """Frames as images, "Frame1: <image>" and so on, each a single tile."""

    FRAMES = [Image.new("RGB", (300, 100), (number, 0, 0)) for number in range(10)]

    def rendered(self, processor, part, **keywords):
        text_part = {"type": "text", "text": "What happens?"}
        inputs = inputs_of(processor, [user(part, text_part)], **keywords)
        decoded = processor.decode(inputs["input_ids"][0])
        return inputs["pixel_values"], decoded.replace(processor.image_token, "")

    def test_a_list_of_frames(self, nano_processor):
        part = {"type": "video", "video": self.FRAMES[:3]}
        pixels, text = self.rendered(nano_processor, part)
        assert len(pixels) == 3, "a tile for each, though the pictures are three times as wide"
        lines = "".join(f"Frame{number}: <img></img>\n" for number in (1, 2, 3))
        assert f"<｜User｜>\n{lines}What happens?" in text

    @pytest.mark.parametrize("asked, taken", [(1, [5]), (2, [2, 7]), (5, [1, 3, 5, 7, 9])])
    def test_some_of_them(self, nano_processor, asked, taken):
        """The middle of each of as many equal pieces."""
        pixels, _ = self.rendered(nano_processor, {"video": self.FRAMES}, num_frames=asked)
        alone = nano_processor.image_processor(
            [self.FRAMES[number] for number in taken], dynamic_image_size=False
        )
        assert torch.equal(pixels, alone["pixel_values"])

    def test_beside_images(self, nano_processor):
        """Which are tiled as ever."""
        messages = [user({"video": self.FRAMES[:2]}, image(COUNTING), text("?"))]
        tiles = int(nano_processor.image_processor(COUNTING)["num_patches"])
        assert len(inputs_of(nano_processor, messages)["pixel_values"]) == 2 + tiles > 3

    def test_a_file(self, nano_processor, tmp_path):
        av = pytest.importorskip("av", reason="PyAV is not among the test packages")
        path = str(tmp_path / "a.mp4")
        with av.open(path, "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height = 64, 48
            for _ in range(20):
                frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48)))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        assert len(self.rendered(nano_processor, {"type": "video", "path": path})[0]) == 8
        part = {"type": "video_url", "video_url": {"url": f"file://{path}"}}
        assert len(self.rendered(nano_processor, part, num_frames=3)[0]) == 3

    @pytest.mark.parametrize("part, keywords, words", [
        ({"type": "video"}, {}, "has no video: give it a list of frames or the path"),
        ({"type": "video", "video": []}, {}, "has no frames"),
        ({"type": "video", "video": FRAMES}, {"num_frames": 0}, "num_frames=0: expected a number"),
        ({"type": "video", "video": FRAMES}, {"num_frames": "2"}, "num_frames='2'"),
        ({"type": "video", "path": "no/such.mp4"}, {}, "no/such.mp4: no such video file"),
        # FFmpeg would open it, without a limit of size, time or address
        ({"type": "video", "url": "http://127.0.0.1/a.mp4"}, {}, "has to be downloaded"),
    ])  # fmt: skip
    def test_mistakes_are_named(self, nano_processor, part, keywords, words):
        if "path" in part or "url" in part:
            pytest.importorskip("av", reason="PyAV is not among the test packages")
        with pytest.raises(ValueError, match=words):
            self.rendered(nano_processor, part, **keywords)


@pytest.mark.parametrize("message, words", [
    ("Hello", "'Hello' is no message: expected a dict with a role"),
    ({"content": "Hello"}, "is no message: expected a dict with a role"),
    (user({"type": "audio", "audio": "a.wav"}), "content part of an unknown kind: expected a text"),
    (user({}), "content part of an unknown kind"),
    (user(7), "7 is a content part of an unknown kind"),
    (user({"type": "text"}), "expected a string under 'text'"),
    (user({"type": "text", "text": ["a"]}), "expected a string under 'text'"),
    ({"role": "user", "content": {"type": "text", "text": "a"}}, "a string or a list of parts"),
])  # fmt: skip
def test_messages_of_another_form_are_named(nano_processor, message, words):
    with pytest.raises(ValueError, match=words):
        nano_processor.apply_chat_template([message])


def test_transformers_names_of_settings(nano_processor):
    messages = [user(image(), text("?"))]
    expected = inputs_of(nano_processor, messages, min_dynamic_patch=4, max_dynamic_patch=4)
    tiles = expected["pixel_values"]
    assert len(tiles) == 5
    for call in (
        inputs_of(nano_processor, messages, min_patches=4, max_patches=4),
        nano_processor(images=CALCULATION, text="<image>", min_patches=4, max_patches=4),
    ):
        assert torch.equal(call["pixel_values"], tiles)


@pytest.mark.parametrize("keyword, words", [
    ({"do_rescale": False}, "do_rescale=False: arrays of floats"),
    ({"do_resize": False}, "do_resize=False: images are always resized"),
    ({"do_normalize": False}, "do_normalize=False: the vision encoder"),
    ({"return_token_type_ids": True}, "this model has no token types"),
    ({"num_frames": 8}, "num_frames=8 is no keyword"),
])  # fmt: skip
def test_keywords_that_ask_for_something_else_are_refused(nano_processor, keyword, words):
    with pytest.raises((ValueError, TypeError), match=words):
        nano_processor(images=CALCULATION, text="<image>\nWhat?", **keyword)


@pytest.mark.parametrize("keyword", [
    {"do_rescale": True}, {"do_resize": True}, {"do_normalize": True}, {"do_pad": False},
    {"do_convert_rgb": True}, {"return_token_type_ids": False}, {"num_frames": None},
])  # fmt: skip
def test_keywords_that_say_what_is_done_anyway_are_taken(nano_processor, keyword):
    messages = [user(image(), text("What?"))]
    expected = inputs_of(nano_processor, messages)
    for inputs in (
        inputs_of(nano_processor, messages, **keyword),
        inputs_of(nano_processor, messages, processor_kwargs=keyword),
    ):
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])
        assert torch.equal(inputs["input_ids"], expected["input_ids"])


@pytest.mark.parametrize("keywords", [
    {"padding": "max_length", "text_kwargs": {"padding": True}},
    {"padding": True, "text_kwargs": {"padding": True}},
    {"max_dynamic_patch": 2, "images_kwargs": {"max_dynamic_patch": 3}},
    {"common_kwargs": {"padding": True}, "text_kwargs": {"padding": True}},
    {"return_tensors": "pt", "text_kwargs": {"padding": True}, "padding": True},
], ids=str)  # fmt: skip
def test_a_keyword_that_is_given_twice_is_refused(nano_processor, keywords):
    """One of the two would be ignored."""
    with pytest.raises(ValueError, match="is given twice"):
        nano_processor(images=CALCULATION, text="<image>\nCalculate.", **keywords)
    in_a_template = {name: value for name, value in keywords.items() if name != "common_kwargs"}
    if len(in_a_template) == len(keywords):
        with pytest.raises(ValueError, match="is given twice"):
            inputs_of(nano_processor, [user(image())], **in_a_template)


def test_keywords_in_dicts_reach_where_they_belong(nano_processor):
    """As transformers' processors take them; an unknown one is an error there, too."""
    call = {"images": CALCULATION, "text": "<image>\nCalculate."}
    flat = nano_processor(**call, padding="max_length", max_length=200, return_tensors="pt")
    for keywords in (
        {"text_kwargs": {"padding": "max_length", "max_length": 200, "return_tensors": "pt"}},
        {
            "common_kwargs": {"return_tensors": "pt"},
            "text_kwargs": {"padding": "max_length"},
            "max_length": 200,
        },
    ):
        assert torch.equal(nano_processor(**call, **keywords)["input_ids"], flat["input_ids"])
    with pytest.raises(TypeError, match="stride=2 is no keyword"):
        nano_processor(**call, text_kwargs={"stride": 2})


@dataclasses.dataclass
class MessageObject:
    """A message as a client has it, with a field that is not used."""

    role: str
    content: object
    tool_calls: object = None


@dataclasses.dataclass
class PartObject:
    type: str
    text: object = None
    image: object = None


class PydanticLike:
    """What a pydantic model of an API's client looks like."""

    def __init__(self, **fields):
        self.fields = fields

    def model_dump(self, exclude_none=False):
        return {key: value for key, value in self.fields.items() if value is not None}


@pytest.mark.parametrize("message", [
    MessageObject("user", [PartObject("image", image=CALCULATION), PartObject("text", "Hi")]),
    MessageObject("user", [image(), text("Hi")]),
    PydanticLike(role="user", content=[image(), text("Hi")], tool_calls=None),
    {"role": "user", "content": [PydanticLike(**image()), PydanticLike(**text("Hi"))]},
], ids=["dataclasses", "dicts in a dataclass", "pydantic", "pydantic in a dict"])  # fmt: skip
def test_messages_may_be_objects(nano_processor, message):
    expected = inputs_of(nano_processor, [user(image(), text("Hi"))])
    found = inputs_of(nano_processor, [message])
    assert torch.equal(found["input_ids"], expected["input_ids"])
    assert torch.equal(found["pixel_values"], expected["pixel_values"])


def test_a_variable_that_the_template_does_not_know_is_named(nano_processor, caplog):
    """But for settings of the generation, which pipelines pass on as they are."""
    nano_processor.apply_chat_template([user(text("Hi"))], do_sample=False)
    assert not caplog.records
    for name in ("enable_thinkin", "thinking"):  # the second is a name inside the template
        nano_processor.apply_chat_template([user(text("Hi"))], **{name: False})
        assert f"{name}=False has no effect" in caplog.text


def test_token_types_of_images(nano_processor):
    inputs = inputs_of(nano_processor, [user(image(), text("?"))], return_mm_token_type_ids=True)
    expected = (inputs["input_ids"] == nano_processor.image_token_id).long()
    assert torch.equal(inputs["mm_token_type_ids"], expected) and expected.any()


def test_the_assistants_mask_with_images_padding_and_marks(nano_processor):
    """What the mask keeps is, row by row, what the assistant wrote, images or not."""
    written = "I count <image> and <think>.\n</think>\n\nTwo."
    long = [user(image(), text("<think> How <image> many?"), image(COUNTING))]
    short = [user(text("Hi"))]
    answers = [{"role": "assistant", "content": written}, {"role": "assistant", "content": "Yes"}]
    inputs = inputs_of(
        nano_processor,
        [[*long, answers[0]], [*short, answers[1]]],
        add_generation_prompt=False,
        padding=True,
        return_assistant_tokens_mask=True,
    )
    assert inputs["assistant_masks"].shape == inputs["input_ids"].shape
    kept = [
        nano_processor.decode(row[mask.bool()])
        for row, mask in zip(inputs["input_ids"], inputs["assistant_masks"])
    ]
    assert kept == [f"{written}<｜end▁of▁sentence｜>", "Yes<｜end▁of▁sentence｜>"]
    with pytest.raises(ValueError, match="needs tokenize=True, return_dict=True"):
        nano_processor.apply_chat_template(short, return_assistant_tokens_mask=True)


def test_placeholders_without_an_image_are_named(nano_processor, caplog):
    nano_processor(images=CALCULATION, text="<image> and <image>?")
    assert "A text has 2 <image> and 1 images" in caplog.text


def test_a_processor_built_from_its_parts(nano_processor):
    """Its number of tokens of a tile is that of the image processor's tile."""
    built = type(nano_processor)(nano_processor.image_processor, nano_processor.tokenizer)
    assert built.num_image_token == built.image_seq_length == 16
    token = nano_processor.image_token
    assert built.convert_tokens_to_ids(token) == nano_processor.image_token_id
    assert built.convert_tokens_to_ids([token, token]) == 2 * [nano_processor.image_token_id]


@pytest.mark.parametrize(("size", "settings", "why"), [
    ((112, 112), {}, "one tile"),
    ((300, 200), {}, "several tiles and a thumbnail"),
    ((90, 500), {"max_dynamic_patch": 4}, "a tall one, with a setting of the call"),
    ((500, 300), {"use_thumbnail": False}, "no thumbnail"),
])  # fmt: skip
def test_boxes_of_image_tokens(nano_model, nano_processor, size, settings, why):
    """Each pixel's colour is its place; the model's pixel shuffle says which token has it."""
    width, height = size
    places = np.zeros((height, width, 3), np.float32)
    places[..., 0] = (np.arange(width) + 0.5) / width
    places[..., 1] = ((np.arange(height) + 0.5) / height)[:, None]
    picture = Image.fromarray((places * 255).astype(np.uint8))
    image_processor = nano_processor.image_processor
    tiles = image_processor(picture, **settings)["pixel_values"]
    std = torch.tensor(image_processor.image_std)[:, None, None]
    mean = torch.tensor(image_processor.image_mean)[:, None, None]
    patches = torch.nn.functional.avg_pool2d(tiles * std + mean, 14)[:, :2]
    merged = nano_model.pixel_shuffle(patches.permute(0, 2, 3, 1).contiguous())
    # (tokens, 4 patches, x and y)
    seen = merged.reshape(-1, 4, 2).mean(dim=1) * torch.tensor([width, height])
    boxes = torch.from_numpy(nano_processor.image_token_boxes(width, height, **settings))
    assert len(boxes) == len(tiles) * nano_processor.num_image_token, why
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    # Pixels of 8 bits and a bicubic filter at the edges move what is seen by up to 1 % of a side.
    distance = (centres - seen).abs() / torch.tensor([width, height])
    assert distance.max() < 0.01, why
    assert boxes.min() >= 0 and (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-6).all()


def test_boxes_refuse_what_the_processor_refuses(nano_processor):
    with pytest.raises(TypeError, match="tiles_at_most"):
        nano_processor.image_token_boxes(10, 10, tiles_at_most=3)
