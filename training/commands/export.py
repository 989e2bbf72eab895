"""The verb `export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

TRAINED, EMA = "trained", "ema"
SUMMARY = "write a checkpoint as a Hugging Face folder"
DESCRIPTION = """\
Write safetensors, configuration and tokenizer to RUN/export, reload them and compare with the
trained weights. One process, no GPU.

  python -m training export RUN
  python -m training export RUN --checkpoint best --out RUN/best
  python -m training export RUN --average step-400,step-500,last
  python -m training export RUN --average last-5
  python -m training export RUN --checkpoint best --interpolate-base 0.7

--average takes the mean of several checkpoints. --interpolate-base takes the weights 0.7 of the way
from the base to the tuned ones: often better on the domain, and the base's knowledge decays less.
`python -m training interpolate RUN` tries several. Of a run with an adapter only that is written,
as a folder that peft loads beside the base; with --merge a whole model.
"""


def add_weights(verb: argparse.ArgumentParser) -> None:
    """Which of the two kinds of weights that a checkpoint of a run with `ema` holds."""
    verb.add_argument(
        "--weights",
        choices=(TRAINED, EMA),
        default=TRAINED,
        help="ema: the moving average that a run with `ema` keeps of them (default: trained)",
    )


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    verb.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="best (by held-out loss), last, step-N or a folder (default: the newest intact one)",
    )
    verb.add_argument(
        "--average",
        metavar="A,B,C",
        help="the mean of several checkpoints, each as --checkpoint takes it, or last-5",
    )
    verb.add_argument(
        "--interpolate-base",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="how far from the base (0) to the tuned weights (1, the default)",
    )
    add_weights(verb)
    verb.add_argument(
        "--merge",
        action="store_true",
        help="of a run with an adapter: one whole model, not the adapter alone",
    )
    verb.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights that are written (default: that of the training)",
    )
    verb.add_argument("--out", type=Path, help="default: RUN/export")


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed searches for one and logs it
    from training.checkpoints.choice import explaining_removals, means_several
    from training.checkpoints.export import Form, export_run
    from training.checkpoints.mixing import refuse_no_share

    refuse_no_share(options.interpolate_base, flag="--interpolate-base ")
    if options.average is not None and options.checkpoint is not None:
        raise ValueError("--average names the checkpoints: leave --checkpoint out")
    if options.checkpoint is not None and means_several(options.checkpoint):
        raise ValueError(
            f"--checkpoint {options.checkpoint}: names one checkpoint; for the mean of the newest, "
            f"--average {options.checkpoint}"
        )
    words = [] if options.checkpoint is None else [options.checkpoint]
    if options.average is not None:
        words = [word.strip() for word in options.average.split(",")]
        if not all(words):
            raise ValueError(f"--average {options.average!r}: an empty name among the checkpoints")
    with explaining_removals(options.run_dir):
        folder = export_run(
            options.run_dir,
            checkpoints=words,
            tuned_share=options.interpolate_base,
            averaged=options.weights == EMA,
            form=Form(merge=options.merge, dtype=options.dtype),
            out=options.out,
        )
    print(folder)
    return 0
