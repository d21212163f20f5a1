"""The report's protocol, end to end over HTTP, on made-up data with the real columns."""

import base64
import gzip
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import durable
from evaluation import __main__ as command
from evaluation import cost, page, protocol, results, run_folder, statistics, table
from evaluation.families import FamilySet
from evaluation.items import ImageFolder, Item, read_items, write_items
from evaluation.judging import Judging, verdict_of
from serving.client import Client, RequestFailed, request_body
from serving.sampling import Sampling
from tests import evaluation_data, fake_endpoint
from tests.fake_endpoint import UNCLOSED, FakeEndpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = list(evaluation_data.WRITERS)
MODEL = "Skywork-R1V-38B"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(directory of the five data sets, what their questions are answered with)."""
    folder = tmp_path_factory.mktemp("data")
    patch = pytest.MonkeyPatch()
    patch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    yield folder, evaluation_data.write_all(folder)
    patch.undo()


@pytest.fixture
def evaluate(monkeypatch, data, tmp_path, capsys):
    """Runs the command in this process, and returns its exit status and what it prints."""

    def call(*arguments, names=("aime24",), out=tmp_path / "out"):
        line = ["--model", MODEL, "--data", str(data[0]), "--out", str(out), "--benchmarks", *names]
        monkeypatch.setattr(sys, "argv", ["evaluation", *line, *map(str, arguments)])
        status = command.main()
        return status, capsys.readouterr().out

    return call


def one_of_five_wrong(expected):
    """Answers of which the first of each five questions of a benchmark is wrong."""
    answers = {}
    for questions in expected.values():
        for number, (mark, answer) in enumerate(questions.items()):
            answers[mark] = [answer.wrong if number % 5 == 0 else answer.right]
    return answers


def lines_of(out):
    """The lines of a run's table, by their label."""
    return {line["label"]: line for line in durable.read_json(out / "results.json")["table"]}


# -- end to end ------------------------------------------------------------------------------------


def test_all_five_benchmarks_come_to_their_known_scores(evaluate, data, tmp_path):
    """Each has 80 % by construction, whatever the endpoint does on the way."""
    faults = {
        "Q2": ["429", "429"],
        "Q3": ["500", "cut"],
        "Q4": ["empty"],
        "Q31": ["slow"],
        "Q36": ["no choice", "cut", "500"],
        "Q46": ["empty", "429"],
    }
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]), faults)
    with endpoint.serving() as url:
        status, printed = evaluate("--api-url", url, "--repeats", 2, names=NAMES)
        assert status == 0
        for label, line in lines_of(tmp_path / "out").items():
            assert line["estimate"]["mean"] == pytest.approx(0.8), label
            assert line["failed"] == 0 and line["truncated"] == 0
            assert f"{line['stated']:.1f}" in printed
        assert set(endpoint.given.values()) == {2}
        assert sum(endpoint.asked.values()) == 2 * len(endpoint.given) + 11  # and the faults

        asked = sum(endpoint.asked.values())
        status, again = evaluate("--api-url", url, "--repeats", 2, names=NAMES)
        assert (status, again) == (0, printed)
        assert sum(endpoint.asked.values()) == asked


def test_requests_are_those_of_the_report(evaluate, data):
    """Settings, five answers without a seed, images in their places, and the instruction last."""
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]))
    with endpoint.serving() as url:
        evaluate("--api-url", url, "--limit", 1, names=["mmmu"])
    assert set(endpoint.given.values()) == {5}
    body = endpoint.bodies[0]
    settings = {name: body[name] for name in body if name not in ("messages", "model")}
    assert settings == {
        "temperature": 0.6,
        "top_p": 0.95,
        "repetition_penalty": 1.05,
        "max_tokens": 65_536,
    }
    (message,) = body["messages"]
    kinds = [part["type"] for part in message["content"]]
    assert kinds[:4] == ["text", "image_url", "text", "image_url"]
    sent = base64.b64decode(message["content"][1]["image_url"]["url"].split(",")[1])
    number = int(re.search(r"Q(\d+)", message["content"][0]["text"])[1])
    assert sent == evaluation_data.picture(number)  # the bytes of the data set, nothing decoded
    assert message["content"][-1]["text"].endswith(protocol.CHOICE)


