from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.training.report_runs import write_run, write_seeds
from training.reports.compare import compare
from training.reports.curves import load_runs
from training.reports.groups import group_runs
from training.reports.plots import panels_of, smoothed
from training.reports.report import comparison_text, page_of, write_report


def page_text(*runs: Path) -> str:
    """The page without its figures."""
    return page_of(group_runs(load_runs(runs)), [])


class LinkCollector(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    page = write_report([run], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    links = LinkCollector()
    links.feed(text)
    assert len(links.fetched) == 13  # an icon, and six panels for a light and a dark page
    assert all(link.startswith("data:") for link in links.fetched)
    assert not re.search(r"url\(|@import|<script", text)
    for name in ("report", "report_dark", "loss", "bands", "dropped", "speed"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_report_names_the_best_point_and_the_rise_since(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6, 2.0]))
    assert "lowest at epoch 2.00: 1.6000 nats" in text
    assert "risen by 25.0%" in text


def test_a_run_that_still_improves_is_not_called_overfit(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6]))
    assert "overfits" not in text
    assert "Overfitting" not in text
    text = page_text(write_run(tmp_path / "noise", heldout=[3.0, 2.0, 2.005]))
    assert "stayed within 0.25%" in text
    assert "overfits" not in text


def test_the_best_of_averaged_weights_is_told_beside_that_of_the_weights(tmp_path: Path) -> None:
    plain = page_text(write_run(tmp_path / "plain", heldout=[3.0, 2.0, 2.5]))
    assert "averaged weights" not in plain
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 2.5], averaged=[3.0, 2.2, 1.9])
    text = page_text(run)
    assert "lowest at epoch 1.00: 2.0000 nats" in text
    assert "of the averaged weights was lowest at epoch 2.00: 1.9000 nats; export them" in text


def test_averaged_weights_that_are_no_better_are_not_recommended(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 2.5], averaged=[3.0, 2.2, 2.1])
    text = page_text(run)
    assert "of the averaged weights was lowest at epoch 2.00: 2.1000 nats, not below that." in text
    assert "--weights ema" not in text


def test_the_warning_of_overfitting_is_on_the_page(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6, 1.8, 2.0]))
    assert "run: warned at epoch 4.00. Held-out loss rises (all, band 1, band 2)" in text


def test_a_rise_since_before_training_is_not_called_overfitting(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 3.2, 3.4, 3.6]))
    assert "Held-out loss (all, band 1, band 2) rises from what it was before training" in text
    assert "Forgetting or too high a learning rate" in text
    assert "risen by 20.0%: forgetting, or too high a rate." in text
    assert "verfit" not in text


def test_facts_are_escaped(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0]))
    assert "&lt;b&gt;" in text
    assert "<td><b></td>" not in text


def test_runs_of_the_same_folder_name_stay_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", heldout=[3.0, 2.0]) for parent in ("a", "b")]
    assert [run.name for run in load_runs(runs)] == ["a/run", "b/run"]
    text = page_text(*runs)
    assert "a/run" in text
    assert "b/run" in text


def test_losses_that_are_null_leave_a_gap_and_no_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    path = run / "metrics.jsonl"
    text = path.read_text()
    for known in ('"loss": 1.5', '"grad_norm": 1.0', '"entropy_threshold_nats": 1.0'):
        assert known in text
        text = text.replace(known, known.rpartition(" ")[0] + " null")
    path.write_text(text)
    assert "no finite number" in write_report([run], tmp_path / "report").read_text("utf-8")


def test_a_run_without_bands_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0], bands=0)
    assert write_report([run], tmp_path / "report").exists()


def test_a_run_without_evaluations_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    path = run / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if "evaluation" not in line]
    path.write_text("\n".join(lines) + "\n")
    text = write_report([run], tmp_path / "report").read_text("utf-8")
    assert "No held-out evaluation" in text
    assert not (tmp_path / "report" / "bands.png").exists()


def test_folders_that_hold_no_run_are_refused_by_name_all_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"nowhere.*is this the folder of a run") as caught:
        write_report([tmp_path / "nowhere", empty], tmp_path / "report")
    assert "no training step yet" in str(caught.value)
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    with pytest.raises(ValueError, match="named twice"):
        write_report([run, run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_of_runs_stands_for_those_that_have_begun(tmp_path: Path) -> None:
    write_seeds(tmp_path / "sweep", "none", {1: 2.2, 2: 2.3})
    unbegun = tmp_path / "sweep" / "none-seed3"
    unbegun.mkdir()
    (unbegun / "metrics.jsonl").write_text('{"kind": "run", "step": 0}\n')
    assert [run.name for run in load_runs([tmp_path / "sweep"])] == ["none-seed1", "none-seed2"]


def test_a_torn_last_line_and_an_unfinished_run_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    text = page_text(run)
    assert "run: not finished: step 3 of 4; still running, or killed." in text
    assert "truncated" in text


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    state = {"state": "failed", "run_id": "x", "step": 0, "total_steps": 9, "num_starts": 1}
    why = {"reason": "rank 1: out of memory", "updated_at": "now"}
    (run / "run_state.json").write_text(json.dumps(state | why))
    assert "step 2 of 9; failed: rank 1: out of memory." in page_text(run)


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "none", {1: 2.2, 2: 2.4})
    runs += write_seeds(tmp_path, "entrodrop", {1: 2.1})
    groups = group_runs(load_runs(runs))
    assert [(group.name, group.seeds) for group in groups] == [
        ("none", (1, 2)),
        ("entrodrop-seed1", (1,)),
    ]
    curve = groups[0].heldout_curve()
    assert curve.mean == pytest.approx([3.0, 2.0, 2.1, 2.3])
    assert (curve.low[-1], curve.high[-1]) == (2.2, 2.4)
    assert curve.best == (1.0, 2.0)


def test_a_group_is_compared_seed_by_seed(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.5, 2: 2.8, 3: 3.2})
    runs += write_seeds(tmp_path, "none", {1: 2.6, 2: 2.9, 3: 3.3})
    # far apart between seeds, always 0.1 apart between groups
    text = page_text(*runs)
    assert "entrodrop against none. Final held-out loss 0.1000 nats lower" in text
    assert "-0.1000 to -0.1000; 3 seeds, paired): better." in text
    assert "Best held-out loss the same (95%" in text
    assert text.count("no difference seen (3 seeds, paired)") == 1


