"""Distillation: its formulas by hand, and all stages with servers that misbehave."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import skimage
import yaml
from PIL import Image, ImageFilter

from serving import engines
from serving.client import Client
from serving.concurrency import as_finished
from serving.endpoint_engine import EndpointEngine
from serving.sampling import Sampling
from tests import checkpoints, trainers
from tests.fake_endpoint import MARK, FakeEndpoint, text_of
from training.distill import (
    check,
    cues,
    estimate,
    fields,
    integration,
    judge,
    length,
    necessity,
    output,
    pipeline,
    revise,
    text,
)
from training.distill.clarity import clarity_of, resolution_of, sharpness
from training.distill.prompt_files import PLACES, Prompt, read_prompts
from training.distill.recipe import read_recipe
from training.distill.records import SetAside, Shard, StageFile, Unanswered, read_data
from training.rows import parse_row

ROOT = checkpoints.ROOT
IMAGES = ROOT / "examples" / "images"

# -- S_v: clarity ----------------------------------------------------------------------------------

PHOTOGRAPHS = ("astronaut", "camera", "chelsea", "coffee", "coins", "brick", "grass", "moon", "ihc")
SCANS = ("page", "text")
PICTURES = {
    **{name: Path(skimage.__file__).parent / "data" / f"{name}.png" for name in PHOTOGRAPHS},
    **{name: Path(skimage.__file__).parent / "data" / f"{name}.png" for name in SCANS},
    "screenshot": ROOT / "docs" / "evaluation_page.png",
    "drawing": IMAGES / "chart_1.png",
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_sharp_picture_is_clearer_than_a_blurred_one_than_a_tiny_one(name):
    """Blurred by a hundredth of its longer side; tiny is 48 pixels along it."""
    with Image.open(PICTURES[name]) as opened:
        picture = opened.convert("RGB")
    blurred = picture.filter(ImageFilter.GaussianBlur(0.01 * max(picture.size)))
    tiny = picture.copy()
    tiny.thumbnail((48, 48))
    sharp, soft, small = (clarity_of(image).value for image in (picture, blurred, tiny))
    assert 1 >= sharp > 1.4 * soft and soft > 2 * small > 0


RESOLUTIONS = [
    ((448, 448), 1.0, "one tile, pixel for pixel"),
    ((224, 224), 0.5, "enlarged to twice its side"),
    ((4000, 4000), 1.0, "tiles keep fewer pixels than it has"),
    ((100, 1200), 100 / 448, "twelve tiles of 448 for one column of 100"),
]


@pytest.mark.parametrize("size, expected, reason", RESOLUTIONS)
def test_resolution_by_hand(size, expected, reason):
    assert resolution_of(*size, 448, 12) == pytest.approx(expected), reason


@pytest.mark.parametrize("period", [4, 8, 16, 32])  # pixels
def test_sharpness_of_a_wave_is_the_eigenvalue_of_the_laplacian(period):
    """A wave is an eigenvector: the discrete Laplacian is -(2 - 2 cos k) of it, k = 2π / period."""
    wave = np.cos(2 * np.pi * np.arange(448) / period)
    image = Image.fromarray(np.uint8(np.round(127.5 + 127 * np.tile(wave, (448, 1)))))
    share = (2 - 2 * math.cos(2 * math.pi / period)) ** 2
    # 8 bits of grey and the missing border change it
    assert sharpness(image) == pytest.approx(share / (share + 0.01), rel=0.03, abs=0.002)


def test_contrast_does_not_matter_and_a_blank_image_has_no_clarity():
    with Image.open(PICTURES["astronaut"]) as opened:
        grey = opened.convert("L")
    dim = grey.point(lambda value: 100 + value // 4)
    assert sharpness(dim) == pytest.approx(sharpness(grey), rel=0.02)  # of rounded greys
    assert clarity_of(Image.new("RGB", (500, 400), "white")).value == 0
    assert clarity_of(Image.new("RGB", (1, 1))).value == 0


# -- S_I by rule -----------------------------------------------------------------------------------

QUESTIONS = [
    ("Why does the ladder to the left of the door still lean there?", 3, 0, "three cues of high"),
    ("<image>\nHow does the angle change if the roof is lower?", 3, 0, "how, if, a term"),
    ("What is the animal?", 0, 2, "what, and one plain object"),
    ("<image>\nWhat is this?", 0, 2, "the same behind an image"),
    ("Which bar is the highest?", 0, 1, "which, but more than one object"),
    ("How many shapes are in the image?", 0, 0, "how many is no why or how"),
    ("What would happen if the wire was cut?", 1, 0, "a presupposition, and no plain what"),
    ("Calculate.", 0, 0, "nothing"),
]


@pytest.mark.parametrize("question, high, low, reason", QUESTIONS)
def test_cues(question, high, low, reason):
    found = cues.found(question)
    assert (len(found.high), len(found.low)) == (high, low), (found, reason)
    assert found.score == pytest.approx((1 + high / 4 - low / 2) / 2)


# -- P ---------------------------------------------------------------------------------------------


def test_the_worked_example_of_the_length_controller():
    settings = length.LengthSettings(alpha=0.2, beta=2, gamma=1)
    ranges = {"vision": (0.2, 0.8), "text": (0.1, 0.9), "integration": (0.5, 0.9)}
    unit = length.normalised(length.Scores(0.6, 0.3, 0.8), ranges)
    assert unit == pytest.approx((2 / 3, 0.25, 0.75))
    mean = (2 / 3 + 2 * 0.25 + 0.75) / 4
    assert length.exact_penalty(unit, settings) == pytest.approx(math.exp(0.2 * (1 - mean)))
    assert length.penalty_of(unit, settings) == 1.1


PENALTIES = [
    ((1, 1, 1), {"alpha": 5}, 1.0, "the hardest is not penalised"),
    ((0, 0, 0), {"alpha": 5}, 2.0, "exp(5), but 2 at most"),
    ((0, 0, 0), {"alpha": 0.2, "step": 0.5}, 1.0, "1.221 is nearer to 1 than to 1.5"),
    ((0, 0, 0), {"alpha": 0}, 1.0, "no control"),
    ((0, 1, 1), {"alpha": 0.3, "beta": 0, "gamma": 0, "step": 0.01}, 1.35, "vision alone counts"),
    ((None, 1, None), {"alpha": 1}, 1.0, "without an image the text alone counts"),
    ((None, 0, None), {"alpha": 0.5, "step": 0.01}, 1.65, "and its weight is the whole"),
    ((None, 0, None), {"alpha": 1, "beta": 0, "step": 0.01}, 1.65, "nothing counts: the middle"),
    ((0, 0, 0), {"penalty": 1.083}, 1.083, "a constant is not rounded"),
]


@pytest.mark.parametrize("unit, settings, expected, reason", PENALTIES)
def test_penalties(unit, settings, expected, reason):
    found = length.penalty_of(length.Scores(*unit), length.LengthSettings(**settings))
    assert found == pytest.approx(expected), reason


def test_ranges_and_degenerate_ones():
    scores = [length.Scores(0.2, 0.5, 0.1), length.Scores(0.6, 0.5, None)]
    ranges = length.ranges_of([*scores, length.Scores(None, 0.5, None)])
    assert ranges == {"vision": (0.2, 0.6), "text": (0.5, 0.5), "integration": (0.1, 0.1)}
    unit = length.normalised(scores[1], ranges)
    assert unit == (1.0, 0.5, None), "a score that all share is the middle"
    late = length.normalised(length.Scores(0.9, 0.5, 0.0), ranges)
    assert late == (1.0, 0.5, 0.5), "a sample that came later stays within"
    assert length.ranges_of([length.Scores(None, 0.1, None)])["vision"] is None
    halves = [length.ranges_of([score]) for score in scores]
    assert length.joined(*halves) == length.ranges_of(scores)


BAD_LENGTHS = [
    ({"penalty": "long"}, "penalty 'long'"),
    ({"penalty": 2.5}, "penalty 2.5"),
    ({"alpha": -1}, "alpha -1"),
    ({"beta": math.nan}, "beta nan"),
    ({"step": 0}, "step 0"),
]


@pytest.mark.parametrize("settings, message", BAD_LENGTHS)
def test_settings_of_the_length_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        length.LengthSettings(**settings)


def test_scores_from_their_parts():
    assert necessity.score(0.5, 10) == 0.75
    assert text.score(10, 5, 0) == 0.5
    assert integration.score(7) == 0.7


# -- the judge -------------------------------------------------------------------------------------

GOOD = {"reason": "It is.", "quality": 10, "difficulty": 0, "reasoning": 3}
REPLIES = [
    (json.dumps(GOOD), None, "as it was asked for"),
    (f"<think>\nHm, {{}}?\n</think>\n\n{json.dumps(GOOD)}", None, "behind a thinking"),
    (f"```json\n{json.dumps(GOOD)}\n```", None, "in a fence"),
    (f"Here it is: {json.dumps(GOOD)}", "not JSON", "words around it"),
    ("I cannot judge that.", "not JSON", "refused in words"),
    (json.dumps(GOOD)[:-4], "not JSON", "cut"),
    (json.dumps([GOOD]), "not a JSON object", "a list"),
    (json.dumps({**GOOD, "quality": 11}), "'quality' is 11, not within 0 to 10", "beyond"),
    (json.dumps({**GOOD, "quality": -1}), "'quality' is -1", "below"),
    (json.dumps({**GOOD, "quality": 7.5}), "not of type integer", "a fraction"),
    (json.dumps({**GOOD, "quality": "7"}), "not of type integer", "a text"),
    (json.dumps({**GOOD, "quality": True}), "not of type integer", "Python's True is 1"),
    (json.dumps({**GOOD, "quality": math.nan}), "not of type integer", "Python's JSON has NaN"),
    (json.dumps({**GOOD, "more": 1}), "its keys are", "a key too many"),
    (json.dumps({"quality": 10}), "its keys are", "keys too few"),
    (json.dumps({**GOOD, "reason": " "}), "'reason' is empty", "no reason"),
    (f"<think>{json.dumps(GOOD)}", "not JSON", "a thinking that never ends"),
]


@pytest.mark.parametrize("reply, problem, reason", REPLIES)
def test_replies_are_read_strictly(reply, problem, reason):
    if problem is None:
        assert text.FORM.read(reply) == GOOD, reason
        return
    with pytest.raises(ValueError, match=problem):
        text.FORM.read(reply)


def test_words_outside_the_list_are_refused():
    said = {"reason": "It is.", "cues": ["why or how", "rhyme"], "integration": 3}
    with pytest.raises(ValueError, match="'cues' is 'rhyme', not one of"):
        integration.FORM.read(json.dumps(said))
    with pytest.raises(ValueError, match="'relevance' is 'some'"):
        necessity.FORM.read(
            json.dumps(
                {
                    "reason": "So.",
                    "changes_without_image": True,
                    "relevance": "some",
                    "necessity": 1,
                }
            )
        )


def test_schemas_are_valid_json_schema():
    """By a validator of another package, where there is one."""
    jsonschema = pytest.importorskip("jsonschema")
    for form in (text.FORM, necessity.FORM, integration.FORM, check.FORM, revise.FORM):
        jsonschema.Draft202012Validator.check_schema(form.response_format["json_schema"]["schema"])


PROMPT = Prompt("text.v1", "Judge {question}")


def json_judge(url, tries=3, client_tries=2, timeout=60.0):
    client = Client([url], "judge", timeout=timeout, tries=client_tries)
    return judge.JsonJudge(client, Sampling(100), tries)


FAULTS_OF_JUDGES = ["429", "500", "slow", "cut", "empty", "no choice", "hang"]


@pytest.mark.parametrize("fault", FAULTS_OF_JUDGES)
def test_a_fault_of_the_judges_server_is_tried_again(fault):
    endpoint = FakeEndpoint({})
    endpoint.judge_faults = [fault]
    endpoint.reply_to_judge = lambda text: json.dumps(GOOD)
    with endpoint.serving() as url:
        judged = json_judge(url, timeout=0.7).ask(PROMPT, text.FORM, [], {"question": "Q1"})
    assert judged.values == GOOD and len(endpoint.bodies) == 2
    assert judged.record == {"prompt": "text.v1", "requests": 1, "read": 100, "written": 50}


BAD_REPLIES = [
    ("not JSON", lambda text: "It is good."),
    ("not within 0 to 10", lambda text: json.dumps({**GOOD, "quality": 12})),
]


@pytest.mark.parametrize("problem, reply", BAD_REPLIES)
def test_a_judge_is_told_what_is_wrong_and_then_left(problem, reply):
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = reply
    with endpoint.serving() as url:
        asked = json_judge(url)
        with pytest.raises(SetAside, match=f"text.v1: 3 replies .*{problem}"):
            asked.ask(PROMPT, text.FORM, [], {"question": "Q1"})
        assert len(endpoint.bodies) == 3
        roles = [message["role"] for message in endpoint.bodies[-1]["messages"]]
        assert roles == ["user", "assistant", "user", "assistant", "user"]
        assert problem in endpoint.bodies[-1]["messages"][-1]["content"]
        endpoint.reply_to_judge = lambda text: json.dumps(GOOD) if problem in text else reply(text)
        judged = asked.ask(PROMPT, text.FORM, [], {"question": "Q1"})
    assert judged.values == GOOD and judged.record["requests"] == 2
    assert judged.record["written"] == 100  # both replies were paid


def test_a_reply_that_a_limit_cut_is_asked_for_again():
    endpoint = FakeEndpoint({})
    endpoint.judge_faults = ["cut short"]
    endpoint.reply_to_judge = lambda text: json.dumps(GOOD)
    with endpoint.serving() as url:
        judged = json_judge(url).ask(PROMPT, text.FORM, [], {"question": "Q1"})
    assert judged.record["requests"] == 2


def test_refused_and_unanswered_requests_are_told_apart():
    endpoint = FakeEndpoint({})
    endpoint.judge_fault_of = lambda text: "400" if "Q1" in text else "500"
    with endpoint.serving() as url:
        asked = json_judge(url, client_tries=0)
        with pytest.raises(SetAside, match=r"endpoint refuses.*context length") as refused:
            asked.ask(PROMPT, text.FORM, [], {"question": "Q1"})
        with pytest.raises(Unanswered, match="internal error"):
            asked.ask(PROMPT, text.FORM, [], {"question": "Q2"})
    assert not isinstance(refused.value, Unanswered)


def test_schemas_are_sent_until_a_server_refuses_them():
    endpoint = FakeEndpoint({})
    endpoint.reply_to_judge = lambda text: json.dumps(GOOD)
    with endpoint.serving() as url:
        asked = json_judge(url)
        asked.ask(PROMPT, text.FORM, [], {"question": "Q1"})
        sent = endpoint.bodies[-1]["response_format"]["json_schema"]
        assert sent["strict"] and sent["schema"]["required"] == list(GOOD)
        asked = json_judge(url)
        endpoint.takes_schemas = False
        for _ in range(2):
            asked.ask(PROMPT, text.FORM, [], {"question": "Q1"})
    has_schema = ["response_format" in body for body in endpoint.bodies]
    assert has_schema == [True, True, False, False]  # refused once, and then left out


def test_what_is_in_a_question_is_no_place_of_the_prompt():
    prompt = Prompt("verdict.v1", "{question} / {solution}")
    values = {"question": "What is {solution}?", "solution": "4"}
    assert prompt.filled(values) == "What is {solution}? / 4"


def test_prompts_are_files_with_versions(tmp_path):
    prompts = read_prompts({})
    assert {use: prompt.name for use, prompt in prompts.items()} == {
        use: f"{use}.v1" for use in PLACES
    }
    mine = tmp_path / "text.v2.txt"
    mine.write_text("Judge {question}")
    assert read_prompts({"text": str(mine)})["text"].name == "text.v2"
    for name, content, message in (
        ("text.txt", "{question}", "a name with a version"),
        ("text.v3.txt", "{question} {answer}", "has places for"),
        ("text.v4.txt", "no place", "has places for"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            read_prompts({"text": str(tmp_path / name)})
    with pytest.raises(ValueError, match="'colour'"):
        read_prompts({"colour": "a"})


def test_the_prompt_of_integration_names_the_cues_of_its_form():
    prompt = read_prompts({})["integration"].text
    assert re.findall(r'^- "([a-z ]+)": it', prompt, re.MULTILINE) == list(integration.CUES)


# -- all stages ------------------------------------------------------------------------------------

THOUGHT = "I add.\n</think>\n\n"


def row(mark, solution, image=None, **columns):
    """A row that ends with its question."""
    images = {"images": [str(IMAGES / image)]} if image else {}
    messages = [{"role": "user", "content": f"Why is it so, {mark}?"}]
    return {**images, "messages": messages, "solution": solution, **columns}


ROWS = [
    row("Q1", "7", "chart_1.png"),  # right
    row("Q2", "2"),  # right, and without an image
    row("Q3", "3", "counting_1.png"),  # wrong, and revised
    row("Q4", "4", "counting_1.png"),  # wrong, and no revision is right
    row("Q5", "5"),  # its difficulty is beyond the scale
    row("Q6", "6", "chart_2.png"),  # the judge's server refuses it
    row("Q7", "7", "chart_2.png"),  # the judge's first replies are no JSON
    row("Q8", "New York", kind="text"),  # right for the judge alone
    row("Q9", "9"),  # right in the second try
]
ANSWERS = {
    "Q1": ["7"], "Q2": ["2"], "Q3": ["8"], "Q4": ["8"], "Q5": ["5"], "Q6": ["6"], "Q7": ["7"],
    "Q8": ["The Big Apple"], "Q9": ["1", "9"],
}  # fmt: skip
BROKEN = ["{not JSON", json.dumps(row("Q10", "1", "no_such.png")), json.dumps({"messages": []})]
SET_ASIDE = {
    3: ("revision", "2 revisions, and the last is wrong"),
    4: ("text", "'difficulty' is 11, not within 0 to 10"),
    5: ("necessity", "refuses: .*context length"),
    9: ("reading", "not JSON"),
    10: ("reading", "no_such.png does not exist"),
    11: ("reading", "expected a list"),
}


def reply_of_judge(text):
    """What the judge says, by prompt and mark."""
    number = int(MARK.search(text).group()[1:])
    if "depends on its image" in text:
        said = {"changes_without_image": True, "relevance": "essential", "necessity": number}
    elif "as training data" in text:
        said = {"quality": 8, "difficulty": number, "reasoning": number}
        if number == 5:
            said["difficulty"] = 11
        if number == 7 and "cannot be used" not in text:
            return "A fine question."
    elif "closely vision and text" in text:
        said = {"cues": ["why or how"], "integration": 10 - number}
    elif "Final answer:" in text:
        said = {"is_right": number == 8}
    else:
        answer = number if number == 3 else 8
        return json.dumps({"thinking": "I see now.", "answer": f"Answer: \\boxed{{{answer}}}"})
    return json.dumps({"reason": "It is.", **said})


def fault_of_judge(text):
    return "400" if "Q6" in text else None


def misbehaving():
    """A server for generator and judge with every fault once."""
    faults = {"Q1": ["429"], "Q2": ["cut"], "Q7": ["500", "slow"], "Q9": ["empty", "no choice"]}
    endpoint = FakeEndpoint(ANSWERS, faults)
    endpoint.reply_to_judge = reply_of_judge
    endpoint.judge_fault_of = fault_of_judge
    endpoint.judge_faults = ["429", "hang", "cut", "500", "empty", "cut short"]
    return endpoint


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe for a server, and returns its path."""

    def write(url, timeout=60.0, **changes):
        data = tmp_path / "data.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in ROWS) + "\n".join(BROKEN))
        content = {
            "data": [str(data)],
            "output_dir": str(tmp_path / "out"),
            "generator": {
                "kind": "endpoint", "urls": [url], "model": "Skywork-R1V-38B", "concurrency": 1,
            },
            "judge": {
                "kind": "endpoint", "urls": [url], "model": "judge", "concurrency": 2,
                "timeout": timeout, "json_schema": True,
            },
            "sampling": {"max_new_tokens": 64, "temperature": 0.6, "seed": 5},
            "tries": 2,
            "check": "judge-wrong",
            "length": {"alpha": 0.5, "beta": 2, "gamma": 1, "step": 0.01},
            **changes,
        }  # fmt: skip
        path = tmp_path / "distill.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def distil(path, changes=None, **options):
    return pipeline.Distillation(read_recipe(str(path), changes)).run(**options)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def check_results(folder):
    """The results of ROWS, whatever has happened on the way."""
    rows = {line["distillation"]["number"]: line for line in lines_of(folder / "distilled.jsonl")}
    assert sorted(rows) == [0, 1, 2, 6, 7, 8]
    told = {number: line["distillation"] for number, line in rows.items()}
    for number, line in rows.items():
        assert parse_row(line).turns[-1][1].count("</think>") == 1
        assert told[number]["P"] == pytest.approx(expected_penalties()[number], abs=0.005 + 1e-9)
        assert told[number]["tries"] == 2
    assert [told[number]["right_tries"] for number in sorted(told)] == [2, 2, 0, 2, 2, 1]
    revised = {number: line["revised_by"] for number, line in told.items() if line["revised_by"]}
    assert revised == {2: "judge"}
    assert rows[2]["messages"][-1]["content"] == "I see now.\n</think>\n\nAnswer: \\boxed{3}"
    assert "\\boxed{9}" in rows[8]["messages"][-1]["content"], "the wrong first try is not kept"
    scoring = {"necessity": "necessity.v1", "text": "text.v1", "integration": "integration.v1"}
    assert told[0]["prompts"] == scoring
    assert told[2]["prompts"] == {**scoring, "check": "verdict.v1", "revision": "revision.v1"}
    aside = {line["number"]: line for line in lines_of(folder / "set_aside.jsonl")}
    assert sorted(aside) == sorted(SET_ASIDE)
    for number, (stage, reason) in SET_ASIDE.items():
        assert aside[number]["stage"] == stage
        assert re.search(reason, aside[number]["set_aside"]), aside[number]
        assert "data.jsonl, line " in aside[number]["where"]


