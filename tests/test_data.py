"""From JSONL lines to what is trained on.

Prompts have the tokens of chat(), the loss is on answers, and nothing is lost or cut silently.
"""

import base64
import json
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from tests import checkpoints
from training.counts import Counts
from training.rows import SampleError, TooLongError, json_lines, parse_row
from training.sample_encoder import IGNORED, Collator, SampleEncoder
from training.sources import ConversationFile, ConversationTable, StreamedConversations


@pytest.fixture(scope="module")
def parts():
    processor = AutoProcessor.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    config = AutoConfig.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    return config, processor


def encoder(parts, max_length=2000, **settings):
    config, processor = parts
    return SampleEncoder(
        config, processor.tokenizer, processor.image_processor, max_length, **settings
    )


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (
        ("square.png", (112, 112)),
        ("wide.png", (300, 100)),
        ("large.png", (336, 224)),
    ):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(
            tmp_path / name
        )
    return tmp_path


def turn(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return path


FORMS = {
    "LLaVA: one image": (
        {"image": "a.jpg", "conversations": turn("<image>\nWhat?", "A cat.")}, ["a.jpg"], 1,
    ),
    "InternVL: several": (
        {"image": ["a.jpg", "b.jpg"], "conversations": turn("<image>\n<image>\nSame?", "No.")},
        ["a.jpg", "b.jpg"], 1,
    ),
    "text only": ({"conversations": turn("Hi", "Hello.")}, [], 1),
    "several turns": (
        {"image": "a.jpg", "conversations": turn("What?<image>", "X") + turn("Sure?", "Yes")},
        ["a.jpg"], 2,
    ),
    "chat messages": (
        {"images": ["a.jpg"], "messages": [
            {"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "y"},
        ]},
        ["a.jpg"], 1,
    ),
    "chat messages in parts": (
        {"images": ["a.jpg"], "messages": [
            {"role": "user", "content": [
                {"type": "image", "image": "a.jpg"}, {"type": "text", "text": "?"},
            ]},
            {"role": "assistant", "content": [{"type": "text", "text": "y"}]},
        ]},
        ["a.jpg"], 1,
    ),
    "a system message": (
        {"conversations": [{"from": "system", "value": "Be brief."}, *turn("Hi", "Hello.")]}, [], 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_known_forms(name):
    row, images, turns = FORMS[name]
    sample = parse_row(row)
    assert sample.images == images and len(sample.turns) == turns
    assert sum(question.count("<image>") for question, _ in sample.turns) == len(images)
    assert sample.system == ("Be brief." if "system" in name else "")


def test_images_without_placeholder_come_first():
    sample = parse_row({"image": ["a", "b"], "conversations": turn("Compare.", "Done.")})
    assert sample.turns[0][0] == "<image>\n<image>\nCompare."


BROKEN = {
    "not an object": ("3", "expected an object, found int"),
    "LLaVA's array in one line": ("[1]", "expected an object, found list.*jq -c '.\\[\\]'"),
    "the first line of an indented array": ("[", "not JSON .*jq -c"),
    "not JSON": ("{", "not JSON"),
    "an image within a message": (
        json.dumps(
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "base64": None, "path": "a.jpg"}],
                    },
                    {"role": "assistant", "content": "y"},
                ]
            }
        ),
        r'has its image in itself .*path.*; list images under "images"',
    ),
    "no messages": ('{"image": "a.jpg"}', 'expected a list "conversations"'),
    "an unknown role": (
        json.dumps({"conversations": [{"from": "robot", "value": "x"}]}),
        "role 'robot' is unknown",
    ),
    "no answer": (
        json.dumps({"conversations": [{"from": "human", "value": "x"}]}),
        "questions and answers in turns",
    ),
    "an empty answer": (json.dumps({"conversations": turn("x", " ")}), "an answer is empty"),
    "more <image> than images": (
        json.dumps({"conversations": turn("<image>x", "y")}),
        "1 <image> in the questions but 0",
    ),
    "content that is no text": (
        json.dumps({"conversations": turn(None, "y")}),
        "content of a message is NoneType",
    ),
    "no such image": (
        json.dumps({"image": "gone.jpg", "conversations": turn("x", "y")}),
        "no image file .*gone.jpg",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_lines_are_named(parts, images, name):
    """By file and line, before anything expensive.

    Up to the stated share they are skipped with a warning.
    """
    line, message = BROKEN[name]
    path = write(images / "data.jsonl", [{"conversations": turn("Hi", "Hello.")}, line])
    with pytest.raises(
        SampleError, match=rf"1 of 2 lines are broken(.|\n)*data.jsonl, line 2: .*{message}"
    ):
        ConversationFile([path], encoder(parts))
    with pytest.warns(UserWarning, match="line 2"):
        read = ConversationFile([path], encoder(parts), max_broken_share=0.5)
    assert len(read) == 1 and read.counts.as_dict()["broken"] == 1


def test_images_that_do_not_decode_are_replaced_and_counted(parts, images):
    (images / "cut.png").write_bytes((images / "large.png").read_bytes()[:300])
    rows = [
        {"image": name, "conversations": turn("What?", name)} for name in ("cut.png", "square.png")
    ]
    path = write(images / "data.jsonl", rows)
    with pytest.raises(SampleError, match=r"line 1: image: .*cut.png.*max_broken_share"):
        ConversationFile([path], encoder(parts))[0]
    read = ConversationFile([path], encoder(parts), max_broken_share=0.5)
    with pytest.warns(UserWarning, match="line 1: image"):
        sample = read[0]
    assert torch.equal(sample["input_ids"], read[1]["input_ids"])
    assert torch.equal(sample["input_ids"], read[0]["input_ids"]), (
        "no warning and no reading the second time"
    )
    assert read.counts.as_dict() == {"read": 1, "broken": 1, "too_long": 0, "fewer_tiles": 0}


def test_one_broken_image_costs_no_grouping_by_length(parts, images):
    """Lengths come from the headers of images, before any sample is read."""
    (images / "no.png").write_bytes(b"no image")
    rows = [
        {"image": name, "conversations": turn("What?", "x")} for name in ("no.png", "square.png")
    ]
    read = ConversationFile(
        [write(images / "data.jsonl", rows)],
        encoder(parts),
        max_broken_share=0.5,
        needs_lengths=True,
    )
    assert 0 < read.length(0) < read.length(1)


def encoded(path):
    return base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize("image", [
    lambda folder: "square.png", lambda folder: str(folder / "square.png"),
    lambda folder: "data:image/png;base64," + encoded(folder / "square.png"),
    lambda folder: encoded(folder / "square.png"), lambda folder: (folder / "square.png").as_uri(),
    lambda folder: {"bytes": (folder / "square.png").read_bytes(), "path": None},
    lambda folder: {"bytes": None, "path": "square.png"},
], ids=[
    "path", "absolute path", "data:", "base64", "file:", "bytes", "a path of datasets",
])  # fmt: skip
def test_images_in_every_form_are_the_same_sample(parts, images, image):
    own, image = encoder(parts), image(images)
    expected = own(parse_row({"image": "square.png", "conversations": turn("What?", "x")}), images)
    row = {"image": image, "conversations": turn("What?", "x")}
    assert torch.equal(own(parse_row(row), images)["pixel_values"], expected["pixel_values"])
    if isinstance(image, str):
        read = ConversationFile([write(images / "data.jsonl", [row])], own, needs_lengths=True)
        assert read.length(0) > 0 and torch.equal(read[0]["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("settings", [
    {}, {"alpha": "white"}, {"apply_exif_orientation": False},
], ids=["default", "on white", "as stored"])  # fmt: skip
def test_pixels_are_those_of_inference(parts, images, settings):
    """A transparent picture and a turned photograph, by the image processor's switches."""
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (80, 120, 4), dtype=np.uint8), "RGBA").save(
        images / "glass.png"
    )
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(
        images / "turned.jpg", exif=turned
    )
    config, processor = parts
    image_processor = type(processor.image_processor)(
        **{**processor.image_processor.to_dict(), **settings}
    )
    own = SampleEncoder(config, processor.tokenizer, image_processor, 2000)
    paths = [str(images / name) for name in ("glass.png", "turned.jpg")]
    row = {"image": paths, "conversations": turn("<image><image>What?", "x")}
    assert torch.equal(own(parse_row(row))["pixel_values"], image_processor(paths)["pixel_values"])


