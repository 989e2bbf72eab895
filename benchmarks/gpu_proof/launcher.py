"""A run as users start it: preflight, launch/local.sh, a stop by SIGUSR1, a resume, the export."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.gpu_proof.rows import Figures, Row
from tests.distributed import ranks_folder
from tests.launch.shared_runs import state_of, wait_for_steps, write_recipe
from tests.processes import processes_with
from tests.training.layouts import tiny_recipe
from tests.warm_python import warm_python

LIMIT_SECONDS = 120
_OWN_SECONDS = LIMIT_SECONDS - 10  # so that commands end before the step is ended
_NUM_STEPS, _STOPPED_AFTER = 20, 3
_ROOT = Path(__file__).resolve().parents[2]


def rows(device: str, small: bool) -> Iterator[Row]:
    """Each needs what the one before it leaves."""
    run = _Run(device, small)
    yield "corpus", run.build_corpus
    yield "preflight", run.preflight
    yield f"launch/local.sh, SIGUSR1 after step {_STOPPED_AFTER}", run.stop
    yield f"resume to step {_NUM_STEPS}", run.resume
    yield "export", run.export


class _Run:
    """A small model on a corpus of the standard library, one process."""

    def __init__(self, device: str, small: bool) -> None:
        self._ends = time.monotonic() + _OWN_SECONDS
        self._on_gpu = device == "cuda"
        self._folder = ranks_folder()
        self._run_dir = self._folder / "run"
        # on a GPU 16 micro-steps: a signal has to meet the run between its first and last step
        hidden, layers, head_size, micro_samples = (32, 1, 8, 4) if small else (512, 4, 64, 1)
        self._recipe = write_recipe(
            tiny_recipe(
                run_dir=str(self._run_dir),
                deepspeed=f"ds_configs/{'zero1' if self._on_gpu else 'zero3_fp32'}.json",
                data__corpus=str(self._folder / "corpus"),
                model__config__vocab_size=512,
                model__config__hidden_size=hidden,
                model__config__intermediate_size=3 * hidden,
                model__config__num_hidden_layers=layers,
                model__config__num_attention_heads=hidden // head_size,
                model__config__num_key_value_heads=hidden // head_size // 2,
                model__config__head_dim=head_size,
                data__sequence_tokens=64,
                train__global_batch_tokens=16 * 64,
                train__micro_batch_samples=micro_samples,
                train__max_steps=_NUM_STEPS,
                train__epochs=100,
                optimizer__lr=1e-3,
                evaluation__max_samples=4,
            ),
            self._folder / "recipe.yaml",
        )

    def build_corpus(self) -> Figures:
        """Of the standard library's json and logging."""
        sources = [str(Path(json.__file__).parent), str(Path(os.__file__).parent / "logging")]
        corpus = str(self._folder / "corpus")
        trained = ["--train-tokenizer", "bpe", "--vocab-size", "512", "--val-frac", "0.4"]
        self._python("data_prep", "build", "--input", *sources, *trained, "--out", corpus)
        self._python("data_prep", "pack", corpus, "--seq-len", "64")
        manifest = json.loads((self._folder / "corpus" / "manifest.json").read_text())
        return {"shards": float(len(manifest["shards"]))}

    def preflight(self) -> Figures:
        """Exits with 0 when no check fails."""
        told = json.loads(self._python("launch", "preflight", str(self._recipe), "--json"))
        verdicts = Counter(check["verdict"] for check in told["checks"])
        return {verdict: float(number) for verdict, number in verdicts.items()}

    def stop(self) -> Figures:
        """A signal to the launcher ends the run with 0, saved, before its last step."""
        with self._started(["launch/local.sh", str(self._recipe), "-n", "1"]) as launcher:
            wait_for_steps(self._run_dir, _STOPPED_AFTER, of=launcher, seconds=self._left)
            launcher.send_signal(signal.SIGUSR1)
            self._end(launcher)
        state, step = state_of(self._run_dir)
        assert state == "stopped" and _STOPPED_AFTER <= step < _NUM_STEPS, (state, step)
        return {"step": float(step)}

    def resume(self) -> Figures:
        """The same command goes on, and each step is there once."""
        before = state_of(self._run_dir)[1]
        with self._started(["launch/local.sh", str(self._recipe), "-n", "1"]) as launcher:
            self._end(launcher)
        assert state_of(self._run_dir) == ("complete", _NUM_STEPS), state_of(self._run_dir)
        lines = (self._run_dir / "metrics.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, lines) if row["kind"] == "step"]
        assert [row["step"] for row in steps] == list(range(1, _NUM_STEPS + 1)), steps
        losses = [row["loss"] for row in steps]
        assert all(map(math.isfinite, losses)) and losses[-1] < losses[0], losses
        return {"resumed_at": float(before), "first_loss": losses[0], "last_loss": losses[-1]}

    def export(self) -> Figures:
        """Which loads what it wrote and compares it."""
        self._python("training", "export", str(self._run_dir))
        files = list((self._run_dir / "export").glob("*.safetensors"))
        assert files, "there are no weights in the export"
        return {"mib": sum(file.stat().st_size for file in files) / 2**20}

    @property
    def _left(self) -> float:
        return max(self._ends - time.monotonic(), 0.1)

    def _python(self, *arguments: str) -> str:
        with self._started([warm_python(), "-m", *arguments]) as process:
            return self._end(process)

    @contextmanager
    def _started(self, command: list[str]) -> Iterator[subprocess.Popen[str]]:
        """Outside of the group of processes that this one is a rank of; it never outlives this."""
        own = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(own)}
        if self._on_gpu:
            kept.pop("OMP_NUM_THREADS", None)  # this rank's own
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=kept | {"PYTHON": warm_python(), "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()  # a launcher saves, and ends its processes
            with suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=5)
            for left in processes_with(str(self._recipe)):
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)

    def _end(self, process: subprocess.Popen[str]) -> str:
        """What it printed, when it ends with 0 and in time."""
        printed, errors = process.communicate(timeout=self._left)
        assert process.returncode == 0, f"{process.args}: {printed[-3000:]}{errors[-3000:]}"
        return printed