def expected_penalties():
    """P of each sample by the formula, from what the judge says; clarity is read from its file."""
    vision, texts, ties = {}, {}, {}
    for number in (0, 1, 2, 3, 6, 7, 8):
        mark = number + 1
        texts[number] = (8 + 2 * mark) / 30
        if "images" in ROWS[number]:
            with Image.open(ROWS[number]["images"][0]) as image:
                vision[number] = (clarity_of(image.convert("RGB")).value + mark / 10) / 2
            ties[number] = (10 - mark) / 10
    found = {}
    for number in texts:
        terms = [(2, texts)]
        if number in vision:
            terms += [(1, vision), (1, ties)]
        total = 0.0
        for weight, values in terms:
            low, high = min(values.values()), max(values.values())
            total += weight * (values[number] - low) / (high - low)
        mean = total / sum(weight for weight, _ in terms)
        found[number] = min(2.0, math.exp(0.5 * (1 - mean)))
    return found


def test_all_stages_with_servers_that_misbehave(recipe, tmp_path):
    """A second start asks for nothing, and a refused sample is tried again when told to."""
    endpoint = misbehaving()
    folder = tmp_path / "out"
    with endpoint.serving() as url:
        path = recipe(url, timeout=1.0)  # seconds, which a request that hangs takes longer than
        report = distil(path)
        check_results(folder)
        asked = len(endpoint.bodies)
        assert distil(path) == report and len(endpoint.bodies) == asked
        endpoint.judge_fault_of = lambda text: None
        again = distil(path, retry=True)
    assert again["distilled"] == report["distilled"] + 1  # Q6
    assert report["samples"] == 12 and report["distilled"] == 6
    assert report["right share of tries"] == pytest.approx(9 / 14, abs=1e-4)  # set aside, too
    assert report["set aside"] == {"reading": 3, "necessity": 1, "text": 1, "revision": 1}
    assert report["revised"] == {"judge": 1}
    check_requests(endpoint, folder)
    check_page(folder / "page.html")


