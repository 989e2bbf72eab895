"""Trackers, by their real clients: one run over resumes, and none that ends or delays a run."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import saving_recipe
from training.checkpoints.manifest import read_manifest
from training.config.recipe import Recipe

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv" / "trackers"
"""Where launch/setup.sh --dev puts them."""

needs_clients = pytest.mark.skipif(
    not CLIENTS.is_dir(), reason="needs the trackers' clients: launch/setup.sh --dev"
)

SERVER = ROOT / ".venv" / "remote"
"""Flask, with which MLflow's server answers."""

# Two starts of a run by W&B and MLflow, whose servers are gone; one by an MLflow that is silent;
# two by one whose server answers: MLflow's own, on this machine.
_WRITES = """
import contextlib, os, socket, sys, threading, time
from pathlib import Path
from training.metrics import trackers
from training.metrics.tracker_clients import TrackedRun
from training.metrics.trackers import Trackers
from training.metrics.writer import MetricsWriter

folder = Path(sys.argv[1])
trackers._SECONDS_TO_CLOSE = 150  # for libraries that are loaded on a busy machine

def write(name, names, *, start, key="0123456789abcdef", fails=False):
    run = TrackedRun(key, name, folder / name, {"recipe": {"seed": 1234}})
    opened = {"total_steps": 4, "start_step": start, "enabled": True}
    with MetricsWriter(run.run_dir, **opened, trackers=Trackers(names, run)) as metrics:
        for step in range(start + 1, start + 3):
            metrics.log_step({"step": step, "loss": 1.0 / step, "epoch": 0.1 * step})
        metrics.log_bad_step({"step": step, "text": "what a step <did>"})
        if fails:
            raise ValueError("a loss is not finite")

os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
with contextlib.suppress(ValueError):
    write("failed", ("wandb", "mlflow"), start=0, key="f" * 16, fails=True)
write("run", ("wandb", "mlflow"), start=0)
write("run", ("wandb", "mlflow"), start=2)
with socket.create_server(("127.0.0.1", 0)) as silent:
    os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
    trackers._SECONDS_TO_CLOSE = 0.5
    write("other", ("mlflow",), start=0)
os.environ |= {
    "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/server.db",
    "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
    "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "server-texts"),
}
from mlflow.server import app
from werkzeug.serving import make_server
server = make_server("127.0.0.1", 0, app, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
served = os.environ["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{server.port}"
trackers._SECONDS_TO_CLOSE = 150
write("served", ("mlflow",), start=0)
write("served", ("mlflow",), start=2)
from mlflow import MlflowClient
for store in (f"sqlite:///{folder}/mlflow.db", served):
    client = MlflowClient(store)
    for run in client.search_runs([client.get_experiment_by_name("entrodrop").experiment_id]):
        history = client.get_metric_history(run.info.run_id, "train/loss")
        print("found", run.info.run_name, run.info.status, run.data.params["recipe.seed"],
              {each.step: each.value for each in history})
sys.stdout.flush()
os._exit(0)  # as a rank does
"""


@needs_clients
def test_a_resume_goes_on_in_the_same_run_and_a_silent_server_delays_none(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITES, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{CLIENTS}:{SERVER}",
            "WANDB_BASE_URL": "http://127.0.0.1:9",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("found")]
    losses = {step: 1.0 / step for step in (1, 2, 3, 4)}
    failed = {step: losses[step] for step in (1, 2)}
    assert sorted(found) == [
        f"found failed FAILED 1234 {failed}",
        f"found run FINISHED 1234 {losses}",
        f"found served FINISHED 1234 {losses}",
    ]
    for folder, steps in (("mlflow-texts", (2, 2, 4)), ("server-texts", (2, 4))):
        texts = (tmp_path / folder).rglob("train/bad_step/*.md")
        assert sorted(path.name for path in texts) == [f"step-0000000{step}.md" for step in steps]
    assert done.stderr.count("mlflow: no connection to http://127.0.0.1:9: offline, into") == 3
    assert done.stderr.count("wandb: no connection to http://127.0.0.1:9: offline, into") == 3
    assert done.stderr.count("trackers: mlflow: does not answer within") == 1
    # the second of one second has "-1" behind its name
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*-0123456789abcdef*/*.wandb"))
    assert [_wandb_curve(file, "train/loss") for file in files] == [
        {step: losses[step] for step in steps} for steps in ((1, 2), (3, 4))
    ]
    (ended,) = (tmp_path / "failed" / "wandb").glob("offline-run-*/*.wandb")
    for file, code in ((ended, 1), (files[0], 0)):
        assert [each.exit.exit_code for each in _wandb_records(file) if each.HasField("exit")] == [
            code
        ]


def _train_twice(recipe: Recipe, resumed: Recipe, trackio_dir: Path) -> str:
    """What two starts wrote to stderr."""
    os.environ |= {"WANDB_MODE": "no such mode", "TRACKIO_DIR": str(trackio_dir)}
    sys.path.append(str(CLIENTS))
    from training.metrics import trackers
    from training.run.run import train

    trackers._SECONDS_TO_CLOSE = 150
    with contextlib.redirect_stderr(io.StringIO()) as written:
        train(recipe)
        train(resumed)
    return written.getvalue()


@needs_clients
def test_a_key_in_checkpoints_joins_starts_and_a_tracker_that_fails_ends_none(
    small_corpus: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    keys = {"trackers": ("wandb", "trackio"), "train__sequence_parallel_size": 1}
    recipe = saving_recipe(small_corpus, run_dir, train__stop_after_steps=3, **keys)
    resumed = saving_recipe(small_corpus, run_dir, train__stop_after_steps=4, **keys)
    (written,) = run_ranks(_train_twice, recipe, resumed, tmp_path / "trackio", world_size=1)
    assert written.count("trackers: wandb: ") == 2  # once for each start
    assert not (run_dir / "tensorboard").exists()
    saved = [read_manifest(path) for path in sorted((run_dir / "checkpoints").glob("step-*"))]
    assert [manifest["step"] for manifest in saved] == [3, 4]
    (key,) = {manifest["run_key"] for manifest in saved}
    with sqlite3.connect(tmp_path / "trackio" / "entrodrop.db") as database:
        tracked = database.execute("select run_name, step, metrics from metrics").fetchall()
    assert {name for name, _, _ in tracked} == {f"run-{key[:8]}"}
    curves = [(step, json.loads(content)) for _, step, content in tracked]
    curve = [(step, found["train/loss"]) for step, found in curves if "train/loss" in found]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert curve == [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]


def _wandb_curve(path: Path, tag: str) -> dict[int, float]:
    """By step."""
    curve = {}
    for record in _wandb_records(path):
        row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if tag in row:
            curve[int(row["step"])] = float(row[tag])
    return curve


def _wandb_records(path: Path) -> list[Any]:
    """What is in an offline file: records in blocks of 32 KiB, as LevelDB's log."""
    sys.path.append(str(CLIENTS))
    try:
        from wandb.proto.wandb_internal_pb2 import Record
    finally:
        sys.path.remove(str(CLIENTS))
    content, at, record = path.read_bytes(), 7, b""
    records = []
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            records.append(Record.FromString(record))
            record = b""
    return records


def test_a_tracker_that_is_not_installed_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.metrics.trackers import refuse_missing_clients

    (tmp_path / "mlflow").mkdir()  # a folder of that name is no client
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"mlflow is not installed: .* pip install mlflow"):
        refuse_missing_clients(("tensorboard", "mlflow"))
    refuse_missing_clients(("tensorboard",))
