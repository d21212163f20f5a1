"""The JSONL path on transformers: its answers, its errors, and going on after an interruption."""

import base64
import json
import re
import types
import weakref

import pytest
import torch
from transformers import AutoTokenizer

from remote_code import conversation
from serving import endpoint_engine, engines, offline, question_file
from serving.sampling import Sampling
from tests import checkpoints, fake_endpoint, greedy

IMAGES = checkpoints.ROOT / "examples" / "images"


@pytest.fixture(scope="module")
def engine():
    return engines.TransformersEngine(
        str(checkpoints.NANO), "float32", batch_size=2, sampling=Sampling(96)
    )


def write(path, lines):
    path.write_text(
        "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    )
    return path


def run(monkeypatch, engine, questions, answers, *flags):
    monkeypatch.setattr(offline, "TransformersEngine", lambda *arguments: engine)
    monkeypatch.setattr(
        "sys.argv", ["offline", str(questions), str(answers), "--engine", "transformers", *flags]
    )
    return offline.main()


def test_mixed_questions_equal_chat(monkeypatch, tmp_path, engine):
    """Batches are padded, so their logits differ from those of single questions by rounding."""
    picture = str(IMAGES / "counting_1.png")
    history = [["<image>\nHow many?", "x</think>y"]]
    asked = [
        {"id": "text", "question": "What is 12 + 34?"},
        {"id": "image", "question": "How many shapes are in the image?", "images": [picture]},
        {"id": "two", "question": "<image>\n<image>\nHow many?", "images": [picture, picture]},
        {"id": "system", "question": "What is 3 + 4?", "system": "Be brief."},
        {"id": "turn", "question": "And now?", "images": [picture], "history": history},
    ]
    questions = write(tmp_path / "questions.jsonl", asked)
    assert run(monkeypatch, engine, questions, tmp_path / "answers.jsonl") == 0
    found = {
        entry["id"]: entry
        for entry in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    }
    assert sorted(found) == sorted(question["id"] for question in asked)
    for question in asked:
        expected = greedy.ask(
            engine.model,
            engine.tokenizer,
            question.get("images"),
            question["question"],
            max_new_tokens=engine.options["max_new_tokens"],
            history=question.get("history"),
            system_message=question.get("system"),
        )
        greedy.assert_same_text(found[question["id"]]["text"], expected)
    assert found["text"]["answer"] == found["text"]["text"].split("</think>")[1].strip()
    assert all(entry["tokens"] > 0 for entry in found.values())


def test_goes_on_after_an_interruption(monkeypatch, tmp_path, engine):
    questions = write(
        tmp_path / "questions.jsonl", [{"question": f"What is {n} + 1?"} for n in range(4)]
    )
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
    questions = write(
        tmp_path / "questions.jsonl",
        [{"question": "What is 12 + 34?"}, {"question": "What is 1 + 1?"}],
    )
    answers = tmp_path / "answers.jsonl"

    def ask(tokens):
        monkeypatch.setattr(engine, "options", {"max_new_tokens": tokens, "do_sample": False})
        assert run(monkeypatch, engine, questions, answers, "--max-new-tokens", str(tokens)) == 0
        found = {entry["id"]: entry for entry in map(json.loads, answers.read_text().splitlines())}
        assert sorted(found) == ["1", "2"] and len(answers.read_text().splitlines()) == 2
        return [(found[number]["finish_reason"], found[number]["tokens"]) for number in ("1", "2")]

    assert ask(5) == [("length", 5)] * 2
    assert ask(5) == [("length", 5)] * 2  # as many: not asked again
    again = ask(96)
    assert [reason for reason, _ in again] == ["stop", "stop"] and all(
        5 < tokens < 96 for _, tokens in again
    )


def test_cut_answers_stay_until_there_are_others(monkeypatch, tmp_path, engine):
    questions = write(tmp_path / "questions.jsonl", [{"question": "What is 12 + 34?"}])
    cut = {
        "id": "1",
        "question": "What is 12 + 34?",
        "text": "x",
        "tokens": 5,
        "finish_reason": "length",
    }
    answers = write(tmp_path / "answers.jsonl", [cut])

    class Failing:
        def __init__(self, entries=()):
            self.entries = entries

        def answers(self, questions):
            yield from self.entries
            raise MemoryError("too large")

    for entries in (
        (),
        [
            question_file.error_entry(
                {"id": "1", "number": 0, "question": cut["question"]}, "refused"
            )
        ],
    ):
        with pytest.raises(MemoryError):
            run(monkeypatch, Failing(entries), questions, answers)
        assert [json.loads(line) for line in answers.read_text().splitlines()] == [cut]


CUT = {"finish_reason": "length"}


@pytest.mark.parametrize("entry, done", [
    ({"tokens": 5, "finish_reason": "stop"}, True), ({"error": "x"}, False),
    ({"tokens": 5, **CUT}, False), ({"tokens": 96, **CUT}, True),
    ({"tokens": 48, "max_new_tokens": 48, "context": 4096, **CUT}, False),
    ({"tokens": 5, "max_new_tokens": 96, "context": 4096, **CUT}, True),  # the same context ended
    ({"tokens": 5, "max_new_tokens": 96, "context": 2048, **CUT}, False),
    ({"tokens": 5, "max_new_tokens": 96, "context": None, **CUT}, False),
    # Longer than any answer may be now
    ({"tokens": 97, "max_new_tokens": 200, "context": 2048, **CUT}, True),
])  # fmt: skip
def test_what_is_asked_again(entry, done):
    assert question_file.is_done(entry, 96, 4096) == done


@pytest.mark.parametrize("text, reason", [
    ("my notes\nof today\n", "line 1: not JSON"),
    ('{"a": 1}\n', "line 1: no answer of an earlier run"),
    (
        '{"id": "1", "question": "Another?", "answer": "x"}\n',
        "'Another.', but the question with the id '1' is '.' now",
    ),
])  # fmt: skip
def test_a_file_that_holds_other_things_is_left_alone(tmp_path, text, reason):
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(question_file.LineError, match=reason):
        question_file.read_answers(path, [{"id": "1", "question": "?"}])
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
    found = {
        entry["id"]: entry
        for entry in map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines())
    }
    assert "broken.png" in found["bad"]["error"] and found["good"]["text"]