def test_fewer_tiles_than_the_image_processor_gives_at_least(parts, images):
    config, processor = parts
    settings = {**processor.image_processor.to_dict(), "min_dynamic_patch": 2}
    own = SampleEncoder(
        config, processor.tokenizer, type(processor.image_processor)(**settings), 2000, max_tiles=1
    )
    row = {"image": str(images / "wide.png"), "conversations": turn("What?", "x")}
    assert len(own(parse_row(row))["pixel_values"]) == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_images_in_a_table_are_counted(parts, images, streaming):
    pictures = [
        {"bytes": (images / "square.png").read_bytes(), "path": None},
        {"bytes": b"no image", "path": None},
    ]
    message = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = {"images": datasets.List(datasets.Image()), "conversations": datasets.List(message)}
    columns = {
        "images": [[picture] for picture in pictures],
        "conversations": [turn("What?", "x")] * 2,
    }
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    with pytest.warns(UserWarning, match="row [12]: image: .*image"):
        if streaming:
            read = StreamedConversations(
                rows.to_iterable_dataset(), "t", encoder(parts), max_broken_share=0.5
            )
            assert len(list(read.dataset)) == 1
        else:
            read = ConversationTable(rows, "t", encoder(parts), max_broken_share=0.5)
            assert torch.equal(read[1]["pixel_values"], read[0]["pixel_values"])
    assert read.counts.as_dict()["broken"] == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_images_of_a_table_are_read_as_those_of_files(parts, images, streaming):
    """With the checkpoint's switch for turned photographs; `datasets` itself always turns them."""
    turned = Image.Exif()
    turned[274] = 6
    rng = np.random.default_rng(1)
    Image.fromarray(rng.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(
        images / "turned.jpg", exif=turned
    )
    config, processor = parts
    settings = {**processor.image_processor.to_dict(), "apply_exif_orientation": False}
    own = SampleEncoder(
        config, processor.tokenizer, type(processor.image_processor)(**settings), 2000
    )
    message = {"from": datasets.Value("string"), "value": datasets.Value("string")}
    features = {"image": datasets.Image(), "conversations": datasets.List(message)}
    columns = {"image": [str(images / "turned.jpg")], "conversations": [turn("What?", "x")]}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if streaming:
        sample = next(iter(StreamedConversations(rows.to_iterable_dataset(), "t", own).dataset))[
            "sample"
        ]
    else:
        sample = ConversationTable(rows, "t", own)[0]
    expected = own(parse_row({"image": "turned.jpg", "conversations": turn("What?", "x")}), images)
    assert torch.equal(torch.as_tensor(sample["pixel_values"]), expected["pixel_values"])


def test_the_share_of_broken_samples_in_a_stream(parts):
    """Is of those read, broken or too long; one with fewer tiles is read, too."""
    counts = Counts(None, 0, 0.001)
    for _ in range(2000):
        counts.add("read")
        counts.add("fewer_tiles")
    with pytest.warns(UserWarning, match="skipped"):
        for number in range(2):
            counts.report_broken("here", f"error {number}")
    with pytest.raises(SampleError, match="Broken samples: 3 of 2003"):
        counts.report_broken("here", SampleError("error 3"))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_table_with_contents_of_several_types(parts, images, streaming, tmp_path):
    """A list of parts for the user, a text for the assistant: `datasets` stores them as JSON."""
    parts_of_user = [{"type": "image"}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts_of_user},
        {"role": "assistant", "content": 'I see\n</think>"x"'},
    ]
    row = {"images": [str(images / "square.png")], "messages": messages}
    path = write(tmp_path / "rows.jsonl", [row])
    rows = datasets.load_dataset(
        "json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert any(
        isinstance(feature, datasets.Json) for feature in rows.features["messages"].feature.values()
    )
    own = encoder(parts)
    if streaming:
        sample = next(iter(StreamedConversations(rows.to_iterable_dataset(), "t", own).dataset))[
            "sample"
        ]
    else:
        sample = ConversationTable(rows, "t", own)[0]
    assert torch.equal(torch.as_tensor(sample["input_ids"]), own(parse_row(row))["input_ids"])


