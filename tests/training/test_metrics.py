from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tokenizers import Tokenizer

from training.metrics.file import read_metrics
from training.metrics.tags import CHARTS
from training.metrics.tokens import ENTROPY_EDGES_NATS, NUM_BINS, TokenPicture, TokenTexts
from training.metrics.writer import MetricsWriter


def step_row(step: int, **changes: Any) -> dict[str, Any]:
    row = {
        "step": step,
        "tokens": 100 * step,
        "epoch": step / 4,
        "loss": 5.0 / step,
        "objective": 5.0 / step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "gamma": 0.2,
        "drop_rate_asked": 0.1,
        "drop_rate_realised": 0.11,
        "entropy_threshold_nats": 1.5,
        "mean_entropy_nats": 2.0,
        "tokens_per_second": 1000.0,
        "seconds": 0.1,
        "model_tflops": 40.0,
        "hardware_tflops": 60.0,
        "mfu": 0.4,
        "hfu": 0.6,
    }
    return row | changes


def evaluation_row(step: int) -> dict[str, Any]:
    bands = [
        {"band": b, "from_nats": b - 1.0, "to_nats": float(b), "loss": float(b), "num_targets": 5}
        for b in (1, 2)
    ]
    return {"step": step, "tokens": 0, "epoch": 0.0, "loss": 1.5, "entropy_nats": 1.0} | {
        "num_targets": 10,
        "bands": bands,
        "seconds": 0.2,
    }


def write_steps(run_dir: Path, *, start: int, stop: int, total: int = 10) -> None:
    with MetricsWriter(run_dir, total_steps=total, start_step=start, enabled=True) as metrics:
        if start == 0:
            metrics.log_run({"world_size": 2})
        for step in range(start + 1, stop + 1):
            metrics.log_step(step_row(step))


def scalars(run_dir: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_every_line_is_json_and_complete_while_the_run_goes_on(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=10, start_step=0, enabled=True) as metrics:
        metrics.log_run({"world_size": 2})
        metrics.log_step(step_row(1))
        metrics.log_evaluation(evaluation_row(1))
        rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["run", "step", "evaluation"]
    assert rows[0] == {"kind": "run", "step": 0, "world_size": 2}
    assert rows[1] == {"kind": "step"} | step_row(1)
    assert rows[2]["bands"][1]["loss"] == 2.0


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    row = step_row(1, loss=float("nan"), grad_norm=float("inf"), entropy_threshold_nats=None)
    with MetricsWriter(tmp_path, total_steps=10, start_step=0, enabled=True) as metrics:
        metrics.log_step(row)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    written = json.loads(text)
    assert written["loss"] is None
    assert written["grad_norm"] is None
    assert written["lr"] == 1e-3


def test_a_step_without_a_number_shows_none(tmp_path: Path, capsys: Any) -> None:
    """Neither on the screen nor in TensorBoard."""
    row = step_row(1, loss=None, objective=None, drop_rate_realised=None, mean_entropy_nats=None)
    with MetricsWriter(tmp_path, total_steps=1, start_step=0, enabled=True) as metrics:
        metrics.log_step(row)
    (shown,) = capsys.readouterr().err.splitlines()
    assert shown == "training: step 1/1 (100%)  loss ?  ETA 00:00"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert "train/loss" not in tags
    assert "entropy/mean_nats" not in tags
    assert "train/learning_rate" in tags


def test_rows_that_are_gone_before_a_resume_are_told(tmp_path: Path, capsys: Any) -> None:
    write_steps(tmp_path, start=0, stop=3)
    (tmp_path / "metrics.jsonl").unlink()
    capsys.readouterr()
    write_steps(tmp_path, start=3, stop=4)
    told = f"WARNING: {tmp_path / 'metrics.jsonl'} is gone, and the rows up to step 3"
    assert told in capsys.readouterr().err.splitlines()


def test_resume_cuts_the_rows_of_steps_that_are_trained_again(tmp_path: Path) -> None:
    write_steps(tmp_path, start=0, stop=7)
    write_steps(tmp_path, start=4, stop=10)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(11))
    assert list(scalars(tmp_path, "train/loss")) == list(range(1, 11))


def test_new_run_keeps_nothing_of_a_start_that_failed(tmp_path: Path) -> None:
    write_steps(tmp_path, start=0, stop=3)
    write_steps(tmp_path, start=0, stop=2)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert list(scalars(tmp_path, "train/loss")) == [1, 2]


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    write_steps(tmp_path, start=0, stop=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "step", "step": 5, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 4
    write_steps(tmp_path, start=4, stop=5)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(6))


