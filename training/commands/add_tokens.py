"""The verb `add-tokens`: a pretrained model with rows for tokens added to its tokenizer."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

SUMMARY = "make a model with rows for tokens that were added to its tokenizer"
DESCRIPTION = """\
Copy a pretrained model with a larger embedding, one row for each id of a tokenizer that has tokens
added, up to a multiple of 64. New rows are drawn around the mean of the others. Build the corpus
with --tokenizer of the copy, and set model.pretrained to it. One process, no GPU, no download.

  python -m training add-tokens BASE --tokenizer TOKENIZER --out BASE_WITH_TOKENS
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("base", type=Path, metavar="BASE", help="folder of a pretrained model")
    verb.add_argument(
        "--tokenizer", type=Path, required=True, help="folder of its tokenizer with tokens added"
    )
    verb.add_argument("--out", type=Path, required=True, help="a folder that does not exist")


def run(options: argparse.Namespace) -> int:
    os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed searches for one and logs it
    from training.checkpoints.new_tokens import add_tokens

    rows = add_tokens(options.base, tokenizer=options.tokenizer, out=options.out)
    print(f"{options.out}: {rows} rows")
    return 0