def test_tables_of_one_size_have_fingerprints_of_their_own(parts):
    tables = [
        datasets.Dataset.from_dict({"conversations": [turn("What?", answer)]}) for answer in "xy"
    ]
    first, second = (ConversationTable(table, "t", encoder(parts)).fingerprint for table in tables)
    assert first != second == ConversationTable(tables[1], "t", encoder(parts)).fingerprint


def test_prompts_are_those_of_chat(parts, images, nano_model, monkeypatch):
    """Ids up to the answer are what chat() hands to generate().

    With images, several turns and a system message; the answer to learn has no thinking.
    """
    _, processor = parts
    asked = {}

    def capture(**inputs):
        asked.update(inputs)
        return torch.zeros(1, 0, dtype=torch.int64)

    monkeypatch.setattr(nano_model, "generate", capture)
    history = [("<image>\nWhat?", "I see it.\n</think>\n\nA shape.")]
    nano_model.chat(
        processor.tokenizer, [images / "wide.png"], "And <img> now?", {"max_new_tokens": 1},
        history=history, system_message="Be brief.", mode="no-think",
    )  # fmt: skip
    row = {
        "image": "wide.png",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            *turn(*history[0]),
            *turn("And <img> now?", "So."),
        ],
    }
    sample = encoder(parts)(parse_row(row), images)
    prompt = asked["input_ids"][0].tolist()
    assert sample["input_ids"][: len(prompt)].tolist() == prompt
    torch.testing.assert_close(sample["pixel_values"], asked["pixel_values"])