def check_requests(endpoint, folder):
    """Each chain was asked for with the P of its sample."""
    penalties = {line["number"]: line["P"] for line in lines_of(folder / "length.jsonl")}
    for body in endpoint.bodies:
        if body["model"] != "judge":
            mark = MARK.search(text_of(body)).group()
            penalty = body.get("repetition_penalty", 1.0)  # 1 is not sent
            assert penalty == penalties[int(mark[1:]) - 1] and body["temperature"] == 0.6
    assert endpoint.given["Q1"] == 2 and len(set(penalties.values())) > 3


def check_page(path):
    """It needs no network, and has the samples and the figures."""
    page = path.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"(?!data:)", page) and "http://www.w3.org" in page
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    content = json.loads(found[1])
    assert len(content["samples"]) == len(content["points"]) == content["report"]["distilled"]
    assert all(name in content["images"] for one in content["samples"] for name in one["images"])


def test_a_run_that_is_killed_asks_for_nothing_twice(recipe, tmp_path):
    """kill −9 while it scores, writes and revises; the end is that of a run without."""
    endpoint = FakeEndpoint(ANSWERS)
    endpoint.judge_fault_of = fault_of_judge
    endpoint.reply_to_judge = lambda text: time.sleep(0.1) or reply_of_judge(text)
    endpoint.seconds = 0.1
    folder = tmp_path / "out"
    moments = [folder / "text.jsonl", folder / "tries.jsonl", folder / "revision.jsonl"]
    with endpoint.serving() as url:
        path = recipe(url)
        command = [sys.executable, "-m", "training.distill", "--config", str(path)]
        for file in moments:
            process = subprocess.Popen(
                command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL
            )
            deadline = time.monotonic() + 120
            while not (file.exists() and (file.stat().st_size or file == moments[-1])):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    check_results(folder)
    assert json.loads(done.stdout)["distilled"] == 6
    # Each request once, but for at most those that were on their way (2 at a time, 3 kills)
    undisturbed = FakeEndpoint(ANSWERS)
    undisturbed.reply_to_judge, undisturbed.judge_fault_of = reply_of_judge, fault_of_judge
    with undisturbed.serving() as url:
        distil(recipe(url), {"output_dir": str(tmp_path / "undisturbed")})
    assert len(endpoint.bodies) <= len(undisturbed.bodies) + 6
    for name in ("text", "tries", "check"):
        keys = [(line["number"], line.get("try")) for line in lines_of(folder / f"{name}.jsonl")]
        assert len(keys) == len(set(keys))