@pytest.mark.parametrize("line, reason", [
    ("{", "line 2: not JSON"),
    ('{"id": 1}', "expected an object"),
    ('{"question": "?", "image": "a"}', "unknown"),
    ('{"question": "?", "id": "1"}', "twice"),
    ('{"question": "?", "images": ["none.png"]}', "no such image"),
    ('{"question": "x", "images": [3]}', r'line 2: "images" is \[3\]; expected a list of paths'),
    (
        '{"question": "x", "history": [{"role": "user", "content": "Hi"}]}',
        "line 2: Turn 1 of the history",
    ),
    ('{"question": "x", "history": [["Hi"]]}', "line 2: Turn 1 of the history"),
    ('{"question": "x", "system": ["a"]}', r'line 2: "system" is \["a"\]; expected a text'),
])  # fmt: skip
def test_bad_lines_are_named_before_anything_is_loaded(tmp_path, line, reason):
    with pytest.raises(question_file.LineError, match=reason):
        question_file.read_questions(
            write(tmp_path / "questions.jsonl", ['{"question": "?"}', line])
        )


@pytest.mark.parametrize("question", [
    {"question": "What?", "images": []}, {"question": "What?", "images": ["a"]},
    {"question": "A <image> B <image> C <image>", "images": ["a", "b"]},
    {"question": "<think> and <IMG_CONTEXT>", "images": ["a"]},
    {
        "question": "And?",
        "images": ["a", "b"],
        "history": [["<image>\nOne", "x</think>y"]],
        "system": "Be brief.",
    },
], ids=["text", "image", "two of three", "control tokens", "history"])  # fmt: skip
def test_prompts_for_vllm_are_those_of_chat(nano_tokenizer, question):
    """With each placeholder replaced by an image's tokens, as vLLM does, they are chat()'s ids."""
    ids, expected = prompts_of(nano_tokenizer, question)
    assert ids == expected