@pytest.mark.parametrize("settings, answer, learned", [
    ({}, "think\n</think>\n\nAnswer: 3", "think\n</think>\n\nAnswer: 3"),
    # The template opens the thinking itself
    ({}, "<think>\nthink\n</think>\n\nAnswer: 3", "think\n</think>\n\nAnswer: 3"),
    # As many data sets have it
    ({}, "\n<think>\nthink\n</think>\n\nAnswer: 3", "think\n</think>\n\nAnswer: 3"),
    # Without reasoning, the prompt has closed the thinking
    ({}, "Answer: 3", "Answer: 3"),
    ({"loss_on_skipped_thinking": True}, "Answer: 3", "\n</think>\n\nAnswer: 3"),
    ({}, "a</think>b </think> c", "a</think>b </think> c"),
])  # fmt: skip
def test_loss_is_on_answers_and_their_end(parts, settings, answer, learned):
    tokenizer = parts[1].tokenizer
    sample = encoder(parts, **settings)(
        parse_row({"conversations": turn("Say </think> <img>", answer) + turn("Again", answer)})
    )
    labels = sample["labels"]
    kept = labels[labels != IGNORED]
    assert torch.equal(kept, sample["input_ids"][labels != IGNORED])
    end = "<｜end▁of▁sentence｜>"
    assert tokenizer.decode(kept) == (learned + end) * 2
    ends = int((sample["input_ids"] == tokenizer.convert_tokens_to_ids("</think>")).sum())
    assert ends == 2  # a question's own, and further ones of an answer, are text
    assert (sample["input_ids"] == tokenizer.convert_tokens_to_ids("<img>")).sum() == 0


def test_long_samples_by_rule(parts, images):
    """An image of 336 × 224 pixels has 7 tiles of 16 tokens.

    It gets fewer where that fits, and is dropped where nothing fits. It is never cut.
    """
    row = parse_row({"image": "large.png", "conversations": turn("What?", "It is large.")})
    whole = encoder(parts)(row, images)
    assert len(whole["pixel_values"]) == 7 and not whole["fewer_tiles"]
    length = len(whole["input_ids"])
    less = encoder(parts, max_length=length - 1)(row, images)
    assert less["fewer_tiles"] and len(less["pixel_values"]) < 7
    image_tokens = int((less["input_ids"] == parts[0].image_token_id).sum())
    assert image_tokens == 16 * len(less["pixel_values"]) and len(less["input_ids"]) <= length - 1
    assert torch.equal(less["labels"][-5:], whole["labels"][-5:])
    with pytest.raises(TooLongError, match=f"{length} tokens"):
        encoder(parts, max_length=length - 1, long_samples="drop")(row, images)
    with pytest.raises(TooLongError, match="at most 1 tiles an image"):
        encoder(parts, max_length=20)(row, images)


