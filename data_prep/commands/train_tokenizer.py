"""The verb `train-tokenizer`: trains a tokenizer on texts."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.commands.inputs import (
    add_input_argument,
    add_reading_arguments,
    fields_from,
    globs_from,
)

SUMMARY = "train a tokenizer on texts"
DESCRIPTION = """\
Train a tokenizer on the same inputs that build reads, and check on some of them that encoding and
decoding reproduces the text.

bpe is byte-level BPE with GPT-2's word splitting, in a tokenizer.json; build encodes it on its fast
path. unigram is sentencepiece's, with byte fallback, in a tokenizer.model.

  python -m data_prep train-tokenizer --input notes/ --algorithm bpe --vocab-size 8192 \\
      --out tokenizers/notes
  python -m data_prep build --input notes/ --tokenizer tokenizers/notes --out data/notes
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_input_argument(verb)
    verb.add_argument("--algorithm", choices=["bpe", "unigram"], default="bpe", help="default: bpe")
    verb.add_argument("--vocab-size", type=int, required=True, metavar="V", help="vocabulary size")
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    verb.add_argument(
        "--max-mb",
        type=int,
        default=1000,
        metavar="M",
        help="train on about M MB, spread evenly over the inputs (default: 1000)",
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="replace an existing tokenizer at --out"
    )
    add_reading_arguments(verb.add_argument_group("reading"))


def run(options: argparse.Namespace) -> int:
    from data_prep.reading.sources import find_domains
    from data_prep.tokenizing.train_on_inputs import train_on_inputs
    from data_prep.viewing.summary import files_read, vocab_remarks

    if options.max_mb < 1:
        raise ValueError(f"--max-mb {options.max_mb}: must be at least 1")
    fields, fields_of = fields_from(options)
    domains = find_domains(
        options.input, globs=globs_from(options), fields_of=fields_of, default=fields
    )
    trained = train_on_inputs(
        domains,
        algorithm=options.algorithm,
        vocab_size=options.vocab_size,
        out=options.out,
        max_bytes=options.max_mb * 10**6,
        on_error=options.on_error,
        overwrite=options.overwrite,
    )
    share = "all" if trained.share == 1 else f"{trained.share:.1%}"
    print(f"tokenizer  {options.out}, {trained.tokenizer.vocab_size:,} ids")
    print(f"files      {files_read(s for domain in domains for s in domain.sources)}")
    for reason, count in trained.skipped.items():
        print(f"bad        {count:,} x {reason}")
    print(
        f"texts      {trained.num_texts:,} with {trained.num_bytes / 1e6:,.1f} MB, {share} of the "
        f"inputs, {trained.seconds:.1f} s"
    )
    print(f"checked    texts decode exactly; {trained.bytes_per_token:.2f} bytes per token")
    print(f"encodes    with {trained.tokenizer.how}")
    for line in vocab_remarks(trained.tokenizer.vocab_size, asked=options.vocab_size):
        print(line)
    return 0
