"""A report says of each held-out set what was learnt and what was forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.report_runs import write_run, write_seeds
from training.reports.compare import are_measured_alike
from training.reports.curves import load_runs
from training.reports.groups import RunGroup, group_runs
from training.reports.plots import panels_of
from training.reports.report import page_of, write_report
from training.reports.set_table import set_table

DOMAIN = [3.0, 2.0, 2.5]
GENERAL = [4.0, 4.25, 5.0]


def groups_of(*runs: Path) -> list[RunGroup]:
    return group_runs(load_runs(runs))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", heldout=DOMAIN, sets={"domain": DOMAIN, "general": GENERAL})


def test_each_set_has_its_losses_and_their_change_at_the_best_and_at_the_end(run):
    assert set_table(groups_of(run)).rows == [
        ["run", "domain", "3.0000", "2.0000", "-1.0000", "2.5000", "-0.5000"],
        ["run", "general", "4.0000", "4.2500", "+0.2500", "5.0000", "+1.0000"],
    ]


def test_a_run_with_one_set_has_a_row_too(tmp_path):
    """Also one of an earlier version, whose rows do not say what was forgotten."""
    (row,) = set_table(groups_of(write_run(tmp_path / "run", heldout=DOMAIN))).rows
    assert row == ["run", "held-out", "3.0000", "2.0000", "-1.0000", "2.5000", "-0.5000"]


def test_seeds_are_a_mean(tmp_path):
    ((_, _, *numbers),) = set_table(
        groups_of(*write_seeds(tmp_path, "none", {1: 2.5, 2: 3.5}))
    ).rows
    assert numbers == ["3.0000", "2.0000", "-1.0000", "3.0000", "+0.0000"]


def test_several_sets_have_a_diagram_and_the_page_a_table(run, tmp_path):
    write_report([run], tmp_path / "report")
    assert (tmp_path / "report" / "forgetting.png").read_bytes().startswith(b"\x89PNG")
    text = page_of(groups_of(run), [])
    assert "Learnt and forgotten" in text
    assert ">general</td>" in text
    curve = groups_of(run)[0].set_curve("general").since_start()
    assert (curve.mean, curve.best) == ([0.0, 0.25, 1.0], (0.0, 0.0))


def test_groups_are_compared_set_by_set(tmp_path):
    runs = [
        write_run(
            tmp_path / name,
            heldout=DOMAIN,
            sets={"domain": DOMAIN, "general": GENERAL},
            recipe={"seed": 1, "regulariser": name},
        )
        for name in ("none", "entrodrop")
    ]
    names = [panel.name for panel in panels_of(groups_of(*runs))]
    assert {"set_domain", "set_general"} <= set(names)
    write_report(runs, tmp_path / "report")
    assert (tmp_path / "report" / "set_general.png").exists()


@pytest.mark.parametrize(
    "evaluation",
    [
        {"sets": {"domain": {"max_samples": 5}}},
        {"best_by": "general"},
        {"weights": {"domain": 1.0}},
    ],
)
def test_runs_whose_best_is_of_other_tokens_are_not_compared(tmp_path, evaluation):
    runs = [
        write_run(tmp_path / f"run{i}", heldout=DOMAIN, recipe={"seed": 1, "evaluation": one})
        for i, one in enumerate(({}, evaluation))
    ]
    first, second = groups_of(*runs)
    assert are_measured_alike(first, first)
    assert not are_measured_alike(first, second)


def are_alike(tmp_path: Path, *told: tuple[dict[str, Any], dict[str, str]]) -> bool:
    """Of two runs: what is added to the recipe and to the facts of each."""
    runs = []
    for number, (recipe, facts) in enumerate(told):
        run = write_run(tmp_path / f"run{number}", heldout=DOMAIN, recipe={"seed": number} | recipe)
        path = run / "metrics.jsonl"
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | facts), *rest]) + "\n")
        runs.append(run)
    first_group, second_group = groups_of(*runs)
    return are_measured_alike(first_group, second_group)


def test_replay_is_compared_with_no_replay(tmp_path):
    """It is trained on; the held-out samples are the same."""
    sets = {"pack": "a", "pack_of_sets.general": "b"}
    replay = {"replay": {"corpus": "general", "share": 0.25}}
    with_replay = sets | {"pack_of_replay": "b", "pack_of_replay_scores": "c"}
    assert are_alike(tmp_path, ({}, sets), (replay, with_replay))


def test_a_set_of_another_pack_is_not_compared(tmp_path):
    sets = {"pack": "a", "pack_of_sets.general": "b"}
    assert not are_alike(tmp_path, ({}, sets), ({}, sets | {"pack_of_sets.general": "c"}))


def test_the_first_set_decides_as_if_it_were_named(tmp_path):
    named = {"evaluation": {"sets": {"domain": {"split": "val"}}, "best_by": "domain"}}
    unnamed = {"evaluation": {"sets": {"domain": {"split": "val"}}, "best_by": None}}
    assert are_alike(tmp_path, (named, {}), (unnamed, {}))


def test_another_order_of_sets_that_decides_otherwise_is_not_compared(tmp_path):
    sets = [("domain", {"split": "val"}), ("general", {"split": "train"})]
    turned = [{"evaluation": {"sets": dict(order)}} for order in (sets, sets[::-1])]
    runs = [
        RunGroup(name, group.runs, group.settings)
        for name, recipe in zip(("first", "second"), turned, strict=True)
        for group in groups_of(write_run(tmp_path / name, heldout=DOMAIN, recipe=recipe))
    ]
    assert not are_measured_alike(*runs)