@pytest.mark.parametrize("question", [
    {
        "question": "Is it?",
        "history": [["Which tag?", "x</think>\n\n<image> is the tag, <image> it is"]],
    },
    {
        "question": "<image> A\n<image>\nB",
        "images": ["a", "b"],
        "system": "<image> stands for an image, or <image>.",
    },
], ids=["in an answer", "in the system message"])  # fmt: skip
def test_a_word_in_front_of_an_image_is_not_its_place(question):
    """vLLM puts the first image where it first finds the ids of `<image>`.

    The text is that of chat() all the same.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.ROOT)
    ids, expected = prompts_of(tokenizer, {"images": ["a"], **question})
    assert ids != expected and tokenizer.decode(ids) == tokenizer.decode(expected)


def prompts_of(tokenizer, question):
    """(ids that vLLM makes of its prompt, ids that chat() makes), with one token for each image."""
    question = {"system": None, "history": [], **question}
    template = conversation.get_conv_template("skywork-r1v")
    ids = engines.prompt_ids_for_vllm(tokenizer, template, question)
    placeholder = tokenizer("<image>", add_special_tokens=False)["input_ids"]
    image = tokenizer("<img><IMG_CONTEXT></img>", add_special_tokens=False)["input_ids"]
    for _ in question["images"]:
        start = next(i for i in range(len(ids)) if ids[i : i + len(placeholder)] == placeholder)
        ids[start : start + len(placeholder)] = image
    asked = conversation.add_image_placeholders(
        question["question"], question["history"], len(question["images"])
    )
    opened = conversation.open_conversation(
        template, asked, question["history"], question["system"] or ""
    )
    segments = opened.segments([1] * len(question["images"]))
    return ids, conversation.encode_segments(tokenizer, segments, opened.begin)


class Refusal(Exception):
    """As vLLM's own errors are from 0.32: no ValueError."""


class Refusing:
    """vLLM's engine as far as errors go: it refuses whole calls because of one prompt in them."""

    def generate(self, prompts, sampling, use_tqdm):
        if any(prompt["prompt_token_ids"] == ["long"] for prompt in prompts):
            raise Refusal("The prompt is longer than max_model_len")
        output = types.SimpleNamespace(text="x</think>y", token_ids=[1, 2], finish_reason="stop")
        return [types.SimpleNamespace(outputs=[output]) for _ in prompts]


def test_one_bad_question_costs_no_other_on_vllm(monkeypatch):
    engine = engines.VllmEngine.__new__(engines.VllmEngine)
    engine.llm = Refusing()
    engine.tokenizer = None
    engine.template = conversation.get_conv_template("skywork-r1v")
    engine.refusals = (ValueError, Refusal)
    engine.sampling = Sampling(96)
    engine.parameters = {}
    engine.make_parameters = dict
    engine.opening = {}
    monkeypatch.setattr(
        engines, "prompt_ids_for_vllm", lambda tokenizer, template, question: [question["question"]]
    )
    questions = [
        {"id": str(index), "number": 0, "question": question, "images": images}
        for index, (question, images) in enumerate(
            [("a", []), ("long", []), ("b", [__file__]), ("c", [])]
        )
    ]
    entries = {entry["id"]: entry for entry in engine.answers(questions)}
    assert "max_model_len" in entries["1"]["error"] and "not an image" in entries["2"]["error"]
    assert entries["0"]["answer"] == entries["3"]["answer"] == "y"