def test_what_cannot_be_asked_is_told_apart_from_wrong(evaluate, data, tmp_path):
    """A question whose requests fail counts neither way; the next run asks for it alone."""
    marks = list(data[1]["aime24"])
    answers = one_of_five_wrong(data[1])
    endpoint = FakeEndpoint(answers, {marks[1]: ["always 400"], marks[2]: ["always empty"]})
    with endpoint.serving() as url:
        status, printed = evaluate("--api-url", url, "--repeats", 2)
        line = lines_of(tmp_path / "out")["AIME 2024"]
        assert status == 1 and "4 of 10 answers are missing" in printed
        assert line["failed"] == 4 and line["judged"] == 6
        assert line["estimate"]["mean"] == pytest.approx(2 / 3)
        assert "maximum context length" in details_of(tmp_path / "out", marks[1])[0]["reason"]

        endpoint.faults.clear()
        asked = dict(endpoint.asked)
        status, _ = evaluate("--api-url", url, "--repeats", 2)
    assert status == 0
    again = {mark for mark in marks if endpoint.asked[mark] > asked[mark]}
    assert again == {marks[1], marks[2]}
    assert lines_of(tmp_path / "out")["AIME 2024"]["estimate"]["mean"] == pytest.approx(0.8)


@pytest.mark.parametrize("thinking, right", [("opened", 4), ("absent", 5)])
def test_thinking_that_is_never_closed_has_no_answer(evaluate, data, tmp_path, thinking, right):
    """The draft in it is the right answer, and counts only where nobody opened a thinking."""
    expected = data[1]["aime24"]
    marks = list(expected)
    answers = {mark: [expected[mark].right] for mark in marks}
    in_text = next(m for m in marks if fake_endpoint.PLACES[int(m[1:]) % 4] == "in the text")
    endpoint = FakeEndpoint(answers | {in_text: [UNCLOSED]})
    original = fake_endpoint.message_of

    def draft(mark, answer):
        message = original(mark, answer)
        if answer == UNCLOSED:
            message["content"] = f"I think \\boxed{{{expected[mark].right}}}"
        return message

    with endpoint.serving() as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_endpoint, "message_of", draft)
        evaluate("--api-url", url, "--repeats", 1, "--thinking", thinking)
    line = lines_of(tmp_path / "out")["AIME 2024"]
    assert (line["right"], line["truncated"], line["failed"]) == (right, 1, 0)


def test_runs_have_a_spread_and_questions_an_interval(evaluate, data, tmp_path):
    """Answers that are right every other time: 50 %, and the runs differ or not with the order."""
    expected = data[1]["aime24"]
    answers = {mark: [answer.right, answer.wrong] for mark, answer in expected.items()}
    endpoint = FakeEndpoint(answers)
    with endpoint.serving() as url:
        evaluate("--api-url", url, "--repeats", 2, "--concurrency", 1)
    estimate = lines_of(tmp_path / "out")["AIME 2024"]["estimate"]
    assert estimate["mean"] == pytest.approx(0.5)
    assert estimate["spread"] == pytest.approx(0.5**0.5)  # runs of 100 % and 0 %
    assert estimate["low"] == estimate["high"] == pytest.approx(0.5)  # all questions alike


def test_several_endpoints_share_the_questions_and_one_may_die(evaluate, data, tmp_path):
    answers = one_of_five_wrong(data[1])
    first, second = FakeEndpoint(answers, seconds=0.05), FakeEndpoint(answers, seconds=0.05)
    with first.serving() as one, second.serving() as two:
        evaluate("--api-url", one, two, "--concurrency", 2, "--repeats", 2)
    assert first.given and second.given
    third = FakeEndpoint(answers, {mark: ["always 500"] for mark in answers})
    with first.serving() as one, third.serving() as dying:
        status, _ = evaluate(
            *("--api-url", one, dying, "--concurrency", 2, "--tries", 0, "--repeats", 2),
            out=tmp_path / "other",
        )
    assert status == 0 and third.asked and not third.given