def test_two_shards_are_the_union_without_overlap(recipe, tmp_path):
    """Two processes at a time; P is normalised over both, so it is that of one process alone."""
    whole = tmp_path / "whole"
    endpoint, another = FakeEndpoint(ANSWERS), FakeEndpoint(ANSWERS)
    for server in (endpoint, another):
        server.reply_to_judge, server.judge_fault_of = reply_of_judge, fault_of_judge
    with endpoint.serving() as url, another.serving() as other_url:
        path = recipe(url)
        command = [sys.executable, "-m", "training.distill", "--config", str(path), "--shard"]
        processes = [
            subprocess.Popen([*command, shard], cwd=ROOT, stderr=subprocess.DEVNULL)
            for shard in ("0/2", "1/2")
        ]
        assert [process.wait(120) for process in processes] == [0, 0]
        distil(recipe(other_url), {"output_dir": str(whole)})
    assert len(endpoint.bodies) == len(another.bodies)
    for name in ("distilled", "set_aside"):
        parts = []
        for index in range(2):
            found = lines_of(tmp_path / "out" / f"shard_{index}_of_2" / f"{name}.jsonl")
            numbers = {line.get("distillation", line)["number"] for line in found}
            assert {number % 2 for number in numbers} == {index}
            parts += found
        expected = lines_of(whole / f"{name}.jsonl")
        without_ports = [re.sub(r"127.0.0.1:\d+", "", json.dumps(line)) for line in parts]
        expected = [re.sub(r"127.0.0.1:\d+", "", json.dumps(line)) for line in expected]
        assert sorted(without_ports) == sorted(expected)