def test_calls_of_vllm_are_bounded(monkeypatch):
    """A call's images are all in memory; a question of many is one call."""
    engine = engines.VllmEngine.__new__(engines.VllmEngine)
    calls = []
    monkeypatch.setattr(engines, "QUESTIONS_PER_CALL", 3)
    monkeypatch.setattr(engines, "IMAGES_PER_CALL", 4)
    monkeypatch.setattr(engine, "_prompt", lambda question: None, raising=False)
    monkeypatch.setattr(
        engine, "_generate", lambda asked, prompts: calls.append(asked) or asked, raising=False
    )
    numbers = [0, 0, 0, 0, 2, 2, 1, 9, 1]
    questions = [
        {"id": str(index), "images": ["a"] * number} for index, number in enumerate(numbers)
    ]
    assert list(engine.answers(questions)) == questions
    assert [[len(question["images"]) for question in call] for call in calls] == [
        [0, 0, 0],
        [0, 2, 2],
        [1],
        [9],
        [1],
    ]


def test_what_a_gpu_cannot_hold_at_once_is_asked_one_by_one(monkeypatch, engine):
    batch_chat = engine.model.batch_chat

    activations = weakref.WeakSet()

    def as_on_a_small_gpu(tokenizer, images, questions, *arguments, **keywords):
        assert not activations, "what the refused batch had in memory is still there"
        if len(questions) > 1 or questions == ["Too large?"]:
            tensor = torch.zeros(8)
            activations.add(tensor)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return batch_chat(tokenizer, images, questions, *arguments, **keywords)

    monkeypatch.setattr(engine.model, "batch_chat", as_on_a_small_gpu)
    asked = ["What is 1 + 1?", "Too large?"]
    questions = [
        {"id": q, "number": 0, "question": q, "images": [], "history": [], "system": None}
        for q in asked
    ]
    entries = {entry["id"]: entry for entry in engine.answers(questions)}
    assert entries[asked[0]]["text"] and "out of memory" in entries[asked[1]]["error"]