# -- judges ----------------------------------------------------------------------------------------

JUDGED = [
    # strategy, score, judged by the model, its score, agreement; 4 of 5 are right by rule, and the
    # judge calls everything right
    ("rule", 0.8, 0, None, None),
    ("judge-wrong", 1.0, 1, None, None),
    ("both", 0.8, 5, 1.0, 0.8),
]


@pytest.mark.parametrize("strategy, score, judged, by_judge, agreement", JUDGED)
def test_judge_sees_question_gold_and_final_answer_once(
    evaluate, data, tmp_path, strategy, score, judged, by_judge, agreement
):
    answers = {mark: [answer.right] for mark, answer in data[1]["gpqa_diamond"].items()}
    mark = next(iter(answers))
    answers[mark] = ["the correct one"]
    endpoint = FakeEndpoint(answers)
    endpoint.reply_to_judge = lambda text: "It says the same.\n**Verdict: RIGHT**"
    options = ["--repeats", 1, "--strategy", strategy]
    with endpoint.serving() as url:
        if strategy != "rule":
            options += ["--judge-url", url, "--judge-model", "judge"]
        _, printed = evaluate("--api-url", url, *options, names=["gpqa_diamond"])
        prompts = [
            fake_endpoint.text_of(body) for body in endpoint.bodies if body["model"] == "judge"
        ]
        assert len(prompts) == judged
        evaluate("--api-url", url, *options, names=["gpqa_diamond"])
        assert sum(body["model"] == "judge" for body in endpoint.bodies) == judged
    for prompt in prompts:
        assert "draft" not in prompt and "999" not in prompt and "Reference answer" in prompt
    line = lines_of(tmp_path / "out")["GPQA (diamond)"]
    assert line["estimate"]["mean"] == pytest.approx(score)
    assert line["by_judge"] == by_judge and line["agreement"] == agreement
    assert ("agrees with the rule on 80.0 %" in printed) == (strategy == "both")


def test_judge_without_a_verdict_is_asked_again_later(evaluate, data, tmp_path):
    """No score is invented: the answer waits for a verdict, and is not drawn again."""
    answers = {mark: [answer.wrong] for mark, answer in data[1]["aime24"].items()}
    endpoint = FakeEndpoint(answers)
    replies = itertools.chain(["I cannot say."], itertools.repeat("Verdict: WRONG"))
    endpoint.reply_to_judge = lambda text: next(replies)
    options = ["--repeats", 1, "--strategy", "judge-wrong", "--judge-model", "judge"]
    with endpoint.serving() as url:
        options += ["--api-url", url, "--judge-url", url, "--concurrency", 1]
        status, _ = evaluate(*options)
        assert status == 1 and lines_of(tmp_path / "out")["AIME 2024"]["failed"] == 1
        given = sum(endpoint.given.values())
        status, _ = evaluate(*options)
    assert status == 0 and sum(endpoint.given.values()) == given
    assert lines_of(tmp_path / "out")["AIME 2024"]["failed"] == 0


@pytest.mark.parametrize(
    "text, verdict",
    [
        ("Verdict: RIGHT", True),
        ("The values differ.\nVerdict: WRONG.", False),
        ("**Verdict:** right", True),
        ("Verdict: RIGHT or Verdict: WRONG", None),  # two are none
        ("<think>Verdict: RIGHT</think>\nVerdict: WRONG", False),  # the thinking of a judge
        ("<think>Verdict: RIGHT", None),  # one that was never closed
        ("It is RIGHT", None),  # not in the form that was asked for
        ("Verdict: WRONG\nor rather\nVerdict: RIGHT", True),  # the last word
    ],
)
def test_verdict_of_a_judge(text, verdict):
    assert verdict_of(text) is verdict


# -- refusals --------------------------------------------------------------------------------------

