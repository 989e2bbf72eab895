"""Stands in for the trainer where only job scripts matter: keeps run_state.json, without torch.

Usage: as PYTHON of a job script, by way of `write_python`. HOW in the environment says what
happens: progress (a step is saved, then it crashes), crash, or stop (it waits for the STOP file).
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from training.config.load import load_recipe
from training.ranks.run_state import RUN_STATE_FILE, RunRecord, read_run_state


def write_python(path: Path) -> Path:
    """A `python` that runs this file for `-m training`, and all else as it is."""
    from tests.warm_python import warm_python

    python = warm_python()
    path.write_text(
        f'#!/bin/sh\n[ "$2" = training ] && exec {python} {__file__} "$@"\nexec {python} "$@"\n'
    )
    path.chmod(0o755)
    return path


def main(recipe_path: str, how: str) -> int:
    run_dir = Path(load_recipe(recipe_path, []).run_dir)
    step = read_run_state(run_dir).step if (run_dir / RUN_STATE_FILE).exists() else 0
    record = RunRecord(run_dir, rank=int(os.environ.get("SLURM_PROCID", "0")), total_steps=1000)
    record.begin(step)
    if how == "progress":
        record.saved(step + 1)
    if how == "stop":
        while not (run_dir / "STOP").exists():
            time.sleep(0.05)
        (run_dir / "STOP").unlink()
        record.stopped(step + 1, "STOP file")
        return 0
    return 1


if __name__ == "__main__":
    # -m training train RECIPE --rank-logs
    sys.exit(main(sys.argv[4], os.environ["HOW"]))
