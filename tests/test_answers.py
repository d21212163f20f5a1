"""Answers are found and judged as a person would judge them."""

import re
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from answers import choices, extraction, numbers
from answers.judging import Judge, Question, items_of
from tests.answer_table import TABLE, mathematics

HANGS = "\\boxed{10^{10^{10^{10}}}}"


@pytest.fixture(scope="module")
def judge():
    with Judge(seconds=5) as judge:
        yield judge


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.question.gold} {row.why}")
def test_answers(judge, row):
    verdict = judge.judge(row.question, row.text, row.opened)
    assert verdict.is_right == row.is_right, (row.why, verdict)
    assert verdict.reason


def naive(row):
    """What a regular expression for `\\boxed{}` and a comparison of strings say."""
    found = re.findall(r"\\boxed\{([^{}]*)\}", row.text)
    return bool(found) and found[-1] == row.question.gold


def test_the_table_is_harder_than_a_regular_expression():
    """At least 150 rows with a reason each; a naive reading gets half of them wrong."""
    assert len(TABLE) >= 150
    assert all(row.why for row in TABLE)
    missed = sum(naive(row) != row.is_right for row in TABLE)
    assert missed >= len(TABLE) / 2, missed


@pytest.mark.parametrize("arguments, message", [
    ({"kind": "essay", "gold": "x"}, "expected one of mathematics, choice"),
    ({"kind": "text", "gold": " "}, "gold is empty"),
    ({"kind": "number", "gold": "many"}, "expected a number"),
    ({"kind": "choice", "gold": "E", "options": ("yes", "no")}, "expected one of AB"),
    ({"kind": "choice", "gold": "AB"}, "expected one of ABCDEFGHIJ"),
    ({"kind": "choice", "gold": "yes", "options": ("yes", "yes")}, "exactly one of the options"),
])  # fmt: skip
def test_questions_that_nothing_could_answer(arguments, message):
    with pytest.raises(ValueError, match=message):
        Question(**arguments)


def test_the_gold_of_a_choice_can_be_its_text():
    assert Question("choice", "no", ("yes", "no")).letter == "B"


def test_an_endless_comparison_ends_in_time_in_every_thread():
    """math-verify's own limit needs the main thread; here threads wait side by side."""
    texts = [HANGS, "\\boxed{0.5}", HANGS, "\\boxed{2/4}"]
    with Judge(seconds=1) as judge, ThreadPoolExecutor(4) as pool:
        judge.judge(mathematics("\\sqrt{2}"), "\\boxed{\\sqrt{2.0}}")  # the imports
        start = time.monotonic()
        verdicts = list(pool.map(lambda text: judge.judge(mathematics("\\frac12"), text), texts))
        assert time.monotonic() - start < 30
    assert [verdict.is_right for verdict in verdicts] == [False, True, False, True]
    assert "within 1 second" in verdicts[0].reason
    assert threading.main_thread().is_alive()


def _judge_in_a_process(text):
    with Judge(seconds=1) as judge:
        return judge.judge(mathematics("\\frac12"), text).is_right


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_it_works_in_worker_processes(method):
    """Also in daemons, which may not start processes by multiprocessing."""
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        texts = ["\\boxed{\\frac{2}{4}}", HANGS]
        assert list(pool.map(_judge_in_a_process, texts)) == [True, False]


def test_a_judge_that_was_forked_starts_processes_of_its_own():
    with Judge(seconds=5) as judge:
        half = mathematics("x+1")
        assert judge.judge(half, "\\boxed{1+x}").is_right
        context = get_context("fork")
        receiver, sender = context.Pipe()
        child = context.Process(
            target=lambda: sender.send(judge.judge(half, "\\boxed{x+2-1}").is_right)
        )
        child.start()
        assert receiver.poll(60) and receiver.recv()
        child.join()
        assert judge.judge(half, "\\boxed{2x+1-x}").is_right


@pytest.mark.parametrize("text, box", [
    ("\\boxed{a}", "a"),
    ("\\boxed{{a}{b}}", "{a}{b}"),
    ("\\boxed{\\frac{1}{2}} and \\fbox{c}", "c"),
    ("\\boxed{a\\}b}", "a\\}b"),
    ("\\boxed {a}", "a"),
    ("\\boxed\\text{B}", "\\text{B}"),
    ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"),
    ("\\boxed 12.", "12"),
    ("\\boxed{a} \\boxed{b", "a"),
    ("</think>\n\nAnswer: \\boxed{42}", "42"),
    ("\\boxed{1} then \\boxed{ -2 }", "-2"),
    ("42", None),
    ("", None),
    ("\\boxed", None),
    ("boxed{a}", None),
])  # fmt: skip
def test_boxes(text, box):
    assert extraction.last_box(text) == box


@pytest.mark.parametrize("text, quantity", [
    ("12", (12, "")),
    ("x = 12", (12, "")),
    ("≈ 12.5 cm", (12.5, "cm")),
    ("12 centimetres", (12, "cm")),
    ("12 square meters", (12, "m2")),
    ("12 \\text{ m}^2", (12, "m2")),
    ("45^\\circ", (45, "°")),
    ("3.2\\%", (3.2, "%")),
    ("$\\$1,250.75$", (1250.75, "$")),
    ("-\\frac{3}{4}", (-0.75, "")),
    ("3/4", (0.75, "")),
    ("6.02 × 10^23", (6.02e23, "")),
    ("two hundred thirty-four", (234, "")),
    ("1,23", None),
    ("1 2", None),
    ("12:30", None),
    ("1/0", None),
    ("a dozen", None),
])  # fmt: skip
def test_numbers(text, quantity):
    found = numbers.read(text)
    if quantity is None:
        assert found is None
        return
    value, unit = quantity
    assert found is not None
    assert found.value == pytest.approx(value) and found.unit == unit


@pytest.mark.parametrize("text, found", [
    ("[1, 2]", ["1", "2"]),
    ("1 and 2", ["1", "2"]),
    ("\\{a; b\\}", ["a", "b"]),
    ("['a', \"b\"]", ["a", "b"]),
    ("", []),
])  # fmt: skip
def test_items(text, found):
    assert items_of(text) == found


def test_every_letter_that_options_have():
    assert choices.letters_of(["x"] * 5) == "ABCDE"
    assert choices.letters_of([]) == "ABCDEFGHIJ"