REFUSED = [
    # arguments that are added or replaced, what the error names
    (["--max-new-tokens", "131072"], r"--max-new-tokens 131072: the context .* has 131072"),
    (["--model", "other"], r"serves no model 'other'.*Skywork-R1V-38B"),
    (["--strategy", "both"], r"needs --judge-url"),
    (["--repeats", "0"], r"--repeats 0"),
    (["--temperature", "0"], r"would all be the same"),
    (["--top-p", "1.5"], r"--top-p 1.5"),
    (["--concurrency", "0"], r"concurrency 0"),
    (["--api-url", "localhost:8000"], r"'localhost:8000': expected a URL"),
    (["--api-url", "http://127.0.0.1:1/v1"], r"127.0.0.1:1/v1 cannot be asked"),
    (["--data", "/nowhere"], r"nowhere/aime24: no such directory.*hf download math-ai/aime24"),
]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_refused_before_a_question_is_asked(evaluate, data, arguments, message):
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]))
    with endpoint.serving() as url, pytest.raises((ValueError, OSError), match=message):
        evaluate("--api-url", url, *arguments)
    assert not endpoint.asked


def test_another_runs_folder_is_refused(evaluate, data):
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]))
    with endpoint.serving() as url:
        evaluate("--api-url", url, "--repeats", 1)
        with pytest.raises(ValueError, match=r"other settings \(sampling .*name another --out"):
            evaluate("--api-url", url, "--repeats", 2)


def test_two_processes_do_not_share_a_folder(tmp_path):
    with (
        run_folder.folder_of_run(tmp_path, {}),
        pytest.raises(ValueError, match="another process is writing there"),
        run_folder.folder_of_run(tmp_path, {}),
    ):
        pass


def test_estimate_comes_before_anything_is_asked(evaluate, data, capsys, monkeypatch):
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]))
    options = ["--tokens-per-second", 1000, "--gpus", 8, "--price", 2, "--estimate-only"]
    with endpoint.serving() as url:
        evaluate("--api-url", url, *options, "--expected-tokens", 7200)
    assert not endpoint.bodies
    expectation = cost.expected("aime24", 25, [], 7200)
    line = cost.text_of("aime24", 5, 5, expectation, cost.Speed(1000, 8, 2))
    # 25 answers × 7,200 tokens at 1,000 a second are 180 seconds
    assert "0.18 M tokens" in line and "0.1 h" in line and "0 GPU hours, 0.80 at 2" in line


# -- kills -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_kills_lose_and_repeat_nothing(data, tmp_path):
    """kill −9 at five moments: each answer that came is kept, and asked for once."""
    answers = one_of_five_wrong(data[1])
    endpoint = FakeEndpoint(answers, seconds=0.2)
    line = [sys.executable, "-m", "evaluation", "--model", MODEL, "--data", str(data[0])]
    line += ["--out", str(tmp_path), "--repeats", "4", "--concurrency", "2"]
    line += ["--benchmarks", "math_500", "aime24", "gpqa_diamond"]
    wanted = 4 * 15
    with endpoint.serving() as url:
        line += ["--api-url", url]
        for kill in range(1, 6):
            process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 120
            while sum(endpoint.given.values()) < wanted * kill // 6:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(line, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    # Two requests may be on their way when the process dies, whose answers nobody gets.
    assert wanted <= sum(endpoint.given.values()) <= wanted + 2 * 5
    for name in ("math_500", "aime24", "gpqa_diamond"):
        kept = results.read_answers(tmp_path / name, 4)
        assert len(kept) == 20
        (path,) = (tmp_path / name / "predictions").rglob("*.jsonl")
        assert len(durable.whole_lines(path)) == 20  # no answer is there twice
    for line in lines_of(tmp_path).values():
        assert line["estimate"]["mean"] == pytest.approx(0.8)


def test_ctrl_c_leaves_at_once(data, tmp_path):
    """No waiting for a request that is on its way; what was answered is there."""
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]), seconds=1.0)
    line = [sys.executable, "-m", "evaluation", "--model", MODEL, "--data", str(data[0])]
    line += ["--out", str(tmp_path), "--repeats", "4", "--concurrency", "1"]
    with endpoint.serving() as url:
        process = subprocess.Popen(
            [*line, "--benchmarks", "aime24", "--api-url", url],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        while sum(endpoint.given.values()) < 2 and process.poll() is None:
            time.sleep(0.02)
        endpoint.seconds = 60.0
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=10)
    assert process.returncode == 130 and "run it again to go on" in printed
    assert len(results.read_answers(tmp_path / "aime24", 4)) >= 2


