"""The proof of adaptive length runs from end to end, and its tables say what the answers were."""

import json

import pytest

from evaluation import local, nano
from evaluation.families import FamilySet
from evaluation.statistics import wilson
from tasks import samples
from tests import checkpoints
from training import sft
from training.distill.length import LengthSettings
from training.nano import data, length_results, lengths, targets
from training.nano.length_results import Measured


def answers(family="counting", difficulty=3.6, right=(True,), tokens=(40,), checks=(0,)):
    """Answers to questions of one kind, one for each value."""
    rows = []
    for is_right, length, count in zip(right, tokens, checks, strict=True):
        rows.append(Measured(family, difficulty, is_right, False, length, count))
    return rows


EASY = {"family": "charts", "difficulty": 2.4}
HARD = {"family": "three images", "difficulty": 10.0}


# -- the arithmetic, on answers made by hand -------------------------------------------------------


@pytest.mark.parametrize("difficulty, group", [
    (0, "easy"), (3.9, "easy"),
    (4, "middle"), (7.9, "middle"),  # a limit belongs to the group above it
    (8, "hard"), (10, "hard"),
])  # fmt: skip
def test_difficulties_have_groups(difficulty, group):
    assert length_results.group_of(difficulty) == group


def test_a_negative_difficulty_is_refused():
    with pytest.raises(ValueError, match="difficulty -1: expected a number of at least 0"):
        length_results.group_of(-1)


def test_summaries_are_means_with_intervals():
    rows = answers(right=(True, True, True, False), tokens=(10, 20, 30, 60), checks=(0, 0, 1, 2))
    score = length_results.summary(rows)
    assert score["answers"] == 4 and score["right"] == 0.75
    assert score["right interval"] == [round(limit, 4) for limit in wilson(3, 4)]
    assert score["tokens"] == 30 and score["checks"] == 0.75
    low, high = score["tokens interval"]
    assert 10 <= low < 30 < high <= 60


def test_models_are_compared_question_by_question():
    """Each answer is 10 tokens shorter, so the interval has no width, though lengths differ."""
    lengths_of_one = (20, 50, 110)
    one = answers(right=(True,) * 3, tokens=lengths_of_one, checks=(0, 1, 3))
    shorter = answers(right=(True,) * 3, tokens=(10, 40, 100), checks=(0, 1, 2))
    found = length_results.compared(shorter, one)
    assert found["tokens"] == -10 and found["tokens interval"] == [-10, -10]
    assert found["share of tokens"] == pytest.approx(-10 / 60, abs=1e-4)
    assert found["right"] == 0 and found["right interval"] == [0, 0]


def test_answers_to_other_questions_are_not_compared():
    with pytest.raises(ValueError, match="not to the same questions"):
        length_results.compared(answers(**EASY), answers(**HARD))


def model(easy, hard, easy_right=40, hard_right=40):
    """40 easy answers and 40 hard ones of these lengths, so many of each right."""
    rows = []
    for kind, length, right in ((EASY, easy, easy_right), (HARD, hard, hard_right)):
        verdicts = [True] * right + [False] * (40 - right)
        rows += answers(**kind, right=verdicts, tokens=[length] * 40, checks=[0] * 40)
    return rows


@pytest.mark.parametrize("adaptive, one, constant, holds", [
    # what the controller is for
    (model(60, 200), model(100, 220), model(80, 150), [True, True, True, True]),
    # 20 % shorter is not 25 %
    (model(80, 200), model(100, 220), model(90, 150), [False, True, True, True]),
    # short, and wrong: 10 of 40 are significantly fewer than 40
    (model(60, 200, easy_right=10), model(100, 220), model(80, 150), [False, True, True, True]),
    # hard questions get no longer chains
    (model(60, 50), model(100, 220), model(80, 45), [True, False, True, True]),
    # less accurate on hard questions than the constant P
    (model(60, 200, hard_right=10), model(100, 220), model(80, 150), [True, True, False, True]),
    # the same as the constant P: nothing adapts
    (model(60, 200), model(100, 220), model(60, 200), [True, True, True, False]),
])  # fmt: skip
def test_targets_hold_or_not(adaptive, one, constant, holds):
    found = length_results.targets(adaptive, one, constant)
    assert [target.holds for target in found] == holds
    lines = targets.as_list(found).splitlines()
    assert [line.startswith("- reached: ") for line in lines] == holds


def test_targets_need_hard_questions():
    with pytest.raises(ValueError, match="no question is hard"):
        length_results.targets(answers(**EASY), answers(**EASY), answers(**EASY))


def test_the_table_has_a_line_for_each_group_and_family():
    rows = model(60, 200, hard_right=30)
    parts = length_results.parts_of(rows)
    scores = {name: length_results.summary(part) for name, part in parts.items()}
    lines = length_results.table({"adaptive P": scores, "P = 1": scores}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| easy", "| hard", "| charts", "| three images",
    ]  # fmt: skip
    assert lines[3].count("75.0% (59.8% to 85.8%); 200.0 (200.0 to 200.0) tokens") == 2


