"""The JSONL path on transformers: what comes out, what is refused, and going on after an interruption."""

import json
import types

import pytest

from serving import offline
from tests import checkpoints

IMAGES = checkpoints.ROOT / "examples" / "images"


@pytest.fixture(scope="module")
def engine():
    return offline.TransformersEngine(str(checkpoints.NANO), "float32", batch_size=2, max_new_tokens=96)


def write(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def run(monkeypatch, engine, questions, answers, *flags):
    monkeypatch.setattr(offline, "TransformersEngine", lambda *arguments: engine)
    monkeypatch.setattr("sys.argv", ["offline", str(questions), str(answers), "--engine", "transformers", *flags])
    return offline.main()


def test_mixed_questions_equal_chat(monkeypatch, tmp_path, engine):
    picture = str(IMAGES / "counting_1.png")
    questions = write(tmp_path / "questions.jsonl", [
        {"id": "text", "question": "What is 12 + 34?"},
        {"id": "image", "question": "How many shapes are in the image?", "images": [picture]},
        {"id": "two", "question": "<image>\n<image>\nHow many?", "images": [picture, picture]},
        {"id": "system", "question": "What is 3 + 4?", "system": "Be brief."},
        {"id": "turn", "question": "And now?", "images": [picture], "history": [["<image>\nHow many?", "x</think>y"]]},
    ])  # fmt: skip
    assert run(monkeypatch, engine, questions, tmp_path / "answers.jsonl") == 0
    found = {entry["id"]: entry for entry in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())}
    model, tokenizer, options = engine.model, engine.tokenizer, engine.options
    expected = {
        "text": model.chat(tokenizer, None, "What is 12 + 34?", options),
        "image": model.chat(tokenizer, picture, "How many shapes are in the image?", options),
        "two": model.chat(tokenizer, [picture, picture], "<image>\n<image>\nHow many?", options),
        "system": model.chat(tokenizer, None, "What is 3 + 4?", options, system_message="Be brief."),
        "turn": model.chat(tokenizer, [picture], "And now?", options, history=[("<image>\nHow many?", "x</think>y")]),
    }
    assert {name: entry["text"] for name, entry in found.items()} == expected
    assert found["text"]["answer"] == expected["text"].split("</think>")[1].strip()
    assert all(entry["tokens"] > 0 for entry in found.values())


def test_goes_on_after_an_interruption(monkeypatch, tmp_path, engine):
    questions = write(tmp_path / "questions.jsonl", [{"question": f"What is {n} + 1?"} for n in range(4)])
    answers = write(tmp_path / "answers.jsonl", [
        {"id": "1", "question": "What is 0 + 1?", "text": "kept as it is"},
        {"id": "2", "question": "What is 1 + 1?", "error": "tried again"},
        '{"id": "3", "question": "Wha',
    ])  # fmt: skip
    answers.write_text(answers.read_text().rstrip("\n"))
    assert run(monkeypatch, engine, questions, answers) == 0
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    assert found[0]["text"] == "kept as it is"
    assert sorted(entry["id"] for entry in found) == ["1", "2", "3", "4"]
    before = answers.read_text()
    assert run(monkeypatch, engine, questions, answers) == 0 and answers.read_text() == before


def test_cut_answers_say_so_and_are_asked_again_with_more_tokens(monkeypatch, tmp_path, engine):
    questions = write(tmp_path / "questions.jsonl", [{"question": "What is 12 + 34?"}, {"question": "What is 1 + 1?"}])
    answers = tmp_path / "answers.jsonl"

    def ask(tokens):
        monkeypatch.setattr(engine, "options", {"max_new_tokens": tokens, "do_sample": False})
        assert run(monkeypatch, engine, questions, answers, "--max-new-tokens", str(tokens)) == 0
        found = {entry["id"]: entry for entry in map(json.loads, answers.read_text().splitlines())}
        assert sorted(found) == ["1", "2"] and len(answers.read_text().splitlines()) == 2
        return [(found[number]["finish_reason"], found[number]["tokens"]) for number in ("1", "2")]

    assert ask(5) == [("length", 5)] * 2
    again = ask(96)
    assert [reason for reason, _ in again] == ["stop", "stop"] and all(5 < tokens < 96 for _, tokens in again)


@pytest.mark.parametrize("text, reason", [
    ("my notes\nof today\n", "line 1: not JSON"), ('{"a": 1}\n', "line 1: no answer of an earlier run"),
    ('{"id": "1", "question": "Another?", "answer": "x"}\n', "'Another.', but the question with the id '1' is '.' now"),
])  # fmt: skip
def test_a_file_that_holds_other_things_is_left_alone(tmp_path, text, reason):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(offline.LineError, match=reason):
        offline.answered(path, [{"id": "1", "question": "?"}], 8)
    assert path.read_text() == text


def test_answers_that_cannot_be_written_fail_before_the_model_is_read(monkeypatch, tmp_path):
    questions = write(tmp_path / "questions.jsonl", [{"question": "?"}])
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run(monkeypatch, None, questions, tmp_path / "nowhere" / "answers.jsonl")