def test_half_a_line_costs_one_answer(evaluate, data, tmp_path):
    """A line that was cut at the end of EvalScope's files does not swallow the next."""
    endpoint = FakeEndpoint(one_of_five_wrong(data[1]))
    with endpoint.serving() as url:
        evaluate("--api-url", url, "--repeats", 1)
        for kind in ("predictions", "reviews"):
            (path,) = (tmp_path / "out" / "aime24" / kind).rglob("*.jsonl")
            path.write_bytes(path.read_bytes()[:-30])
        for extra in (1, 0):
            asked = sum(endpoint.asked.values())
            evaluate("--api-url", url, "--repeats", 1)
            assert sum(endpoint.asked.values()) == asked + extra
    assert lines_of(tmp_path / "out")["AIME 2024"]["estimate"]["mean"] == pytest.approx(0.8)


# -- the page --------------------------------------------------------------------------------------


def content_of_page(out):
    """The data of a run's page."""
    text = (out / page.NAME).read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def details_of(out, mark):
    """What the page shows of the answers to a question."""
    question = next(q for q in content_of_page(out)["questions"] if f"{mark}:" in q["text"])
    return json.loads(gzip.decompress(base64.b64decode(question["details"])))


def test_page_has_every_answer_and_needs_no_network(evaluate, data, tmp_path):
    expected = data[1]["math_vista"]
    answers = one_of_five_wrong(data[1])
    mark = list(expected)[1]
    answers[mark] = ["</script><script>alert(1)</script>"]
    endpoint = FakeEndpoint(answers)
    with endpoint.serving() as url:
        evaluate("--api-url", url, "--repeats", 1, names=["math_vista"])
    out = tmp_path / "out"
    text = (out / page.NAME).read_text(encoding="utf-8")
    assert text.count("<script") == 2 and "alert(1)" not in text.split('id="data"')[0]
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text.split("<script")[0]
    content = content_of_page(out)
    assert content["table"][0] == list(table.COLUMNS)
    assert content["table"][1][-1] == "67.5"
    assert len(content["questions"]) == len(expected)
    (detail,) = details_of(out, mark)
    assert "draft" in detail["thinking"] and "settled" in detail["answer"]
    question = content["questions"][0]
    assert len(question["images"]) == 1 and question["runs"][0]["right"] is False
    assert all(content["images"][name].startswith("data:image/jpeg") for name in question["images"])


# -- pieces ----------------------------------------------------------------------------------------

PARTS = [
    # text, number of images, the prompt as texts and numbers of images, reason
    ("What?", 0, ["What?"], "no image"),
    ("What?", 2, [1, 2, "What?"], "images that no mark names come first"),
    ("Is <image 1> as <image 2>?", 2, ["Is ", 1, "as ", 2, "?"], "each in its place"),
    ("<image 2> What?", 2, [1, 2, "What?"], "one is named, the other comes first"),
    ("<image_1>What?", 1, [1, "What?"], "EvalScope's spelling"),
    ("Is it <image 3>?", 1, [1, "Is it <image 3>?"], "an image that is not there is text"),
    ("<image 1> or <image 1>", 1, [1, "or ", 1], "named twice, shown twice"),
]


@pytest.mark.parametrize("text, count, expected, reason", PARTS)
def test_images_are_where_the_question_names_them(text, count, expected, reason):
    item = Item("1", "", text, "text", ("x",), tuple(f"{n}.png" for n in range(1, count + 1)))
    parts = [int(part.stem) if isinstance(part, Path) else part for part in item.parts()]
    assert parts == expected, reason


@pytest.mark.parametrize(
    "kind, gold, options, message",
    [
        ("number", "seven or eight", (), "question 1: gold"),
        ("choice", "E", ("a", "b"), "question 1: gold 'E'"),
        ("mathematics", " ", (), "gold is empty"),
        ("essay", "x", (), "kind 'essay'"),
    ],
)
def test_a_question_that_cannot_be_judged_is_an_error(kind, gold, options, message):
    with pytest.raises(ValueError, match=message):
        Item("1", "", "What?", kind, (gold,), options=options)


