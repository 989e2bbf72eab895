from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from training.report import write_report
from training.report_plots import smoothed
from training.run_curves import load_runs


def write_run(run_dir: Path, *, heldout: list[float], bands: int = 2) -> Path:
    """A run of two steps an evaluation, one evaluation an epoch, the first at step 0."""
    rows: list[dict[str, Any]] = [{"kind": "run", "step": 0, "world_size": 2, "corpus": "<b>"}]
    for epoch, loss in enumerate(heldout):
        for step in (2 * epoch - 1, 2 * epoch) if epoch else ():
            rows.append(
                {
                    "kind": "step",
                    "step": step,
                    "tokens": 100 * step,
                    "epoch": step / 2,
                    "loss": 4.0 / step,
                    "grad_norm": 1.0,
                    "drop_rate_asked": 0.1,
                    "drop_rate_realised": 0.2,
                    "entropy_threshold_nats": 1.0,
                    "mean_entropy_nats": 2.0,
                    "tokens_per_second": 1000.0,
                    "seconds": 0.5,
                }
            )
        found = [
            {"band": b, "from_nats": b - 1.0, "to_nats": float(b), "loss": loss, "num_targets": 9}
            for b in range(1, bands + 1)
        ]
        rows.append(
            {"kind": "evaluation", "step": 2 * epoch, "epoch": float(epoch), "loss": loss}
            | ({"bands": found} if bands else {})
        )
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


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
    assert (tmp_path / "report" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_report_names_the_best_point_and_the_rise_since(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6, 2.0])
    text = write_report([run], tmp_path / "report").read_text(encoding="utf-8")
    assert "lowest at epoch 2.00: 1.6000 nats" in text
    assert "risen by 25.0%" in text


def test_a_run_that_still_improves_is_not_called_overfit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6])
    text = write_report([run], tmp_path / "report").read_text(encoding="utf-8")
    assert "overfits" not in text


def test_facts_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    text = write_report([run], tmp_path / "report").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in text
    assert "<td><b></td>" not in text


def test_runs_of_the_same_folder_name_stay_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", heldout=[3.0, 2.0]) for parent in ("a", "b")]
    assert [run.name for run in load_runs(runs)] == ["a/run", "b/run"]
    text = write_report(runs, tmp_path / "report").read_text(encoding="utf-8")
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


def test_folders_that_hold_no_run_are_refused_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*is this the folder of a run"):
        write_report([tmp_path / "nowhere"], tmp_path / "report")
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no training step yet"):
        write_report([empty], tmp_path / "report")
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    with pytest.raises(ValueError, match="named twice"):
        write_report([run, run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_smoothing_is_the_mean_of_the_finite_values_in_the_window() -> None:
    values = [float(i) for i in range(400)]
    values[200] = math.nan
    result = smoothed(values)
    window = [v for v in values[196:205] if v == v]  # 400 // 100 to either side
    assert result[200] == pytest.approx(sum(window) / len(window))
    assert result[0] == pytest.approx(2.0)
    assert all(map(math.isnan, smoothed([math.nan] * 300)))