def test_shards_one_after_another(recipe, tmp_path):
    """A machine that does both: first the scores of each, then the rest, and nobody waits."""
    endpoint = FakeEndpoint(ANSWERS)
    endpoint.reply_to_judge, endpoint.judge_fault_of = reply_of_judge, fault_of_judge
    numbers = []
    with endpoint.serving() as url:
        path = recipe(url)
        for until in ("integration", ""):
            for shard in ("0/2", "1/2"):
                distil(path, {"shard": shard}, until=until)
    for folder in (tmp_path / "out").iterdir():
        for line in lines_of(folder / "distilled.jsonl"):
            told = line["distillation"]
            numbers.append(told["number"])
            assert told["P"] == pytest.approx(expected_penalties()[told["number"]], abs=0.0051)
    assert sorted(numbers) == [0, 1, 2, 6, 7, 8]


def test_a_stage_stops_where_nobody_answers_any_more(recipe, monkeypatch, tmp_path):
    """What was done is kept, and the next start goes on with all samples."""
    endpoint = FakeEndpoint(ANSWERS)
    endpoint.reply_to_judge = reply_of_judge
    endpoint.judge_fault_of = lambda text: "500"
    with endpoint.serving() as url:
        monkeypatch.setattr(
            pipeline, "make_judge", lambda settings: json_judge(url, client_tries=0)
        )
        path = recipe(url, max_failures_in_a_row=3)
        # The second question has no image: it needs no request, and is no sign that one answers
        with pytest.raises(ValueError, match=r"necessity: 3 failures in a row .*internal"):
            distil(path)
        endpoint.judge_fault_of = fault_of_judge
        distil(path)
    check_results(tmp_path / "out")