def test_one_bad_question_costs_no_other(monkeypatch, tmp_path, engine):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    questions = write(tmp_path / "questions.jsonl", [
        {"id": "good", "question": "How many?", "images": [str(IMAGES / "counting_1.png")]},
        {"id": "bad", "question": "How many?", "images": [str(broken)]},
    ])  # fmt: skip
    assert run(monkeypatch, engine, questions, tmp_path / "answers.jsonl") == 1
    found = {entry["id"]: entry for entry in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())}
    assert "broken.png" in found["bad"]["error"] and found["good"]["text"]


@pytest.mark.parametrize("line, reason", [
    ("{", "line 2: not JSON"), ('{"id": 1}', "expected an object"), ('{"question": "?", "image": "a"}', "unknown"),
    ('{"question": "?", "id": "1"}', "twice"), ('{"question": "?", "images": ["none.png"]}', "no such image"),
    ('{"question": "x", "images": [3]}', r'line 2: "images" is \[3\]; expected a list of paths'),
    ('{"question": "x", "history": [{"role": "user", "content": "Hi"}]}', "line 2: Turn 1 of the history"),
    ('{"question": "x", "history": [["Hi"]]}', "line 2: Turn 1 of the history"),
    ('{"question": "x", "system": ["a"]}', r'line 2: "system" is \["a"\]; expected a text'),
])  # fmt: skip
def test_bad_lines_are_named_before_anything_is_loaded(tmp_path, line, reason):
    with pytest.raises(offline.LineError, match=reason):
        offline.read_questions(write(tmp_path / "questions.jsonl", ['{"question": "?"}', line]))


@pytest.mark.parametrize("question", [
    {"question": "What?", "images": []}, {"question": "What?", "images": ["a"]},
    {"question": "A <image> B <image> C <image>", "images": ["a", "b"]},
    {"question": "<think> and <IMG_CONTEXT>", "images": ["a"]},
    {"question": "And?", "images": ["a", "b"], "history": [["<image>\nOne", "x</think>y"]], "system": "Be brief."},
], ids=["text", "image", "two of three", "control tokens", "history"])  # fmt: skip
def test_prompts_for_vllm_are_those_of_chat(nano_tokenizer, nano_model, monkeypatch, question):
    """With the placeholder replaced by an image's tokens, as vLLM does, the ids are the ones that chat() builds."""
    question = {"system": None, "history": [], **question}
    template = offline.package.conversation.get_conv_template("skywork-r1v")
    ids = offline.prompt_of(nano_tokenizer, template, question)
    placeholder = nano_tokenizer("<image>", add_special_tokens=False)["input_ids"]
    image = nano_tokenizer("<img><IMG_CONTEXT></img>", add_special_tokens=False)["input_ids"]
    for _ in question["images"]:
        start = next(i for i in range(len(ids)) if ids[i : i + len(placeholder)] == placeholder)
        ids[start : start + len(placeholder)] = image
    conversation = offline.package.conversation.open_conversation(
        template, offline.package.conversation.place_images(question["question"], question["history"],
                                                            len(question["images"])),
        question["history"], question["system"] or "",
    )  # fmt: skip
    segments = conversation.segments([1] * len(question["images"]))
    assert ids == offline.package.conversation.encode_segments(nano_tokenizer, segments, conversation.begin)


class Refusing:
    """vLLM's engine as far as errors go: it refuses whole calls because of one prompt in them."""

    def generate(self, prompts, sampling, use_tqdm):
        if any(prompt["prompt_token_ids"] == ["long"] for prompt in prompts):
            raise ValueError("The prompt is longer than max_model_len")
        output = types.SimpleNamespace(text="x</think>y", token_ids=[1, 2], finish_reason="stop")
        return [types.SimpleNamespace(outputs=[output]) for _ in prompts]


def test_one_bad_question_costs_no_other_on_vllm(monkeypatch):
    engine = offline.VllmEngine.__new__(offline.VllmEngine)
    engine.llm, engine.sampling, engine.tokenizer, engine.template = Refusing(), None, None, None
    engine.opening = (True, "drop")
    monkeypatch.setattr(offline, "prompt_of", lambda tokenizer, template, question: [question["question"]])
    questions = [
        {"id": str(number), "question": question, "images": images}
        for number, (question, images) in enumerate([("a", []), ("long", []), ("b", [__file__]), ("c", [])])
    ]
    entries = {entry["id"]: entry for entry in engine.answers(questions)}
    assert "max_model_len" in entries["1"]["error"] and "not an image" in entries["2"]["error"]
    assert entries["0"]["answer"] == entries["3"]["answer"] == "y"


def test_lines_end_at_newlines_alone(tmp_path):
    """JSON may hold U+2028, U+2029 and U+0085 as they are, at which `splitlines` would cut."""
    text = "one\u2028two\u2029three\u0085four"
    path = tmp_path / "lines.jsonl"
    path.write_text(
        json.dumps({"id": "1", "question": text, "text": text}, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert offline.answered(path, [], 8) == {"1"} and json.loads(path.read_text(encoding="utf-8"))["text"] == text
    path.write_text(json.dumps({"question": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert offline.read_questions(path)[0]["question"] == text


def test_null_is_nothing(tmp_path):
    questions = write(tmp_path / "questions.jsonl", [{"question": "x", "images": None, "history": None}])
    assert offline.read_questions(questions)[0]["images"] == [] == offline.read_questions(questions)[0]["history"]