def test_long_samples_are_counted(parts, images):
    rows = [
        {"conversations": turn("Hi " * 50, "x")},
        {"image": "large.png", "conversations": turn("What?", "y")},
    ]
    read = ConversationFile([write(images / "data.jsonl", rows)], encoder(parts, max_length=60))
    for index in range(2):
        read[index]
    assert read.counts.as_dict() == {"read": 1, "broken": 0, "too_long": 1, "fewer_tiles": 1}
    alone = ConversationFile(
        [write(images / "long.jsonl", rows[:1])], encoder(parts, max_length=60)
    )
    with pytest.raises(SampleError, match="none of the samples can be used"):
        alone[0]


def test_unusable_samples_cost_one_reading_each(parts, images, monkeypatch):
    """Twenty in a row are counted once each, however often they are read.

    Different others take their places.
    """
    rows = [
        {"conversations": turn("Hi " * 50 if number < 20 else f"Number {number}?", "x")}
        for number in range(40)
    ]
    read = ConversationFile([write(images / "data.jsonl", rows)], encoder(parts, max_length=60))
    encodings = []
    encode_line = read.encode_line
    monkeypatch.setattr(
        read, "encode_line", lambda index: encodings.append(index) or encode_line(index)
    )
    first, second = ([read[index]["input_ids"].tolist() for index in range(40)] for _ in range(2))
    assert first == second, "a resumed training reads what the interrupted one would have"
    assert read.counts.as_dict() == {"read": 20, "broken": 0, "too_long": 20, "fewer_tiles": 0}
    assert len([index for index in encodings if index < 20]) == 20
    assert len({tuple(ids) for ids in first[:20]}) > 5


def test_several_files_and_order(parts, images):
    first = write(
        images / "a.jsonl",
        [{"conversations": turn("one", "1")}, "", {"conversations": turn("two", "2")}],
    )
    second = write(images / "b.jsonl", [{"conversations": turn("dré", "3")}])
    read = ConversationFile([first, second], encoder(parts))
    assert [read.row(index)["conversations"][0]["value"] for index in range(3)] == [
        "one",
        "two",
        "dré",
    ]
    assert read.where(1).endswith("a.jsonl, line 3")
    with pytest.raises(FileNotFoundError, match=r"nothing\.jsonl"):
        ConversationFile([images / "nothing.jsonl"], encoder(parts))
    with pytest.raises(SampleError, match="no samples"):
        ConversationFile([write(images / "empty.jsonl", [])], encoder(parts))


def test_streams_skip_and_count(parts, images):
    rows = [
        {"conversations": turn("Hi", "Hello.")},
        "no object",
        {"image": "gone", "conversations": turn("x", "y")},
    ] * 2
    path = write(images / "stream.jsonl", rows)

    def stream(share):
        lines = datasets.IterableDataset.from_generator(json_lines, gen_kwargs={"paths": [path]})
        return StreamedConversations(lines, "stream", encoder(parts), max_broken_share=share)

    read = stream(0.7)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(list(read.dataset)) == 2
    assert any("stream.jsonl, line 2: not JSON" in str(warning.message) for warning in caught)
    assert read.counts.as_dict() == {"read": 2, "broken": 4, "too_long": 0, "fewer_tiles": 0}
    with pytest.raises(SampleError, match="line 2: not JSON"):
        list(stream(0).dataset)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_streams_give_every_sample_once_to_any_number_of_workers(parts, images, workers):
    """Each file is a shard with images in its own folder; workers without a shard do nothing."""
    paths, root = [], images
    for number in range(2):
        root = root / f"part{number}"
        root.mkdir()
        Image.new("RGB", (20, 20)).save(root / "own.png")
        rows = [
            {"image": "own.png", "conversations": turn(f"{number} {line}", "x")}
            for line in range(7)
        ]
        paths.append(write(root / "data.jsonl", rows))
    lines = datasets.IterableDataset.from_generator(json_lines, gen_kwargs={"paths": paths})
    stream = StreamedConversations(lines, "stream", encoder(parts))
    assert stream.dataset.num_shards == 2
    loader = torch.utils.data.DataLoader(stream.dataset, batch_size=None, num_workers=workers)
    questions = sorted(parts[1].tokenizer.decode(row["sample"]["input_ids"]) for row in loader)
    assert len(questions) == len(set(questions)) == 14 and stream.counts.as_dict()["read"] == 14


