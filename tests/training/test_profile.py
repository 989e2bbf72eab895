"""A trace of some steps, on rank 0, that ends with them."""

from __future__ import annotations

import gzip
import json

from training.config.profile import Profile
from training.run.profile import StepProfiler


def test_a_run_writes_one_trace_with_the_operators_of_its_steps(saved_run):
    (path,) = (saved_run / "profile").iterdir()
    assert path.name == "steps-3-4.json.gz"
    names = [
        event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    ]
    assert names.count("_OnePassBackward") == 2  # a micro-step in each
    assert "aten::mm" in names


def test_a_start_behind_the_first_step_and_other_ranks_write_none(tmp_path):
    for settings, enabled in (
        (Profile(first_step=3, num_steps=2), True),
        (None, True),
        (Profile(), False),
    ):
        profiler = StepProfiler(settings, tmp_path, enabled=enabled)
        for step in range(4, 20):
            profiler.begin(step)
            profiler.end(step)
    assert not list(tmp_path.iterdir())


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "profile").touch()
    profiler = StepProfiler(Profile(first_step=1, num_steps=1), tmp_path, enabled=True)
    profiler.begin(1)
    profiler.end(1)
    assert "steps-1-1.json.gz: File exists" in capsys.readouterr().out