def test_questions_survive_their_file(tmp_path):
    items = FamilySet(2, 7, ["charts", "two images"]).items(tmp_path)
    write_items(tmp_path / "items.jsonl", items)
    assert read_items(tmp_path / "items.jsonl") == items
    with pytest.raises(ValueError, match="several questions have the id 'charts 0'"):
        write_items(tmp_path / "items.jsonl", [*items, items[0]])
    with pytest.raises(ValueError, match="no question to write"):
        write_items(tmp_path / "items.jsonl", [])


@pytest.mark.parametrize(
    "format_name, mode, suffix",
    [
        ("PNG", "RGB", ".png"),
        ("JPEG", "RGB", ".jpg"),
        ("WEBP", "RGB", ".png"),
        ("TIFF", "CMYK", ".png"),
    ],
)
def test_images_are_stored_in_formats_that_servers_read(tmp_path, format_name, mode, suffix):
    Image.new(mode, (8, 6)).save(tmp_path / "image", format_name)
    content = (tmp_path / "image").read_bytes()
    folder = ImageFolder(tmp_path)
    stored = tmp_path / folder.add(content)
    assert stored.suffix == suffix
    assert tmp_path / folder.add(content) == stored  # once
    with Image.open(stored) as opened:
        assert opened.size == (8, 6)
    if format_name in ("PNG", "JPEG"):
        assert stored.read_bytes() == content


def test_intervals_are_those_of_their_formulas():
    low, high = statistics.wilson(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4) and high == pytest.approx(0.9433, abs=1e-4)
    # Of a mean of many shares the bootstrap comes close to ±1.96 standard errors.
    shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] * 100
    low, high = statistics.bootstrap(shares)
    error = 1.96 * (35 / 300) ** 0.5 / 600**0.5
    assert low == pytest.approx(0.5 - error, abs=2e-3)
    assert high == pytest.approx(0.5 + error, abs=2e-3)


def test_unanswered_questions_do_not_count():
    estimate = statistics.estimate([[True, False, None], [True, None, None]])
    assert estimate.mean == pytest.approx(0.75) and estimate.spread == pytest.approx(0.5**0.5 / 2)
    assert statistics.estimate([[None, None]]) is None


@pytest.mark.parametrize(
    "sampling, seed, body",
    [
        (Sampling(8), None, {"temperature": 0.0, "top_p": 1.0, "max_tokens": 8}),
        (
            Sampling(8, 0.6, 0.95, 1.05, thinking_budget=4),
            3,
            {
                "temperature": 0.6,
                "top_p": 0.95,
                "max_tokens": 8,
                "seed": 3,
                "extra_body": {"repetition_penalty": 1.05, "thinking_token_budget": 4},
            },
        ),
    ],
)
def test_body_of_a_request(sampling, seed, body):
    assert request_body(sampling, seed) == body


def test_failed_request_names_every_endpoint():
    client = Client(["http://127.0.0.1:1/v1", "http://127.0.0.1:2/v1"], "m", tries=0)
    with pytest.raises(RequestFailed, match=r"127.0.0.1:1/v1: APIConnectionError.*127.0.0.1:2/v1"):
        client.ask([{"role": "user", "content": "?"}], Sampling(8))


def test_loggers_of_others_stay_as_they_are():
    """EvalScope silences a model's own code, and takes the root logger's handlers."""
    code = """
import logging
root = logging.getLogger()
root.addHandler(logging.NullHandler())
before = list(root.handlers), root.level
import evaluation.adapter
assert (root.handlers, root.level) == before
for name in ("httpx", "modelscope", "transformers_modules"):
    assert logging.getLogger(name).level == logging.NOTSET, name
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_strategy_and_thinking_have_known_names():
    with pytest.raises(ValueError, match="strategy 'guess'"):
        Judging("guess")
    with pytest.raises(ValueError, match="thinking 'loud'"):
        Judging(thinking="loud")
    with pytest.raises(ValueError, match="needs a judge model"):
        Judging("both")