MALFORMED = {
    "a part that is text": ({"role": "user", "content": ["hi"]}, "a part of a message is str"),
    "a part without its text": (
        {"role": "user", "content": [{"type": "text"}]},
        "part is NoneType",
    ),
    "a part with null": (
        {"role": "user", "content": [{"type": "text", "text": None}]},
        "part is NoneType",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_parts_are_sample_errors(name):
    message, error = MALFORMED[name]
    with pytest.raises(SampleError, match=error):
        parse_row({"messages": [message, {"role": "assistant", "content": "x"}]})


def test_an_image_beside_an_empty_list_is_seen():
    """Rows of several sources in one table have each other's columns, as null."""
    row = {"images": None, "image": "a.jpg", "conversations": turn("What?", "x")}
    assert parse_row(row).images == ["a.jpg"]


def test_collator(parts, images):
    """Padding is on the right, and batches without images get one flagged tile.

    So the projector is part of every step.
    """
    encode = encoder(parts)
    text = encode(parse_row({"conversations": turn("Hi", "Hello.")}))
    picture = encode(
        parse_row({"image": "wide.png", "conversations": turn("What?", "It is.")}), images
    )
    collate = Collator(999, (3, 112, 112))
    batch = collate([text, picture])
    assert batch["pixel_values"].shape[0] == 4 and batch["image_flags"].tolist() == [1] * 4
    own = len(text["input_ids"])
    assert batch["attention_mask"][0].sum() == own and (batch["labels"][0, own:] == -100).all()
    alone = collate([text])
    assert alone["image_flags"].tolist() == [0] and alone["pixel_values"].shape == (1, 3, 112, 112)


def test_a_batch_of_text_has_a_gradient_of_zero(parts):
    """It is not None: gradients are summed over processes, of which another may have images.

    The flagged tile changes no logit: the language model gets the same embeddings, in the same
    shapes.
    """
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(
        checkpoints.NANO, torch_dtype=torch.float32, trust_remote_code=True
    )
    model.requires_grad_(False)
    model.mlp1.requires_grad_(True)
    batch = Collator(999, (3, 112, 112))(
        [encoder(parts)(parse_row({"conversations": turn("Hi", "Hello.")}))]
    )
    model.train()
    model(**batch).loss.backward()
    gradients = [parameter.grad for parameter in model.mlp1.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    model.eval()
    flags = {name: batch.pop(name) for name in ("pixel_values", "image_flags")}
    with torch.no_grad():
        assert torch.equal(model(**batch, **flags).logits, model(**batch).logits)


SHARDED = [
    ("mlp1", True, "a step"),
    ("mlp1", False, "an evaluation, or the reference of GRPO"),
    ("language_model", True, "a step of what is no part of the vision"),
]


@pytest.mark.parametrize("trained, is_step, reason", SHARDED, ids=[row[2] for row in SHARDED])
def test_sharded_parameters_are_gathered_for_text_too(parts, images, trained, is_step, reason):
    """Processes gather each module together, whether their batches have images or not."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(checkpoints.NANO, trust_remote_code=True)
    model.requires_grad_(False)
    getattr(model, trained).requires_grad_(True)
    model.whole_batches_of_tiles = True
    model.train(is_step)
    called = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    encode = encoder(parts)
    text = encode(parse_row({"conversations": turn("Hi", "Hello.")}))
    picture = encode(
        parse_row({"image": "wide.png", "conversations": turn("What?", "It is.")}), images
    )
    calls = []
    for sample in (text, picture):
        batch = Collator(999, (3, 112, 112))([sample])
        if sample is text and not is_step:  # as TRL's GRPO has it
            del batch["pixel_values"], batch["image_flags"]
        called.clear()
        with torch.set_grad_enabled(is_step):
            model(**batch)
        calls.append(list(called))
    assert calls[0] == calls[1] and "vision_model.encoder.layers.0" in calls[0]


def test_unknown_rules_are_errors(parts):
    with pytest.raises(ValueError, match="long_samples='cut' is unknown"):
        encoder(parts, long_samples="cut")
