"""The verb `interpolate`: held-out losses between a run's base and its tuned weights."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from common.commands import command
from training.commands.evaluate import name_accelerator
from training.commands.export import EMA, add_weights
from training.config.arguments import add_overrides

SUMMARY = "held-out losses of weights between the base and the tuned ones"
DESCRIPTION = """\
Compute the losses on the run's held-out sets of base + SHARE (tuned - base), for several shares,
and write RUN/interpolation.json. No training: it often finds a better model than either end, with
more of what the base knew. Works on any number of processes.

  python -m training interpolate RUN
  torchrun --standalone --nproc-per-node=8 -m training interpolate RUN --checkpoint best
"""
_SHARES = "0,0.25,0.5,0.7,0.85,1"


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    add_overrides(verb)
    verb.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="best, last, step-N or a folder; several separated by commas, or last-5, for "
        "their mean (default: the newest intact one)",
    )
    add_weights(verb)
    verb.add_argument(
        "--shares",
        default=_SHARES,
        metavar="A,B,C",
        help=f"from 0, the base, to 1, the tuned weights (default: {_SHARES})",
    )


def run(options: argparse.Namespace) -> int:
    name_accelerator()
    from training.checkpoints.choice import means_several
    from training.config.load import KEPT_RECIPE, load_recipe
    from training.run.interpolation import interpolate_run

    is_main = os.environ.get("RANK", "0") == "0"
    words = [] if options.checkpoint is None else options.checkpoint.split(",")
    found = interpolate_run(
        options.run_dir,
        options.overrides,
        shares=_read_shares(options.shares),
        words=[word.strip() for word in words],
        averaged=options.weights == EMA,
        show=_show if is_main else lambda _: None,
    )
    if is_main and found["best_share"] is not None:
        share, named = found["best_share"], ""
        if words:
            is_mean = len(words) > 1 or means_several(words[0])
            named = f" {'--average' if is_mean else '--checkpoint'} {options.checkpoint}"
        named += f" --weights {EMA}" if options.weights == EMA else ""
        has_adapter = load_recipe(options.run_dir / KEPT_RECIPE, []).adapter is not None
        named += " --merge" if has_adapter else ""  # what was measured are whole models
        between = f" --interpolate-base {share:g}" if share != 1.0 else ""  # 1: the tuned weights
        export = command(f"training export {options.run_dir}{named}{between}")
        print(f"lowest at {share:g}: {export}")
    return 0


def _read_shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise ValueError(f"--shares {text}: numbers from 0 to 1, as in {_SHARES}") from None


def _show(row: dict[str, Any]) -> None:
    sets = {name: found["loss"] for name, found in row.get("sets", {}).items()}
    losses = sets or {"held-out loss": row["loss"]}
    if sets and "num_targets" not in row:  # what decides is of no one set
        losses["weighted mean"] = row["loss"]
    shown = "   ".join(
        f"{name} {'not a number' if loss is None else f'{loss:.4f}'}"
        for name, loss in losses.items()
    )
    print(f"{row['tuned_share']:>5.2f}   {shown}", flush=True)