def test_controls_are_a_line_of_the_recipe(recipe, tmp_path):
    endpoint = FakeEndpoint(ANSWERS)
    endpoint.reply_to_judge = reply_of_judge
    endpoint.judge_fault_of = fault_of_judge
    with endpoint.serving() as url:
        distil(recipe(url, length={"penalty": 1.25}, integration="rules"))
        told = [line["distillation"] for line in lines_of(tmp_path / "out" / "distilled.jsonl")]
        assert {line["P"] for line in told} == {1.25}
        sent = [body["repetition_penalty"] for body in endpoint.bodies if body["model"] != "judge"]
        assert set(sent) == {1.25}
        by = {line["scores"]["integration_by"] for line in told}
        assert by == {"rules", "no image"} and "integration" not in told[0]["prompts"]
        with pytest.raises(ValueError, match=r"other settings \(.*length.*another output_dir"):
            distil(recipe(url, length={"penalty": 1.3}, integration="rules"))


def test_stages_may_be_run_one_by_one(recipe, tmp_path):
    """So that a machine may serve the judge first, and the generator when the judge is done."""
    endpoint = FakeEndpoint(ANSWERS)
    endpoint.reply_to_judge = reply_of_judge
    endpoint.judge_fault_of = fault_of_judge
    with endpoint.serving() as url:
        path = recipe(url)
        endpoint.models = ["judge"]
        assert distil(path, until="length") is None
        assert not (tmp_path / "out" / "tries.jsonl").exists()
        endpoint.models = ["Skywork-R1V-38B", "judge"]
        distil(path)
    check_results(tmp_path / "out")


# -- nano as the generator, scores by rule ---------------------------------------------------------

NANO_ROWS = [
    {"image": str(IMAGES / "counting_1.png"), "difficulty": 2, "conversations": [
        {"from": "human", "value": "<image>\nHow many shapes are in the image?"},
        {"from": "gpt", "value": THOUGHT + "Answer: \\boxed{9}"}]},
    {"difficulty": 1, "conversations": [
        {"from": "human", "value": "What is 3 + 4?"},
        {"from": "gpt", "value": THOUGHT + "Answer: \\boxed{7}"}]},
    {"difficulty": 9, "conversations": [
        {"from": "human", "value": "What is the capital of France?"},
        {"from": "gpt", "value": THOUGHT + "\\boxed{Paris}"}], "kind": "text"},
    {"difficulty": "hard", "conversations": [
        {"from": "human", "value": "What is 5 + 4?"},
        {"from": "gpt", "value": THOUGHT + "\\boxed{9}"}]},
]  # fmt: skip


def nano_recipe(folder, **changes):
    """A recipe without any server."""
    content = yaml.safe_load((ROOT / "training/recipes/nano/distill.yaml").read_text())
    content |= {
        "data": [str(trainers.write_lines(folder / "data.jsonl", NANO_ROWS))],
        "output_dir": str(folder / "out"),
        "tries": 2,
        **changes,
    }
    content["generator"] |= {"model": str(checkpoints.NANO), "batch_size": 2}
    content["sampling"]["max_new_tokens"] = 48
    (folder / "distill.yaml").write_text(yaml.safe_dump(content))
    return folder / "distill.yaml"


def test_nano_distils_itself(tmp_path):
    """Two questions that it knows, one that it does not, and a row without its score."""
    report = distil(nano_recipe(tmp_path))
    rows = lines_of(tmp_path / "out" / "distilled.jsonl")
    assert [line["distillation"]["number"] for line in rows] == [0, 1, 2]
    told = [line["distillation"] for line in rows]
    assert told[2]["revised_by"] == "data"
    assert rows[2]["conversations"][-1]["value"] == "I add.\n</think>\n\n\\boxed{Paris}"
    assert told[1]["revised_by"] is None and told[1]["tokens"] > 5
    assert "3 + 4" in rows[1]["conversations"][-1]["value"], "its own chain, not the data's"
    assert told[1]["P"] > told[2]["P"] == 1.0, "the easier question has the higher penalty"
    assert report["set aside"] == {"text": 1}
    [aside] = lines_of(tmp_path / "out" / "set_aside.jsonl")
    assert "'difficulty' is 'hard': expected a number" in aside["set_aside"]


class Recorder:
    """What `batch_chat` is asked, in place of a model."""

    def __init__(self):
        self.batches = []

    def batch_chat(self, tokenizer, images, questions, options, **keywords):
        self.batches.append((questions, options["repetition_penalty"]))
        return ["x"] * len(questions)


def question(number, penalty=None):
    asked = {"id": str(number), "number": 0, "question": f"Q{number}", "images": []}
    asked |= {"history": [], "system": None}
    if penalty is not None:
        asked["repetition_penalty"] = penalty
    return asked


def test_batches_share_their_penalty():
    """On transformers; a question without its own has that of the run."""
    engine = engines.TransformersEngine.__new__(engines.TransformersEngine)
    engine.model, engine.tokenizer, engine.stops = Recorder(), None, set()
    engine.batch_size, engine.options = 2, {}
    engine.sampling = Sampling(8, repetition_penalty=1.05)
    engine.template = type("Template", (), {"opens_thinking": True})
    asked = [question(n, penalty) for n, penalty in enumerate((1.2, 1.0, 1.2, None, 1.2, 1.0))]
    assert len(list(engine.answers(asked))) == 6
    found = sorted((penalty, questions) for questions, penalty in engine.model.batches)
    assert found == [(1.0, ["Q1", "Q5"]), (1.05, ["Q3"]), (1.2, ["Q0", "Q2"]), (1.2, ["Q4"])]


def test_endpoints_get_the_penalty_of_each_question():
    endpoint = FakeEndpoint({f"Q{n}": ["1"] for n in range(3)})
    with endpoint.serving() as url:
        engine = EndpointEngine(Client([url], "Skywork-R1V-38B"), Sampling(8))
        list(engine.answers([question(0, 1.2), question(1, 1.5), question(2)]))
    sent = {body["messages"][0]["content"][0]["text"]: body for body in endpoint.bodies}
    assert [sent[f"Q{n}"].get("repetition_penalty") for n in range(3)] == [1.2, 1.5, None]


