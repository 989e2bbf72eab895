"""W&B, MLflow and Trackio as clients of a run: opened or found again, offline where need be.

Where they send to is said by their own variables: WANDB_PROJECT, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME, TRACKIO_PROJECT and so on.
"""

from __future__ import annotations

import html
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

_PROJECT = "entrodrop"
_KEY_TAG = "entrodrop.run"
_SECONDS_TO_CONNECT = 5.0


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker shows of a run."""

    key: str
    """By which a resume finds it again; checkpoints have it."""
    name: str
    run_dir: Path
    config: Mapping[str, Any]


class Client(Protocol):
    """A run of one tracker, opened; all calls come from one thread."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add points to curves, by tag."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Markdown."""

    def close(self, *, failed: bool) -> None:
        """Send what is left, and end the run there, as failed or finished."""


def open_client(name: str, run: TrackedRun) -> Client:
    """A run of a tracker, a new one or that of the run's earlier starts."""
    clients: dict[str, Callable[[TrackedRun], Client]]
    clients = {"wandb": WandbRun, "mlflow": MlflowRun, "trackio": TrackioRun}
    return clients[name](run)


class WandbRun:
    """W&B; without a key or a connection into RUN/wandb, for `wandb sync`."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        mode = os.environ.get("WANDB_MODE") or self._mode(wandb, run)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=run.key,
            name=run.name,
            dir=str(run.run_dir),
            mode=mode,
            resume="allow",
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        # its own step may not go back, as ours does after a rollback
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def _mode(wandb: Any, run: TrackedRun) -> str:
        url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if not _answers(url):
            reason = f"no connection to {url}"
        elif not wandb.login(prompt=False):
            reason = "no API key"
        else:
            return "online"
        _say(f"wandb: {reason}: offline, into {run.run_dir}/wandb; `wandb sync` uploads it")
        return "offline"

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def text(self, tag: str, text: str, step: int) -> None:
        import wandb

        self._run.log({tag: wandb.Html(f"<pre>{html.escape(text)}</pre>"), "step": step})

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class MlflowRun:
    """MLflow; without a server that answers into mlflow.db beside the run folder."""

    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient

        uri, beside = self._uri(run), run.run_dir.absolute().parent
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        if known := self._client.get_experiment_by_name(name):
            experiment = known.experiment_id
        else:  # texts are files: of a database in the folder that it is used from, if not told
            texts = None if uri.startswith("http") else (beside / "mlflow-texts").as_uri()
            experiment = self._client.create_experiment(name, artifact_location=texts)
        found = self._client.search_runs([experiment], f"tags.`{_KEY_TAG}` = '{run.key}'")
        if found:
            self._id = found[0].info.run_id
            self._client.set_terminated(self._id, status="RUNNING")
        else:
            created = self._client.create_run(
                experiment, run_name=run.name, tags={_KEY_TAG: run.key}
            )
            self._id = created.info.run_id
            for key, value in _leaves(run.config):
                self._client.log_param(self._id, key, str(value)[:500])

    @staticmethod
    def _uri(run: TrackedRun) -> str:
        local = f"sqlite:///{run.run_dir.absolute().parent / 'mlflow.db'}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or local
        if uri.startswith("http") and not _answers(uri):
            _say(f"mlflow: no connection to {uri}: offline, into {local}")
            return local
        return uri

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id, metrics=[Metric(tag, value, now, step) for tag, value in values.items()]
        )

    def text(self, tag: str, text: str, step: int) -> None:
        self._client.log_text(self._id, text, f"{tag}/step-{step:08d}.md")

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, status="FAILED" if failed else "FINISHED")


class TrackioRun:
    """Trackio: local, unless its variables name a Space or a server."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=f"{run.name}-{run.key[:8]}",
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        import trackio

        self._run.log({tag: trackio.Markdown(text)}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish()  # it knows no failed runs


def _answers(url: str) -> bool:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_SECONDS_TO_CONNECT):
            return True
    except OSError:
        return False


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _say(text: str) -> None:
    print(f"trackers: {text}", file=sys.stderr, flush=True)