def test_means_of_tries_are_counted_by_group():
    facts = [
        {"P": 1.0, "right": True, "tokens": 30, "checks": 0},
        {"P": 1.2, "right": False, "tokens": 50, "checks": 1},
    ]
    means = length_results.means_of(facts)
    assert means == {"chains": 2, "P": 1.1, "right": 0.5, "tokens": 40, "checks": 0.5}
    table = length_results.table_of_tries({"adaptive P": {"easy": means}})
    assert "| 2 under P 1.10: 50.0% right, 40.0 tokens, 0.50 checks | none | none |" in table


@pytest.mark.parametrize("thinking, count", [
    ("4 + 3 = 7.", 0),
    ("4 + 3 = 7. Wait, let me check again. 4 + 3 = 7. That is the same.", 1),
    ("5. Let me look again. 6. That was not right. Let me check that. 6. That is the same.", 2),
])  # fmt: skip
def test_checks_are_counted(thinking, count):
    assert lengths.checks_in(thinking) == count


def test_difficulties_are_those_of_the_pictures_that_are_asked_about():
    """The second sample of a family is the one whose question has the number 1."""
    families = FamilySet(3, 5, ["calculation", "three images"])
    drawn = families.drawn("calculation")
    thoughts = [
        nano.Thought("calculation", 1, True, False, "", 7),
        nano.Thought("three images", 0, False, True, "", 9),
    ]
    easy, hard = lengths.measured_of(thoughts, families)
    assert easy.difficulty == data.difficulty_of(drawn[1])
    assert hard == Measured("three images", 10.0, False, True, 9, 0)


# -- every stage, a few samples each ---------------------------------------------------------------


@pytest.fixture(scope="module")
def nano_folder(tmp_path_factory):
    """A folder as of the nano pipeline: the shipped checkpoint is the model, and its child."""
    folder = tmp_path_factory.mktemp("nano")
    for stage in ("final", "rechecking"):
        (folder / stage).symlink_to(checkpoints.NANO)
    return folder


def proof_in(folder, nano_folder):
    return lengths.Proof(
        nano_folder,
        folder,
        lengths.SMOKE,
        train=lambda arguments: sft.train(*sft.parse(arguments)),
        sweep=[LengthSettings(alpha=0.0)],
        decodings={"sampled": lengths.DECODINGS["sampled"]},
    )


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory, nano_folder):
    proof = proof_in(tmp_path_factory.mktemp("lengths"), nano_folder)
    proof.all()
    return proof


def test_the_proof_runs_from_end_to_end(smoke_run):
    """Every model has answered every question."""
    results = json.loads((smoke_run.folder / "results.json").read_text())
    models = results["scores"]["sampled"]
    assert list(models) == list(lengths.MODELS.values())
    for parts in models.values():
        counts = {family: parts[family]["answers"] for family in samples.ALL_FAMILIES}
        assert set(counts.values()) == {lengths.SMOKE["evaluation"]}
    assert "hard questions: longer than easy ones" in smoke_run.report()
    assert (smoke_run.folder / "lengths.png").read_bytes().startswith(b"\x89PNG")


def test_the_constant_is_the_mean_of_the_adaptive_run(smoke_run):
    reports = {}
    for name in lengths.PENALTIES:
        path = smoke_run.folder / f"distilled_{name}" / "report.json"
        reports[name] = json.loads(path.read_text())
    assert reports["one"]["P"] == [1.0, 1.0]
    mean = reports["adaptive"]["mean P"]
    assert mean > 1 and reports["constant"]["P"] == [mean, mean]


def test_the_sweep_counts_tries_by_group(smoke_run):
    [scores] = json.loads((smoke_run.folder / "sweep.json").read_text())
    assert sum(group["chains"] for group in scores["groups"].values()) == lengths.SMOKE["sweep"]
    assert {group["P"] for group in scores["groups"].values()} == {1.0}
    assert "alpha = 0.0" in smoke_run.report_of_sweep()


def test_what_is_done_is_not_done_again(smoke_run, nano_folder):
    times = smoke_run.times
    again = proof_in(smoke_run.folder, nano_folder)
    again.all()
    assert again.times == times


def test_another_checkpoint_needs_another_folder(smoke_run, nano_folder, tmp_path):
    for stage in ("final", "rechecking"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="name another directory"):
        proof_in(smoke_run.folder, tmp_path)


def test_a_stage_that_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run python -m training.nano.pipeline"):
        proof_in(tmp_path / "out", tmp_path)


def test_answers_at_a_temperature_are_the_same_again(nano_model, nano_tokenizer, tmp_path):
    """The number of the batch is their seed, whichever thread comes first."""
    options = {"max_new_tokens": 24, "do_sample": True, "temperature": 5.0}
    texts = []
    for name in ("first", "second"):
        drawn = FamilySet(4, 77, ["counting"])
        results = nano.score(
            nano_model, nano_tokenizer, drawn, tmp_path / name, batch_size=2, options=options
        )
        texts.append([results.answers[number, 0].text for number in range(4)])
    assert texts[0] == texts[1] and len(set(texts[0])) == 4
    assert local.OPTIONS["do_sample"] is False