class RecordingLlm:
    """vLLM's engine as far as its sampling parameters go."""

    def __init__(self):
        self.parameters = []

    def generate(self, prompts, parameters, use_tqdm):
        self.parameters += parameters
        output = types.SimpleNamespace(text="x</think>y", token_ids=[1, 2], finish_reason="stop")
        return [types.SimpleNamespace(outputs=[output]) for _ in prompts]


def test_vllms_engine_gets_the_penalty_of_each_question(monkeypatch):
    engine = engines.VllmEngine.__new__(engines.VllmEngine)
    engine.llm, engine.refusals, engine.parameters = RecordingLlm(), (ValueError,), {}
    engine.make_parameters, engine.sampling = dict, Sampling(8, repetition_penalty=1.05)
    engine.template = type("Template", (), {"opens_thinking": True})
    monkeypatch.setattr(engine, "_prompt", lambda question: None, raising=False)
    assert len(list(engine.answers([question(0, 1.2), question(1, 1.5), question(2)]))) == 3
    sent = [parameters["repetition_penalty"] for parameters in engine.llm.parameters]
    assert sent == [1.2, 1.5, 1.05]


def test_results_come_as_they_are_finished_and_no_more_than_are_wanted():
    """A slow one holds up nobody, and leaving the loop starts nothing further."""
    started = []
    may_end = threading.Event()

    def work(number):
        started.append(number)
        if number == 0:
            assert may_end.wait(30)
        return number

    results = as_finished(work, iter(range(100)), 2)
    assert next(results) == 1
    may_end.set()
    results.close()
    assert len(started) <= 6


# -- parts -----------------------------------------------------------------------------------------


def sample_of(solution="7", answer="", **columns):
    [found] = read_rows([{**row("Q1", solution), **columns}]).samples
    return found._replace(answer=answer)


def read_rows(rows):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = trainers.write_lines(Path(folder) / "rows.jsonl", rows)
        return read_data([str(path)], None, Shard())


def tried(number, answer, tokens, finish_reason="stop", thinking="I think."):
    return {
        "number": 0, "try": number, "thinking": thinking, "answer": answer, "tokens": tokens,
        "finish_reason": finish_reason,
    }  # fmt: skip


TRIES = [
    ([("\\boxed{7}", 30), ("\\boxed{7}", 20), ("\\boxed{8}", 10)], 1, "the shortest right one"),
    ([("\\boxed{7}", 0), ("So: \\boxed{7}", 0)], 0, "by characters where nobody counts tokens"),
    ([("\\boxed{8}", 10)], None, "none is right"),
    ([("", 10)], None, "a thinking that never ends"),
    ([("\\boxed{7}</think>\\boxed{7}", 5), ("\\boxed{7}", 9)], 1, "a second thinking"),
]


@pytest.mark.parametrize("answers, kept, reason", TRIES)
def test_the_chain_that_is_kept(answers, kept, reason):
    tries = [tried(number, *answer) for number, answer in enumerate(answers)]
    with check.Checker(None, PROMPT) as checker:
        assert checker.check(sample_of(), tries)["kept"] == kept, reason


def test_cut_and_failed_chains_are_not_kept():
    with check.Checker(None, PROMPT) as checker:
        cut = tried(0, "\\boxed{7}", 5, "length")
        found = checker.check(sample_of(), [cut, tried(1, "\\boxed{7}", 9)])
        assert found["kept"] == 1 and "was cut" in found["verdicts"][0]["reason"]
        with pytest.raises(Unanswered, match="no chain: gone"):
            checker.check(sample_of(), [{"number": 0, "try": 0, "error": "gone"}])


OWN_CHAINS = [
    ("I add.\n</think>\n\n\\boxed{7}", None, "right"),
    ("I add.\n</think>\n\n\\boxed{8}", "own chain is wrong", "wrong"),
    ("\\boxed{7}", "no chain with an answer", "it has no thinking"),
    ("", "no chain with an answer", "the row ends with its question"),
    ("I.</think>So.</think>\\boxed{7}", "has </think> in it", "it thinks twice"),
]


@pytest.mark.parametrize("answer, problem, reason", OWN_CHAINS)
def test_the_datas_own_chain(answer, problem, reason):
    with check.Checker(None, PROMPT) as checker:
        if problem is None:
            found = revise.from_data(sample_of(answer=answer), checker)
            assert check.Chain(found["thinking"], found["answer"]).text == answer, reason
            return
        with pytest.raises(SetAside, match=problem):
            revise.from_data(sample_of(answer=answer), checker)


class Scripted:
    """A judge that says what it is told to, one after another."""

    def __init__(self, *said):
        self.said = list(said)
        self.seen = []

    def ask(self, prompt, form, images, values):
        self.seen.append(values)
        return judge.Judged(
            self.said.pop(0), {"prompt": "p", "requests": 1, "read": 2, "written": 3}
        )


REVISIONS = [
    ("The reference answer says 7.", "\\boxed{7}", "gives away"),
    ("I see.</think>", "\\boxed{7}", "has </think> in it"),
    ("I see.", "\\boxed{8}", "is wrong"),
]


@pytest.mark.parametrize("thinking, answer, problem", REVISIONS)
def test_a_revision_that_cannot_be_taken_is_revised_once_more(thinking, answer, problem):
    bad = {"thinking": thinking, "answer": answer}
    good = {"thinking": "I see.", "answer": "\\boxed{7}"}
    wrong = check.Chain("Hm.", "\\boxed{1}")
    with check.Checker(None, PROMPT) as checker:
        scripted = Scripted(bad, good)
        found = revise.Reviser(scripted, PROMPT, checker, 2).revise(sample_of(), wrong)
        assert found == {
            **good,
            "by": "judge",
            "judge": {"prompt": "p", "requests": 2, "read": 4, "written": 6},
        }
        assert scripted.seen[0]["chain"] == wrong.text and thinking in scripted.seen[1]["chain"]
        with pytest.raises(SetAside, match=f"2 revisions, and the last {problem}"):
            revise.Reviser(Scripted(bad, bad), PROMPT, checker, 2).revise(sample_of(), wrong)