def test_lines_end_at_newlines_alone(tmp_path):
    """JSON may hold U+2028, U+2029 and U+0085 as they are, at which `splitlines` would cut."""
    text = "one\u2028two\u2029three\u0085four"
    path = tmp_path / "lines.jsonl"
    path.write_text(
        json.dumps({"id": "1", "question": text, "text": text}, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
    assert (
        set(question_file.read_answers(path, [])) == {("1", 0)}
        and json.loads(path.read_text(encoding="utf-8"))["text"] == text
    )
    path.write_text(json.dumps({"question": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert question_file.read_questions(path)[0]["question"] == text


SAMPLED = Sampling(
    96, temperature=1.5, top_p=0.95, repetition_penalty=1.05, thinking_budget=8, answers=3, seed=7
)
SAMPLED_FLAGS = [
    "--temperature=1.5",
    "--top-p=0.95",
    "--repetition-penalty=1.05",
    "--thinking-budget=8",
    "--answers=3",
    "--seed=7",
]


@pytest.fixture(scope="module")
def sampling_engine():
    return engines.TransformersEngine(
        str(checkpoints.NANO), "float32", batch_size=1, sampling=SAMPLED
    )


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_several_answers_to_a_question(monkeypatch, tmp_path, sampling_engine):
    """Each is a line of its own with what it was drawn with; a lost one is drawn the same again."""
    questions = write(
        tmp_path / "questions.jsonl", [{"question": "What is 12 + 34?"}, {"question": "Draw."}]
    )
    answers = tmp_path / "answers.jsonl"
    assert run(monkeypatch, sampling_engine, questions, answers, *SAMPLED_FLAGS) == 0
    found = {(entry["id"], entry["number"]): entry for entry in read_lines(answers)}
    assert sorted(found) == [(name, number) for name in "12" for number in range(3)]
    assert all(entry["sampling"] == SAMPLED.recorded for entry in found.values())
    assert len({entry["text"] for entry in found.values()}) >= 4
    for entry in found.values():
        thinking = sampling_engine.tokenizer(entry["thinking"], add_special_tokens=False)
        assert len(thinking["input_ids"]) <= 8
    kept = [entry for key, entry in found.items() if key not in (("1", 1), ("2", 2))]
    write(answers, kept)
    assert run(monkeypatch, sampling_engine, questions, answers, *SAMPLED_FLAGS) == 0
    again = {(entry["id"], entry["number"]): entry for entry in read_lines(answers)}
    assert again == found


def test_answers_of_other_settings_are_not_mixed(monkeypatch, tmp_path, engine):
    questions = write(tmp_path / "questions.jsonl", [{"question": "What is 12 + 34?"}])
    answers = write(
        tmp_path / "answers.jsonl",
        [{"id": "1", "question": "What is 12 + 34?", "text": "drawn greedily"}],
    )
    before = answers.read_text()
    with pytest.raises(question_file.LineError, match=r"line 1: was drawn with .*'temperature': 0"):
        run(monkeypatch, engine, questions, answers, "--temperature", "0.6")
    assert answers.read_text() == before


@pytest.mark.parametrize("flags, reason", [
    ("--answers 5", "--answers 5 at temperature 0 would all be the same"),
    ("--temperature -1", "--temperature -1.0: expected at least 0"),
    ("--top-p 0", "--top-p 0.0: expected more than 0"),
    ("--repetition-penalty 0", "--repetition-penalty 0.0: expected more than 0"),
    ("--temperature 1 --answers 0", "--answers 0: expected at least 1"),
    ("--max-new-tokens -3", "--max-new-tokens -3: expected at least 1"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_before_the_model_loads(
    monkeypatch, tmp_path, flags, reason
):
    questions = write(tmp_path / "questions.jsonl", [{"question": "x"}])
    with pytest.raises(ValueError, match=re.escape(reason)):
        run(monkeypatch, None, questions, tmp_path / "answers.jsonl", *flags.split())


def test_null_is_nothing(tmp_path):
    questions = write(
        tmp_path / "questions.jsonl", [{"question": "x", "images": None, "history": None}]
    )
    assert (
        question_file.read_questions(questions)[0]["images"]
        == []
        == question_file.read_questions(questions)[0]["history"]
    )


@pytest.mark.parametrize("thinks, thinking, answer", [
    (True, "Three.", ""),  # it did not come to an end
    (False, "", "Three."),  # an instruct model's
])  # fmt: skip
def test_a_text_without_an_end_of_thinking(thinks, thinking, answer):
    question = {"id": "1", "number": 0, "question": "How many?"}
    entry = question_file.answer_entry(question, "Three.", 2, "stop", thinks)
    assert (entry["thinking"], entry["answer"]) == (thinking, answer)


# -- an endpoint -----------------------------------------------------------------------------------


def run_endpoint(monkeypatch, urls, questions, answers, *flags):
    """Answer a file through endpoints; returns the exit status."""
    line = ["offline", str(questions), str(answers), "--model", "Skywork-R1V-38B"]
    monkeypatch.setattr("sys.argv", [*line, "--api-url", *urls, *map(str, flags)])
    return offline.main()


def test_endpoints_answer_in_the_same_form(monkeypatch, tmp_path):
    """Thinking, answer and text are those of `chat()`, wherever the server returns the thinking."""
    answers = {f"Q{number}": [str(number)] for number in range(1, 9)}
    endpoint = fake_endpoint.FakeEndpoint(answers, {"Q2": ["429", "cut"], "Q5": ["always 400"]})
    questions = write(
        tmp_path / "questions.jsonl", [{"question": f"Q{number}: what?"} for number in range(1, 9)]
    )
    out = tmp_path / "answers.jsonl"
    with endpoint.serving() as url:
        assert run_endpoint(monkeypatch, [url], questions, out, "--concurrency", 3) == 1
        found = {entry["id"]: entry for entry in read_lines(out)}
        assert "maximum context length" in found.pop("5")["error"]
        for name, entry in found.items():
            assert entry["answer"].endswith(f"\\boxed{{{name}}}") and "draft" in entry["thinking"]
            # A thinking that the model has opened itself keeps its token, as in chat().
            text = entry["text"].removeprefix("<think>\n")
            assert text == f"{entry['thinking']}\n</think>\n\n{entry['answer']}"
            assert (entry["tokens"], entry["finish_reason"]) == (50, "stop")
        endpoint.faults.clear()
        asked = sum(endpoint.asked.values())
        assert run_endpoint(monkeypatch, [url], questions, out) == 0
        assert sum(endpoint.asked.values()) == asked + 1


def test_endpoints_get_settings_and_a_seed_for_each_answer(monkeypatch, tmp_path):
    endpoint = fake_endpoint.FakeEndpoint({"Q1": ["1"]})
    questions = write(tmp_path / "questions.jsonl", [{"question": "Q1: what?"}])
    flags = ["--temperature", "0.6", "--answers", "3", "--seed", "7", "--thinking-budget", "8"]
    with endpoint.serving() as url:
        assert run_endpoint(monkeypatch, [url], questions, tmp_path / "a.jsonl", *flags) == 0
    seeds = [body["seed"] for body in endpoint.bodies]
    sampling = Sampling(8192, 0.6, answers=3, seed=7)
    assert sorted(seeds) == sorted(sampling.seed_of("1", number) for number in range(3))
    assert {body["thinking_token_budget"] for body in endpoint.bodies} == {8}


MESSAGES = [
    # question, the texts and images of each message, reason
    ({"question": "What?"}, [["What?"]], "no image"),
    ({"question": "What?", "images": ["a"]}, [["a.png", "What?"]], "an image comes first"),
    (
        {"question": "<image>\n<image>\nHow many?", "images": ["a", "b"]},
        [["a.png", "b.png", "How many?"]],
        "no newline but the template's",
    ),
    ({"question": "Is <image> it?", "images": ["a"]}, [["Is ", "a.png", " it?"]], "in its place"),
    (
        {"question": "And?", "images": ["a"], "history": [["<image>\nHow many?", "x"]]},
        [["a.png", "How many?"], "x", ["And?"]],
        "an image of an earlier turn",
    ),
    (
        {"question": "<image> and <image>", "images": ["a"]},
        [["a.png", " and ", "<image>"]],
        "a word without an image",
    ),
    ({"question": "What?", "system": "Be brief."}, ["Be brief.", ["What?"]], "a system message"),
]


@pytest.mark.parametrize("asked, expected, reason", MESSAGES)
def test_messages_for_an_endpoint(monkeypatch, tmp_path, asked, expected, reason):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    asked = {**asked, "images": [f"{name}.png" for name in asked.get("images", [])]}
    (question,) = question_file.read_questions(write(tmp_path / "questions.jsonl", [asked]))
    shown = []
    for message in endpoint_engine.messages_of(question):
        content = message["content"]
        if not isinstance(content, str):
            content = [part.get("text") or name_of(part) for part in content]
        shown.append(content)
    assert shown == expected, reason


def name_of(part):
    """The name of the file in an image part of this test: the file holds its own first letter."""
    url = part["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    return base64.b64decode(url.split(",")[1]).decode() + ".png"


def test_an_endpoint_that_serves_another_model_is_refused(monkeypatch, tmp_path):
    endpoint = fake_endpoint.FakeEndpoint({})
    endpoint.models = ["nano"]
    questions = write(tmp_path / "questions.jsonl", [{"question": "Q1: what?"}])
    with endpoint.serving() as url, pytest.raises(ValueError, match=r"expected one of \['nano'\]"):
        run_endpoint(monkeypatch, [url], questions, tmp_path / "answers.jsonl")


@pytest.mark.parametrize("flags", [("--tensor-parallel", "4"), ("--vllm-options", '{"seed": 1}')])
def test_settings_of_vllm_are_refused_where_it_does_not_answer(monkeypatch, tmp_path, flags):
    """Four GPUs were asked for, and transformers would take one without a word."""
    questions = write(tmp_path / "questions.jsonl", [{"question": "What?"}])
    with pytest.raises(ValueError, match="are vLLM's, which does not answer here"):
        run(monkeypatch, None, questions, tmp_path / "answers.jsonl", *flags)
