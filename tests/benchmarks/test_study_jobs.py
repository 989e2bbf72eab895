"""What the study runs, in which order, and which results it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.study.arm import Arm
from benchmarks.study.arms import ARM_OF, ARMS
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
from tests.benchmarks.study_rows import row
from training.regularisers.table import model_regularisation


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
