"""The hybrid proof at nano scale: its data, which trainings it starts, its table and targets."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from evaluation import families
from evaluation.statistics import wilson
from tasks import samples
from tests import checkpoints
from training import grpo_recipe, iterate
from training.nano import data, hybrid, hybrid_table, targets
from training.raters import SolutionRater

ROOT = checkpoints.ROOT
EASY, HARD = hybrid_table.EASY, hybrid_table.HARD

# -- data ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """The rows of a small pool."""
    path = data.write("hybrid", tmp_path_factory.mktemp("data"), 120)
    return iterate.load_samples([str(path)], None)


def test_a_reward_model_has_something_to_tell_apart(pool):
    """Answers about another picture are wrong by their solution, others right in two forms."""
    ratings = dict(SolutionRater().rate([sample.rated for sample in pool]))
    wrong = {place for place, sample in enumerate(pool) if sample.row["wrong"]}
    assert {place for place, rating in ratings.items() if rating < 2} == wrong
    shares = [list(ratings.values()).count(rating) / len(pool) for rating in (1, 3, 5)]
    assert 0.1 < shares[0] < 0.3 and 0.03 < shares[1] < 0.2 and sum(shares) == 1
    assert {sample.row["family"] for sample in pool} == set(samples.ALL_FAMILIES)


@pytest.mark.parametrize("family", samples.ALL_FAMILIES)
def test_a_mistaken_answer_belongs_to_another_picture(family):
    """The solution is that of what is shown; answer and thinking are not."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = data.mistaken_sample(rng, family)
        assert drawn.is_wrong and drawn.sample.answer != drawn.solution
        shown = drawn.sample.drawings
        if len(shown) == 1:
            assert (shown[0].question, shown[0].answer) == (drawn.sample.question, drawn.solution)
        assert any(drawing.thinking not in drawn.sample.thinking for drawing in shown)


def test_the_older_data_sets_are_what_they_were():
    """New shares draw no numbers where they are 0, and new stages come after the others."""
    assert list(data.STAGES)[:5] == ["init_1", "init_2", "init_3", "alignment", "further"]
    shares = data.STAGES["alignment"]
    rng, expected = np.random.default_rng(5), np.random.default_rng(5)
    for _ in range(20):
        drawn = data.random_sample(rng, "alignment")
        if expected.random() < shares.descriptions:
            sample = samples.description(expected)
        else:
            names = list(samples.FAMILIES)
            name = names[expected.integers(len(names))]
            sample = samples.FAMILIES[name](expected, wordings=True)
        expected.random()  # whether it is wrong
        assert (drawn.sample.question, drawn.sample.answer) == (sample.question, sample.answer)


def test_the_pool_and_the_scores_come_from_streams_of_their_own():
    assert data.STREAM != families.STREAM


# -- trainings -------------------------------------------------------------------------------------

STEPS = [7, 5, 4, 3]


class Recorder:
    """Stands for the commands: writes down their arguments, and leaves what they would leave."""

    def __init__(self):
        self.calls = []

    def __call__(self, module, arguments):
        self.calls.append((module, arguments))
        if module != "training.iterate":
            folder = Path(arguments[arguments.index("--output_dir") + 1])
            self.leave(folder, self.steps_of(arguments))
            return
        recipe = iterate.read_recipe(arguments[1])
        for number, steps in enumerate(STEPS, start=1):
            self.leave(Path(recipe.output_dir) / f"iteration_{number}" / "sft", steps)

    def steps_of(self, arguments):
        """The optimizer steps of a training; an epoch has one here."""
        if "--max_steps" not in arguments:
            return 1
        return int(arguments[arguments.index("--max_steps") + 1])

    def leave(self, folder, steps):
        (folder / "model").mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps({"steps": steps}))

    def arguments(self, name):
        """The arguments, by name, of the training whose output directory has this name."""
        for module, words in self.calls:
            if module != "training.iterate":
                keys = [number for number, word in enumerate(words) if word.startswith("--")]
                ends = [*keys[1:], len(words)]
                found = {words[key]: words[key + 1 : end] for key, end in zip(keys, ends)}
                if found["--output_dir"][0].endswith(name):
                    return found
        raise KeyError(name)


@pytest.fixture
def start(tmp_path):
    """A folder with the model to start from."""
    (tmp_path / "swapped").mkdir()
    (tmp_path / "swapped" / "config.json").write_text("{}")
    return tmp_path


def fake_scores(model, count, text_count):
    """Scores in their form; what they are does not matter."""
    share = {"right": 1, "total": count, "interval": [0.0, 1.0]}
    return {
        "count": count,
        "families": dict.fromkeys(samples.ALL_FAMILIES, share),
        "text": {"calculation": {"right": 1, "total": text_count, "interval": [0.0, 1.0]}},
        "format": [1, 1],
        "seconds": 0,
    }