def test_a_seed_that_ran_twice_counts_once(tmp_path: Path) -> None:
    none = [*write_seeds(tmp_path, "none", {1: 2.5, 2: 2.9})]
    again = write_seeds(tmp_path / "again", "none", {1: 2.7})
    other = write_seeds(tmp_path, "entrodrop", {1: 2.0})
    said = comparison_text([*none, *again, *other])
    assert "2 (3 runs)" in said
    # the mean of 2.6 and 2.9
    assert "2.7500 ±" in said


def test_runs_on_other_samples_are_not_called_better(tmp_path: Path) -> None:
    """A corpus built again at the same path is another one, and no second seed of the first."""
    none = write_seeds(tmp_path, "none", {1: 2.5, 2: 2.9, 3: 2.7})
    other = write_seeds(tmp_path, "entrodrop", {1: 2.0, 2: 2.4, 3: 2.2})
    for run in (*none, *other):
        metrics = run / "metrics.jsonl"
        pack = "old" if run in none else "new"
        metrics.write_text(
            metrics.read_text().replace('"corpus"', f'"pack": "{pack}", "corpus"', 1)
        )
    said = comparison_text([*none, *other])
    assert "not comparable, measured on other held-out samples" in said
    assert "better" not in said
    old = none[0] / "metrics.jsonl"
    old.write_text(old.read_text().replace('"old"', '"older"'))
    assert len(group_runs(load_runs([*none, *other]))) == 3


def test_one_seed_cannot_tell_and_the_page_says_so(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.1}) + write_seeds(tmp_path, "none", {1: 2.6})
    text = page_text(*runs)
    assert "0.5000 nats lower: cannot tell with 1 seed." in text
    assert "better" not in text.replace("Which is better", "").replace("better than", "").replace(
        "better or worse", ""
    )


def test_no_group_is_called_better_while_its_runs_are_unfinished(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.5, 2: 2.6})
    runs += write_seeds(tmp_path, "none", {1: 2.9, 2: 3.0})
    (runs[0] / "metrics.jsonl").write_text(
        "".join((runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)[:-3])
    )
    text = page_text(*runs)
    assert text.count("not final, 1 run unfinished") == 4  # best and final, twice told
    assert 'class="good"' not in text


def test_intervals_are_those_of_student(tmp_path: Path) -> None:
    groups = group_runs(
        load_runs(
            write_seeds(tmp_path, "a", {1: 1.0, 2: 2.0, 3: 3.0})
            + write_seeds(tmp_path, "b", {4: 2.0, 5: 3.0, 6: 4.0})
        )
    )
    difference = compare(groups[0], groups[1], lambda run: run.final_loss)
    assert difference is not None
    # equal variances of 1 and sizes of 3: Welch has 4 degrees of freedom
    assert difference.half_width == pytest.approx(2.776 * (2 / 3) ** 0.5)
    assert difference.basis == "3 and 3 seeds, not paired"


def test_smoothing_is_the_mean_of_the_finite_values_in_the_window() -> None:
    values = [float(i) for i in range(400)]
    values[200] = math.nan
    result = smoothed(values)
    window = [v for v in values[196:205] if v == v]  # 400 // 100 to either side
    assert result[200] == pytest.approx(sum(window) / len(window))
    assert result[0] == pytest.approx(2.0)
    assert all(map(math.isnan, smoothed([math.nan] * 300)))


def test_runs_from_before_a_key_was_renamed_are_in_the_group_of_those_after(tmp_path: Path) -> None:
    runs = [
        write_run(
            tmp_path / f"run-{seed}", heldout=[3.0, 2.0], recipe={"seed": seed, **regularisers}
        )
        for seed, regularisers in enumerate(
            (
                {"beside": "neftune"},
                {"regulariser": "entrodrop", "extra_regulariser": "neftune"},
                {"regularisers": ["neftune", "entrodrop"]},
            )
        )
    ]
    (group,) = group_runs(load_runs(runs))
    assert [run.seed for run in group.runs] == [0, 1, 2]
    assert group.settings["regulariser"] == "entrodrop+neftune"


def test_the_bands_say_when_they_mean_little(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, heldout=[3.0, 2.0]) for name in ("one", "two")]
    for panels in (
        panels_of(group_runs(load_runs(runs[:1]))),
        panels_of(group_runs(load_runs(runs))),
    ):
        captions = [panel.caption for panel in panels if "band" in panel.name]
        assert "A model that begins with random weights" in captions[0]
