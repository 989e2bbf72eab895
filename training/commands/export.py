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
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("run_dir", type=Path, metavar="RUN", help="run folder")
    verb.add_argument("--checkpoint", type=Path, help="default: the newest complete one")
    verb.add_argument("--out", type=Path, help="default: RUN/export")


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed searches for one and logs it
    from training.checkpoints.export import export_run

    print(export_run(options.run_dir, checkpoint=options.checkpoint, out=options.out))
    return 0