@pytest.mark.parametrize("last", ["", '{"kind": "step", "step": 1}\n'])
def test_a_broken_line_is_refused_with_its_number(tmp_path: Path, last: str) -> None:
    """Also the last, when it is whole: no kill has cut it short."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "run", "step": 0}\n{"kind"\n' + last)
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


def test_tensorboard_shows_the_series_under_their_tags(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=10, start_step=0, enabled=True) as metrics:
        metrics.log_step(step_row(1))
        metrics.log_evaluation(evaluation_row(1))
    for tag, value in {
        "train/loss": 5.0,
        "train/gradient_norm": 1.0,
        "entropy/threshold_nats": 1.5,
        "dropout/rate_asked": 0.1,
        "dropout/rate_realised": 0.11,
        "speed/tokens_per_second": 1000.0,
        "speed/mfu": 0.4,
        "speed/hfu": 0.6,
        "heldout/loss": 1.5,
        "heldout/band_1": 1.0,
        "heldout/band_2": 2.0,
    }.items():
        assert scalars(tmp_path, tag) == {1: pytest.approx(value)}


def test_custom_scalars_name_series_that_are_there(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, total_steps=10, start_step=0, enabled=True) as metrics:
        metrics.log_step(step_row(1))
        sets = {"general": {"loss": 2.0, "forgetting_nats": 0.5}}
        metrics.log_evaluation(evaluation_row(1) | {"sets": sets})
        metrics.log_ranks(
            {"step": 1, "late_seconds": 0.1, "late_share": 0.0, "slowest_rank": 1}
            | {"peak_memory_gib": 1.0, "forward_allocated_gib": 1.0}
        )
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    layout = layout_pb2.Layout()
    (event,) = events.Tensors("custom_scalars__config__")
    layout.ParseFromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    assert [category.title for category in layout.category] == list(CHARTS)
    written = events.Tags()["scalars"]
    for chart in charts:
        for tag in chart.multiline.tag:
            assert any(re.fullmatch(tag, name) for name in written), tag


def token_picture(ids: list[int], dropped: set[int]) -> TokenPicture:
    """Two targets that are sure, one of them dropped, and one that is not."""
    sure, unsure = (
        next(i for i, edge in enumerate(ENTROPY_EDGES_NATS) if edge >= nats) for nats in (0.01, 3.0)
    )
    counts = [2 * (i == sure) + (i == unsure) for i in range(NUM_BINS)]
    return TokenPicture(
        entropy_counts=counts,
        dropped_counts=[int(i == sure) for i in range(NUM_BINS)],
        sample=7,
        ids=ids,
        is_dropped=[place in dropped for place in range(len(ids))],
    )


def test_tensorboard_shows_entropies_and_which_tokens_dropped(
    small_corpus: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(small_corpus / "tokenizer" / "tokenizer.json"))
    text = "def f(x):\n    return *x* < 1\n\n# <b>not bold</b>"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    with MetricsWriter(tmp_path, total_steps=10, start_step=0, enabled=True) as metrics:
        picture = token_picture(ids, {0, 1, len(ids) - 1})
        metrics.log_tokens(picture, step=4, tokenizer=small_corpus / "tokenizer")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (found,) = events.Histograms("entropy/tokens_all_nats")
    assert found.step == 4
    assert found.histogram_value.num == 3
    assert sum(found.histogram_value.bucket) == 3
    assert found.histogram_value.max >= 3.0
    (found,) = events.Histograms("entropy/tokens_dropped_nats")
    assert found.histogram_value.num == 1
    assert found.histogram_value.max < 0.02

    (shown,) = events.Tensors("dropout/sample/text_summary")
    markdown = shown.tensor_proto.string_val[0].decode()
    assert markdown.startswith(f"Sample 7: 3 of its first {len(ids)} tokens dropped, in ⟦ ⟧.\n\n")
    code = "\n".join(line.removeprefix("    ") for line in markdown.split("\n")[2:]).rstrip("\n")
    assert code.replace("⟦", "").replace("⟧", "") == text
    assert code.startswith("⟦" + tokenizer.decode(ids[:2]) + "⟧")
    assert code.endswith("⟦" + tokenizer.decode(ids[-1:]) + "⟧")


def test_a_corpus_without_a_tokenizer_shows_ids(tmp_path: Path) -> None:
    texts = TokenTexts(tmp_path)
    assert texts.marked(token_picture([5, 6, 7], {1})).splitlines()[-1] == "    5⟦6⟧7"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run", total_steps=1, start_step=0, enabled=False) as metrics:
        metrics.log_run({})
        metrics.log_step(step_row(1))
        metrics.log_evaluation(evaluation_row(1))
    assert not (tmp_path / "run").exists()


def test_a_log_file_gets_whole_lines_with_eta_and_no_bar(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_steps(tmp_path, start=0, stop=10)
    lines = capfd.readouterr().err.splitlines()
    assert "\r" not in "".join(lines)
    assert lines[-1].startswith("training: step 10/10 (100%)  loss 0.500  dropped 11%  ETA 00:00")


@pytest.mark.parametrize("total", [2, 9], ids=["planned", "early"])
def test_the_last_line_has_the_loss_of_the_last_evaluation(
    total: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with MetricsWriter(tmp_path, total_steps=total, start_step=0, enabled=True) as metrics:
        for step in (1, 2):
            metrics.log_step(step_row(step))
            metrics.log_evaluation(evaluation_row(step) | {"loss": 3.0 / step})
    (line,) = capfd.readouterr().err.splitlines()
    assert f"step 2/{total} " in line
    assert "  loss 2.500  held-out 1.500  dropped 11%  " in line


def test_closing_twice_does_no_harm(tmp_path: Path) -> None:
    metrics = MetricsWriter(tmp_path, total_steps=1, start_step=0, enabled=True)
    metrics.close()
    metrics.close()