def test_every_row_has_its_training(start, monkeypatch):
    """Each starts where it should, the controls with the iterations' steps; none is done twice."""
    monkeypatch.setattr(hybrid, "score_model", fake_scores)
    monkeypatch.setattr(hybrid_table, "plot", lambda *arguments: None)  # after every row
    recorder = Recorder()
    run = hybrid.Hybrid(start, hybrid.SMOKE, recorder)
    hybrid.score_rows(run, list(hybrid.ROWS), [0, 1], 3, 2)
    rows = run.results()
    assert list(rows) == list(hybrid.ROWS)
    assert {len(seeds) for key, seeds in rows.items() if hybrid.ROWS[key].has_seeds} == {2}
    assert len(rows["swapped"]) == len(rows["aligned"]) == 1
    # stage 1; of each seed: two kinds of iterations, four parts of a control, five of GRPO
    assert len(recorder.calls) == 1 + 2 * (2 + 4 + 5)

    stage_1 = recorder.arguments("hybrid/aligned")
    assert stage_1["--model"] == [str(start / "swapped")] and "--max_steps" not in stage_1
    assert stage_1["--data"] == [str(start / "hybrid" / "data" / "hybrid.jsonl")]
    aligned = start / "hybrid" / "aligned" / "model"
    iteration = start / "hybrid" / "seed_1" / "iterations" / "iteration_4"
    for name, extra in {
        "seed_1/grpo": {},
        "seed_1/grpo_buffer": {"--sample_buffer": ["2"]},
        "seed_1/grpo_kl": {"--beta": ["0.04"]},
        "seed_1/grpo_lora": {"--train": ["mlp1", "lora"]},
        "seed_1/grpo_longer": {"--max_steps": ["3"], "--learning_rate": ["1e-05"]},
    }.items():
        arguments = recorder.arguments(name)
        assert arguments["--model"] == [str(iteration / "sft" / "model")]
        assert arguments["--data"] == [str(iteration / iterate.RATED_HIGH)]
        assert arguments["--seed"] == ["1"]
        assert {key: arguments.get(key) for key in extra} == extra
    parts = [recorder.arguments(f"seed_1/everything_{number}") for number in (1, 2, 3, 4)]
    assert [int(part["--max_steps"][0]) for part in parts] == STEPS
    assert [float(part["--learning_rate"][0]) for part in parts] == [1e-4, 2e-5, 2e-5, 2e-5]
    assert len({part["--seed"][0] for part in parts}) == 4  # each has an order of its own
    assert parts[0]["--model"] == [str(aligned)]
    for before, after in zip(parts, parts[1:]):
        assert after["--model"] == [before["--output_dir"][0] + "/model"]

    iterations = iterate.read_recipe(str(start / "hybrid" / "seed_1" / "iterations.yaml"))
    errors = iterate.read_recipe(str(start / "hybrid" / "seed_1" / "errors.yaml"))
    assert iterations.thresholds == [2, 3, 4, 5] and iterations.steps is None
    assert errors.thresholds == [None] * 4 and errors.steps == STEPS
    assert iterations.model == errors.model == str(aligned)
    assert yaml.safe_load(Path(iterations.sft).read_text())["seed"] == 1

    again = Recorder()
    hybrid.score_rows(hybrid.Hybrid(start, hybrid.SMOKE, again), list(hybrid.ROWS), [0, 1], 3, 2)
    assert not again.calls


def test_recipes_of_grpo_parse(start):
    recorder = Recorder()
    hybrid.Hybrid(start, hybrid.SMOKE, recorder).grpo_lora(0)
    [words] = [words for module, words in recorder.calls if module == "training.grpo"]
    recipe, config = grpo_recipe.parse([*words, "--use_cpu", "true"])
    assert recipe.train == ["mlp1", "lora"] and config.max_steps == 1


def test_rows_are_scored_again_on_more_samples(start, monkeypatch):
    monkeypatch.setattr(hybrid, "score_model", fake_scores)
    run = hybrid.Hybrid(start, hybrid.SMOKE, Recorder())
    for count in (3, 3, 5):
        hybrid.score_rows(run, ["aligned"], [0], count, 2)
        assert run.results()["aligned"]["0"]["count"] == count


def test_other_sizes_and_missing_models_are_refused(start, tmp_path):
    hybrid.Hybrid(start, hybrid.SMOKE)
    with pytest.raises(ValueError, match="name another directory"):
        hybrid.Hybrid(start, hybrid.FULL)
    shutil.rmtree(start / "swapped")
    with pytest.raises(FileNotFoundError, match=r"swapped is no model: run `python -m training"):
        hybrid.Hybrid(start, hybrid.SMOKE)


@pytest.mark.slow
def test_a_model_is_scored_on_every_family():
    """A question of each: counts, text and format are there, and nano has the form of answers."""
    scores = hybrid.score_model(checkpoints.NANO, 1, 1)
    assert set(scores["families"]) == set(samples.ALL_FAMILIES)
    assert all(share["total"] == 1 for share in scores["families"].values())
    assert scores["text"].keys() <= set(samples.FAMILIES) and scores["text"]
    formed, total = scores["format"]
    assert total == len(samples.ALL_FAMILIES) and formed >= len(samples.FAMILIES)


