"""The verb `export`: a checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SUMMARY = "write a checkpoint as a Hugging Face folder"
DESCRIPTION = """\
Write safetensors, configuration and tokenizer to RUN/export, reload them and compare with the
trained weights. One process, no GPU.

  python -m training export RUN
  python -m training export RUN --checkpoint best --out RUN/best
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    verb.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="best (by held-out loss), last, step-N or a folder (default: the newest intact one)",
    )
    verb.add_argument("--out", type=Path, help="default: RUN/export")


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed searches for one and logs it
    from training.checkpoints.choice import find_checkpoint
    from training.checkpoints.export import export_run

    word = options.checkpoint
    chosen = find_checkpoint(options.run_dir, word) if word is not None else None
    print(export_run(options.run_dir, checkpoint=chosen, out=options.out))
    return 0
