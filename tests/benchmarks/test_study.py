"""The study: what it counts, what it may run, and that a kill changes none of its numbers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study.arm import Arm
from benchmarks.study.arms import ARM_OF, ARMS
from benchmarks.study.comparison import area, best_epoch, best_loss, places_of
from benchmarks.study.corpora import Folders
from benchmarks.study.jobs import (
    Job,
    choose,
    count_jobs,
    num_tuning_runs,
    refuse_untuned,
    startable,
)
from benchmarks.study.recipes import adapting_recipe
from benchmarks.study.results import append_result, read_results, refuse_other_studies
from benchmarks.study.settings import MINIATURE, TUNING_SEED
from benchmarks.study.spread import mask_bits
from benchmarks.study.summary import gain_of
from benchmarks.study.tables import knowledge_table, losses_table
from benchmarks.study.tradeoff import best_share, cost_of, tradeoff_table
from tests.grids import WHOLE
from tests.warm_python import warm_python
from training.regularisers.table import model_regularisation

# --- statistics ---


def row(arm: str, seed: int, losses: list[float], **chosen: float) -> dict:
    job = Job("tiny", "code", arm, seed, tuple(chosen.items()))
    epochs = [float(i) for i in range(len(losses))]
    curve = {"epoch": epochs, "loss": losses, "bands": [[loss] for loss in losses]}
    return job.as_row() | {"curve": curve, "final": {"domain_loss": losses[-1]}}


def test_measures_leave_the_untrained_model_out_of_the_best():
    found = row("none", 1, [1.0, 3.0, 2.0, 4.0])
    assert (best_loss(found), best_epoch(found)) == (2.0, 2.0)
    assert area(found) == pytest.approx((2.0 + 2.5 + 3.0) / 3)


def test_differences_are_paired_by_seed_and_by_rate():
    rate = {"dropout.max_rate": 0.6}
    rows = [row("none", 1, [9.0, 5.0]), row("none", 2, [9.0, 7.0]), row("none", 3, [9.0, 1.0])]
    rows += [row("random_input", seed, [9.0, 4.0 + seed], **rate) for seed in (1, 2)]
    rows += [row("entrodrop_input", seed, [9.0, 3.0 + seed], **rate) for seed in (1, 2)]
    rows += [row("entrodrop_loss", seed, [9.0, 3.0], **rate) for seed in (1, 2)]
    rows += [row("half_guided", seed, [9.0, 3.0], **rate) for seed in (1, 2)]
    (place,) = places_of(rows)
    measured = place.arms["entrodrop_input"].minus(
        place.arms["none"], lambda r: r["curve"]["loss"][-1]
    )
    assert measured.mean == -1.5
    assert "| none |  | 3 | 4.333 ± 7.590 |" in losses_table(place)
    assert place.random_partner("entrodrop_input") is place.arms["random_input"]
    assert place.random_partner("half_guided") is place.arms["random_input"]
    assert place.random_partner("entrodrop_loss") is None  # no loss was dropped at random
    assert place.random_partner("none") is None


def test_masks_of_random_dropout_vary_most_at_an_equal_rate():
    rows = [row("none", 1, [9.0, 5.0])]
    for arm in (
        "random_input",
        "entrodrop_input",
        "high_input",
        "half_guided",
        "constant_input",
        "random_loss",
    ):
        rows.append(row(arm, 1, [9.0, 4.0], **{"dropout.max_rate": 1.0}))
    (place,) = places_of(rows)
    bits = {name: mask_bits(runs) for name, runs in place.arms.items()}
    assert bits == {
        "none": 0.0,
        "random_input": 1.0,  # each token by the toss of a coin
        "entrodrop_input": 0.0,  # the half of low entropy, always
        "high_input": 0.0,
        "half_guided": pytest.approx(0.811, abs=1e-3),  # of one chance in four or three in four
        "constant_input": None,
        "random_loss": None,
    }


def lever_row(arm: str, seed: int, best: float, *, halfway: float, **chosen: float) -> dict:
    found = row(arm, seed, [9.0, best, 8.0], **chosen)
    found["best"] = {"domain_loss": best, "general_loss": 5.0 - best}
    found["between"] = {"0.5": {"domain_loss": halfway, "general_loss": 1.0}}
    return found


def test_a_share_of_the_base_is_chosen_on_the_tuning_slice_and_costs_count_replay():
    rows = [lever_row("plain", TUNING_SEED, 3.0, halfway=3.5)]
    rows += [lever_row("plain", seed, 3.0 + seed, halfway=2.5 + seed) for seed in (1, 2)]
    share = {"replay.share": 0.25}
    rows += [lever_row("replay", TUNING_SEED, 3.0, halfway=2.0, **share)]
    rows += [lever_row("replay", seed, 2.5 + seed, halfway=2.25 + seed, **share) for seed in (1, 2)]
    (place,) = places_of(rows)
    plain, replay = place.arms["plain"], place.arms["replay"]
    assert (best_share(place, plain), best_share(place, replay)) == ("1", "0.5")
    assert (cost_of(plain), cost_of(replay)) == (1.0, pytest.approx(4 / 3))
    line = next(text for text in tradeoff_table(place).splitlines() if "replay" in text)
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[6] == "**−0.500 ± 0.000**" and cells[8] == "**+0.500 ± 0.000**"
    assert cells[9:11] == ["0.5", "**−0.750 ± 0.000**"]
    gain = gain_of(place, "plain", on_the_way=True)
    assert gain is not None and gain.domain.mean == 0.0
    without = [{key: row[key] for key in row if key != "between"} for row in rows]
    assert gain_of(places_of(without)[0], "plain", on_the_way=True) is None  # not level: not scored
    # runs of another study than that of levers, and one whose tuning is under way
    (place,) = places_of([row("plain", seed, [9.0, 3.0]) for seed in (TUNING_SEED, 1)])
    assert best_share(place, place.arms["plain"]) == "1"
    (place,) = places_of([lever_row("plain_slow", 1, 3.0, halfway=3.5)])
    assert best_share(place, place.arms["plain_slow"]) == "1"


# --- what is run ---


def test_every_arm_that_tunes_has_as_many_tries():
    assert len({len(arm.tries) for arm in ARM_OF.values() if arm.tries}) == 1


def test_no_two_arms_have_one_name():
    for arms in ARMS.values():
        assert len(arms) == len({arm.name for arm in arms})
        assert all(ARM_OF[arm.name] is arm for arm in arms)


@pytest.mark.parametrize("arm", ARM_OF.values(), ids=lambda arm: arm.name)
def test_every_arm_makes_a_valid_recipe(arm: Arm):
    taken = {k: v for name in arm.like for k, v in ARM_OF[name].tries[0].items()}
    for one in arm.tries or ({},):
        job = Job("tiny", "code", arm.name, 1, tuple((taken | dict(one)).items()))
        recipe = adapting_recipe(
            MINIATURE,
            MINIATURE.sizes[0],
            Folders(Path("x")),
            num_samples=8,
            domain="code",
            seed=1,
            name="x",
            overrides=job.overrides(),
        )
        if arm.name == "with_decay":
            assert recipe.regularisers == ("entrodrop", "weight_decay")
            assert model_regularisation(recipe).weight_decay == 3.0


def finish_all(arms: list[Arm], *, loss_of) -> list[dict]:
    """As a study would, with losses out of a formula."""
    rows: list[dict] = []
    while jobs := startable(MINIATURE, rows, arms=arms):
        job = jobs[0]
        rows.append(row(job.arm, job.seed, [9.0, loss_of(job)], **dict(job.chosen)))
    return rows


def test_grid_ends_after_the_runs_that_it_counts_and_repeats_none():
    arms = [arm for arm in ARMS["regularisers"] if arm.spared_by is None]
    rows = finish_all(arms, loss_of=lambda job: 1.0)
    assert len(rows) == len({found["key"] for found in rows}) == count_jobs(MINIATURE, arms=arms)


def test_reported_runs_take_the_setting_of_least_final_loss_on_the_tuning_slice():
    setting = replace(MINIATURE, tries_of_arm=3)
    arm = ARM_OF["random_input"]
    rows = [
        row(arm.name, TUNING_SEED, [9.0, loss], **one)
        for one, loss in zip(arm.tries, (3.0, 1.0, 2.0), strict=True)
    ]
    assert choose(setting, rows[:2], "tiny", "code", arm) is None
    assert choose(MINIATURE, [], "tiny", "code", arm) == arm.tries[0]
    assert choose(setting, rows, "tiny", "code", arm) == arm.tries[1]


def test_plain_training_searches_its_rate_even_where_other_arms_try_one_setting():
    assert MINIATURE.tries_of_arm == 1
    assert num_tuning_runs(MINIATURE, ARM_OF["plain"]) == 3
    assert num_tuning_runs(MINIATURE, ARM_OF["ema_teacher"]) == 0


def test_an_arm_has_the_rate_of_plain_training_and_its_own_setting_of_least_best_loss():
    setting = replace(MINIATURE, seeds=(1, 2), tries_of_arm=3, tune_by="best", base_shares=(0.5,))
    plain, teacher, slow = (ARM_OF[name] for name in ("plain", "ema_teacher", "plain_slow"))
    arms = [plain, teacher, slow]
    rows: list[dict] = []
    while jobs := startable(setting, rows, arms=arms):
        job = jobs[0]
        chosen = dict(job.chosen)
        best = chosen.get("lr.searched", 0.0) + chosen.get("ema.half_life_epochs", 0.0)
        rows.append(row(job.arm, job.seed, [9.0, best, 10.0 - best], **chosen))
    assert len(rows) == count_jobs(setting, arms=arms)
    assert choose(setting, rows, "tiny", "code", slow) == {"lr.searched": 0.5}
    assert choose(setting, rows, "tiny", "code", teacher) == {
        "lr.searched": 0.5,
        "ema.half_life_epochs": 0.5,
    }
    # the share of the base is chosen there, too
    assert [found["seed"] for found in rows if found["arm"] == "plain_slow"] == [TUNING_SEED, 1, 2]


def test_matched_random_dropout_runs_only_where_the_rates_differ():
    names = ("random_input", "entrodrop_input", "random_matched")
    arms = [ARM_OF[name] for name in names]
    rows = finish_all(arms, loss_of=lambda job: 1.0)
    assert "random_matched" not in {found["arm"] for found in rows}


def test_an_arm_that_waits_for_a_setting_nobody_tunes_is_refused():
    setting = replace(MINIATURE, tries_of_arm=3)
    tuned, opposite = ARM_OF["entrodrop_input"], ARM_OF["high_input"]
    with pytest.raises(ValueError, match="high_input: it uses the setting of entrodrop_input"):
        refuse_untuned(setting, [], arms=[opposite])
    refuse_untuned(setting, [], arms=[opposite, tuned])
    rows = [row(tuned.name, TUNING_SEED, [9.0, 1.0], **one) for one in tuned.tries]
    refuse_untuned(setting, rows, arms=[opposite])


# --- results ---


def test_results_cut_short_by_a_kill_are_left_out_and_then_cut_off(tmp_path):
    path = tmp_path / "results.jsonl"
    append_result(path, {"key": "a"})
    with path.open("a") as file:
        file.write('{"key": "b", "lo')
    assert read_results(path) == [{"key": "a"}]
    append_result(path, {"key": "c"})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "c"]


def test_results_of_another_base_model_or_setting_are_refused():
    own = MINIATURE.identity("code")
    place = {"key": "tiny/code/none/-/1", "size": "tiny", "domain": "code"}
    rows = [place | {"base": "aa", "setting": own}]
    refuse_other_studies(rows, bases={"tiny": "aa", "other": "bb"}, settings={"code": own})
    with pytest.raises(ValueError, match="is of base model aa, current is bb"):
        refuse_other_studies(rows, bases={"tiny": "bb"}, settings={"code": own})
    longer = replace(MINIATURE, epochs=4).identity("code")
    with pytest.raises(ValueError, match=f"is of setting {own}, current is {longer}"):
        refuse_other_studies(rows, bases={"tiny": "aa"}, settings={"code": longer})
    with pytest.raises(ValueError, match="is of setting None"):  # a file of before there were any
        refuse_other_studies([place | {"base": "aa"}], bases={"tiny": "aa"}, settings={"code": own})
    # a part of a study is no other study
    assert MINIATURE.narrowed(domains=["code"], tries=1).identity("code") == own


def test_a_table_shows_answers_where_all_runs_of_an_arm_have_them():
    asked = {"answers": {"words": {"right": 0.5, "standard_error": 0.04}}}
    scored = {"completed": {}, "general_loss": 1.0, "canaries": {"exact": 0.0, "exposure_bits": 1}}
    rows = [row("plain", 1, [9.0, 3.0]), row("replay", 1, [9.0, 3.0])]
    for found in rows:
        found |= {"final": found["final"] | scored, "best": dict(scored)}
    (place,) = places_of(rows)
    assert "right" not in knowledge_table(place)
    for when in ("final", "best"):
        rows[0][when] |= asked
    (place,) = places_of(rows)
    plain, replay = knowledge_table(place).splitlines()[2:4]
    assert plain.endswith("| 0.500 | 0.500 |") and replay.endswith("|  |  |")


# --- the whole command ---


def study(out: Path, *more: str) -> list[str]:
    command = [warm_python(), "-m", "benchmarks.study", "--setting", "miniature"]
    return [*command, "--out", str(out), "--arms", "none", "random_input", *more]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def numbers(out: Path) -> dict[str, dict]:
    """Rows by key, without what depends on the clock."""
    return {
        found["key"]: {k: v for k, v in found.items() if "seconds" not in k}
        for found in read_results(out / "results.jsonl")
    }


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_numbers_of_an_undisturbed_one(tmp_path):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    run(*study(calm, "--stage", "corpora", "base"))
    shutil.copytree(calm, killed)
    shutil.copytree(calm, tmp_path / "levers")
    run(*study(calm, "--jobs", "2", "--stage", "runs", "report"))

    victim = subprocess.Popen(
        study(killed, "--stage", "runs"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not saved_in_the_middle(killed):
        assert victim.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    rows_before = len(read_results(killed / "results.jsonl"))
    (begun,) = [path for path in (killed / "runs").iterdir() if (path / "checkpoints").exists()]
    time.sleep(0.5)  # the run dies with the study
    size = (begun / "metrics.jsonl").stat().st_size
    time.sleep(0.5)
    assert (begun / "metrics.jsonl").stat().st_size == size

    run(*study(killed, "--stage", "runs"))
    assert 1 <= rows_before < len(read_results(killed / "results.jsonl"))
    rows = numbers(calm)
    assert numbers(killed) == rows
    assert tables(killed) == tables(calm)
    report = (calm / "report" / "report.md").read_text()
    assert len(rows) == count_jobs(
        MINIATURE, arms=[ARM_OF[name] for name in ("none", "random_input")]
    )
    final = [found["final"]["domain_loss"] for found in rows.values() if found["arm"] == "none"]
    assert f"{sum(final) / len(final):.3f} |" in report
    for found in rows.values():
        if "curve" in found:  # the trainer's own evaluation and plain transformers agree
            assert found["final"]["domain_loss"] == pytest.approx(
                found["curve"]["loss"][-1], abs=2e-4
            )
    assert sorted(path.name for path in (calm / "report").glob("*.png")) == [
        "evidence_bands.png",
        "evidence_curves.png",
        "evidence_differences.png",
        "evidence_knowledge.png",
        "evidence_spread.png",
    ]

    arms = ["plain", "ema_weights", *(["lora"] if WHOLE else [])]
    levers = ["--setting", "miniature_levers", "--arms", *arms]
    run(*study(tmp_path / "levers", "--stage", "corpora", "runs", "report", *levers))
    found = numbers(tmp_path / "levers")
    (base,) = (one for one in found.values() if one["arm"] == "base")
    for arm in arms[1:]:
        (tuned,) = (one for one in found.values() if one["arm"] == arm and one["seed"] == 1)
        # what is scored are the averaged weights, and the base with its adapter merged
        assert tuned["best"]["domain_loss"] == pytest.approx(
            min(tuned["curve"]["loss"][1:]), abs=2e-4
        )
        ends = tuned["best"]["general_loss"], base["final"]["general_loss"]
        # no law: an adapter's two ends are so near that what lies between may be a little above
        above = {"ema_weights": 0.0, "lora": 0.05}[arm]
        assert min(ends) - 0.05 < tuned["between"]["0.5"]["general_loss"] < max(ends) + above
        answers = tuned["best"]["answers"]["lines"]
        assert answers["right"] in {n / 8 for n in range(9)} and answers["standard_error"] >= 0
    assert "answers" in base["final"]
    report = (tmp_path / "levers" / "report" / "report.md").read_text()
    assert "EMA of weights" in report and "| lines right, final | lines right, best |" in report


def tables(out: Path) -> list[str]:
    places = places_of(read_results(out / "results.jsonl"))
    return [table(place) for place in places for table in (losses_table, knowledge_table)]


def saved_in_the_middle(out: Path) -> bool:
    """A run has saved, and a result is there before it."""
    saved = [*out.glob("runs/*/checkpoints/step-*")]
    return bool(saved) and bool(read_results(out / "results.jsonl"))


def test_a_mistake_is_one_line(tmp_path):
    done = subprocess.run(study(tmp_path, "--sizes", "7B"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --sizes 7B: there are tiny\n")
    done = subprocess.run(study(tmp_path, "--domains", "law"), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: --domains law: there are code\n")
