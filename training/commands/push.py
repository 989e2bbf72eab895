"""The verb `push`: an export to a hub of models."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SUMMARY = "push an export to the Hugging Face hub"
DESCRIPTION = """\
Push RUN/export, or an export by its folder, with its model card: one commit that makes the
repository hold this export and nothing else, compared with the files here afterwards. A push that
fails leaves what was there. Log in once with `hf auth login`, or set HF_TOKEN; HF_ENDPOINT names
another hub than huggingface.co.

  python -m training push runs/chats --to me/chats
  python -m training push runs/chats/export --to me/chats --private --branch step-400
  python -m training push runs/lora --to me/lora --base Qwen/Qwen3-0.6B
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("target", type=Path, metavar="RUN", help="run folder, or one of an export")
    verb.add_argument(
        "--to", required=True, metavar="NAME", help="OWNER/NAME, or a NAME of your own"
    )
    verb.add_argument(
        "--base",
        metavar="NAME",
        help="where the hub has the weights that training began from; needed of an adapter whose "
        "base is a folder of this machine",
    )
    verb.add_argument(
        "--private",
        action="store_true",
        help="make a new repository private; refused if it exists and is public",
    )
    verb.add_argument("--branch", default="main", help="default: %(default)s")
    verb.add_argument(
        "--replace", action="store_true", help="also where the files are no export of ours"
    )


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed searches for one and logs it
    from training.checkpoints.hub import find_export, push_export

    folder = find_export(options.target)
    pushed = push_export(
        folder,
        to=options.to,
        base=options.base,
        private=options.private,
        replace=options.replace,
        branch=options.branch,
    )
    print(
        f"{folder}: {pushed.num_files} files, {pushed.num_bytes:,} bytes at {pushed.url}, "
        f"commit {pushed.revision[:12]}"
    )
    return 0