@pytest.mark.slow
def test_a_short_run_from_end_to_end(tmp_path):
    """Every command is started for real, on copies of nano; a second run only prints."""
    for name in ("swapped", "final"):
        shutil.copytree(checkpoints.NANO, tmp_path / name)
    command = [sys.executable, "-m", "training.nano.hybrid", str(tmp_path), "--smoke"]
    command += ["--count", "1", "--text-count", "1"]
    for _ in range(2):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    for row in hybrid.ROWS.values():
        assert f"| {row.name} |" in done.stdout
    assert "==" not in done.stdout
    assert (tmp_path / "hybrid" / "hybrid.png").stat().st_size > 0


# -- table and targets -----------------------------------------------------------------------------


def scores_of(hard, easy=95, text=90, formed=100):
    """Scores of 100 samples a family.

    Args:
        hard, easy: right answers of each family.
        text: right answers to pictures in words.
        formed: answers of 100 that have the form of one.
    """

    def share(right):
        low, high = wilson(right, 100)
        return {"right": right, "total": 100, "interval": [low, high]}

    shares = {name: share(easy) for name in EASY} | {name: share(hard) for name in HARD}
    return {
        "count": 100, "families": shares, "text": {"calculation": share(text)},
        "format": [formed, 100], "seconds": 1,
    }  # fmt: skip


def test_the_mean_over_families_is_the_share_of_all_answers():
    scores = scores_of(40)
    scores["families"][HARD[0]]["right"] = 60
    estimate = hybrid_table.mean_share(scores, HARD)
    right, total = 60 + 40 * (len(HARD) - 1), 100 * len(HARD)
    assert estimate.mean == pytest.approx(right / total)
    assert (estimate.low, estimate.high) == pytest.approx(wilson(right, total))


def test_seeds_have_a_mean_and_a_spread_but_no_narrower_interval():
    one = hybrid_table.over_seeds({"0": scores_of(50)}, HARD)
    three = hybrid_table.over_seeds(
        {"0": scores_of(40), "1": scores_of(50), "2": scores_of(60)}, HARD
    )
    assert one.spread is None and one.mean == three.mean == 0.5
    assert three.spread == pytest.approx(0.1)
    assert three.high - three.low == pytest.approx(one.high - one.low, rel=0.05)


def rows_with(**changes):
    """Rows that reach every target, but for changes."""
    rows = {"aligned": scores_of(30), "iteration_4": scores_of(50), "grpo": scores_of(70)}
    return {name: {"0": scores} for name, scores in {**rows, **changes}.items()}


TARGETS = [
    (rows_with(), set(), "all are reached"),
    (rows_with(grpo=scores_of(52)), {"grpo is above"}, "a gain smaller than the interval"),
    (
        rows_with(iteration_4=scores_of(20)),
        {"iteration_4 is above"},
        "a loss, which GRPO makes up for",
    ),
    (rows_with(grpo=scores_of(70, formed=97)), {"format"}, "97 of 100 have the form"),
    (rows_with(grpo=scores_of(70, formed=98)), set(), "just as many as are asked for"),
    (rows_with(grpo=scores_of(70, text=89)), {"text"}, "one answer to text is lost"),
    (rows_with(grpo=scores_of(70, easy=80)), set(EASY), "all easy families fall"),
    (rows_with(grpo=scores_of(70, easy=93)), set(), "a fall within the interval"),
]


@pytest.mark.parametrize("rows, missed, reason", TARGETS, ids=[case[2] for case in TARGETS])
def test_targets(rows, missed, reason):
    found = [target for target in hybrid_table.targets(rows) if not target.holds]
    assert len(found) == len(missed), reason
    for start in missed:
        assert any(target.name.startswith(start) for target in found), reason


def test_one_bad_seed_misses_the_format():
    rows = rows_with()
    rows["grpo"] = {"0": scores_of(70), "1": scores_of(70, formed=90)}
    assert "missed: format" in targets.as_list(hybrid_table.targets(rows))


def test_targets_of_rows_that_are_not_there_are_open():
    assert [target.holds for target in hybrid_table.targets({})] == [None, None]


def test_the_table_has_means_spreads_and_intervals(tmp_path):
    rows = rows_with()
    rows["grpo"] = {"0": scores_of(60), "1": scores_of(80, formed=99)}
    rows["grpo"]["1"]["count"] = 500
    names = {"aligned": "start", "iteration_4": "iterations", "grpo": "GRPO"}
    text = hybrid_table.table(rows, names)
    low, high = wilson(30, 100)
    assert f"30.0% ({low:.1%} to {high:.1%})" in text
    hard, easy = text.split("Easy families")
    assert "| GRPO | 2 | 100, 500 | 70.0% ± 14.1 (" in hard and all(name in hard for name in HARD)
    assert "| 99.0% | 90.0% (" in easy and all(name in easy for name in EASY)
    hybrid_table.plot(rows, names, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