FIELDS = [
    ({"difficulty": 3}, None, "a number"),
    ({"difficulty": 11}, "expected 0 to 10", "beyond the scale"),
    ({"difficulty": True}, "expected a number", "Python's True is 1"),
    ({}, "is None", "missing"),
]


@pytest.mark.parametrize("columns, problem, reason", FIELDS)
def test_scores_from_fields(columns, problem, reason):
    sources = {"difficulty": "difficulty", "quality": 7}
    if problem is None:
        found = fields.scores_of_row(sample_of(**columns), sources, ("quality", "difficulty"))
        assert found == {"quality": 7, "difficulty": 3, "by": "solution"}, reason
        return
    with pytest.raises(SetAside, match=problem):
        fields.scores_of_row(sample_of(**columns), sources, ("difficulty",))


ENDS = [
    ({"messages": [{"role": "user", "content": "Q"}]}, {"role": "assistant", "content": "new"}),
    ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "old"}]},
     {"role": "assistant", "content": "new"}),
    ({"conversations": [{"from": "human", "value": "Q"}]}, {"from": "gpt", "value": "new"}),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "old"}]},
     {"from": "gpt", "value": "new"}),
]  # fmt: skip


@pytest.mark.parametrize("content, last", ENDS)
def test_the_new_answer_in_the_form_of_the_row(content, last):
    before = json.dumps(content)
    [messages] = output.with_answer(content, "new").values()
    assert len(messages) == 2 and messages[-1] == last
    assert json.dumps(content) == before, "the caller's row is not changed"


@pytest.mark.parametrize("kept, half", [(2, b""), (1, b'{"number": 1, "x'), (0, b"{")])
def test_half_a_line_of_a_stage_is_written_again(tmp_path, kept, half):
    path = tmp_path / "stage.jsonl"
    whole = [b'{"number": %d}\n' % number for number in range(kept)]
    path.write_bytes(b"".join(whole) + half)
    with StageFile(path) as file:
        assert sorted(file.by_number()) == list(range(kept))
        file.add({"number": 7, "text": "ü\u2028"})
    assert [json.loads(line)["number"] for line in path.read_bytes().splitlines()] == [
        *range(kept), 7,
    ]  # fmt: skip


def test_an_estimate_by_hand(recipe, tmp_path):
    """9 questions of 16 characters, 5 of them with an image of which each tile has 256 tokens."""
    costs = {
        "chain_tokens": 1000, "judge_tokens": 100, "wrong_share": 0.5,
        "generator_tokens_per_second": 10, "generator_gpus": 4, "gpu_hour": 2.0,
    }  # fmt: skip
    distillation = pipeline.Distillation(
        read_recipe(str(recipe("http://127.0.0.1:1/v1", cost=costs)))
    )
    works = {
        work.stage: work
        for work in estimate.work_left(
            distillation.recipe, distillation.data.samples, distillation.prompts
        )
    }
    assert {name: work.requests for name, work in works.items()} == {
        "necessity": 5, "text": 9, "integration": 5, "tries": 18, "revision": 4,
    }  # fmt: skip
    assert works["tries"].written == 18_000 and works["text"].written == 900
    lines = estimate.lines_of(list(works.values()), distillation.recipe)
    assert "0.50 h at 10 tokens/s" in lines[3]
    assert lines[-1] == "all: 41 requests, 0.50 h, 4.00 at 2 a GPU hour"


# -- recipes and the command -----------------------------------------------------------------------


@pytest.mark.parametrize("size", ["nano", "38b"])
def test_shipped_recipes_parse(size):
    found = read_recipe(str(ROOT / "training" / "recipes" / size / "distill.yaml"))
    assert found.length.is_adaptive and found.tries == 4


BAD_RECIPES = [
    ({"colour": "red"}, "unknown key 'colour'"),
    ({"judge": {"kind": "oracle"}}, "judge: kind 'oracle'"),
    ({"judge": {"kind": "endpoint", "model": "x"}}, "judge: urls are needed"),
    ({"judge": {"kind": "solution"}, "check": "rule", "revise": "data"}, "scores has no"),
    ({"judge": {"kind": "solution"}}, "kind solution is no model"),
    ({"generator": {"kind": "local"}}, "generator: .*model"),
    ({"generator": {"kind": "local", "model": "x", "urls": ["http://a/v1"]}}, "urls are needed"),
    ({"sampling": {"max_new_tokens": 9, "temperature": 0.6, "answers": 3}}, "key 'answers'"),
    ({"sampling": {"max_new_tokens": 9}}, "tries 2 at temperature 0"),
    ({"tries": 0}, "tries 0: expected at least 1"),
    ({"length": {"alpha": "much"}}, "length: "),
    ({"length": "adaptive"}, "length: 'adaptive': expected keys and values"),
    ({"shard": "2/2"}, "shard '2/2'"),
    ({"check": "taste"}, "check 'taste'"),
    ({"data": ["/nowhere.jsonl"]}, "nowhere.jsonl does not exist"),
    ({"prompts": {"text": "/no.v1.txt"}}, "no.v1.txt does not exist"),
]


@pytest.mark.parametrize("changes, message", BAD_RECIPES)
def test_recipes_that_cannot_be_are_refused(recipe, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        pipeline.Distillation(read_recipe(str(recipe("http://127.0.0.1:1/v1", **changes))))


def test_errors_of_the_command_are_one_line(recipe, capsys, monkeypatch):
    from training.distill.__main__ import main

    path = str(recipe("http://127.0.0.1:1/v1"))
    for arguments, code, words in (
        (["--estimate"], 0, "all: "),
        (["--penalty", "long"], 1, "error: --penalty long"),
        (["--shard", "5"], 1, "error: shard '5'"),
    ):
        monkeypatch.setattr(sys, "argv", ["distill", "--config", path, *arguments])
        assert main() == code
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said


@pytest.mark.parametrize("size", ["38b", "nano"])
def test_the_shipped_recipes_are_read(size):
    recipe = read_recipe(str(ROOT / "training" / "recipes" / size / "distill.yaml"))
    assert recipe.length.is_adaptive and recipe.tries > 1
