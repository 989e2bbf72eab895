"""The verb `build`: turns raw text, conversations or ids into a corpus folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.commands.inputs import (
    add_input_argument,
    add_reading_arguments,
    fields_from,
    globs_from,
)

SUMMARY = "raw text to shards"
DESCRIPTION = """\
Read documents, tokenise them on all cores and write a corpus folder.

Inputs: .jsonl and .ndjson (one document per line), .json (an array of objects, one object, or one
per line), .parquet, .arrow, .csv and .tsv (one per row), .txt and .md (one per file), text, JSON
and tables also as .gz, .zst, .bz2 or .xz; .tar, also compressed, and .zip of text files; folders
saved by `datasets`; hub datasets as hf:NAME@CONFIG:SPLIT, streamed; or a folder, without its
hidden, binary and .gitignore'd files. Links in it are followed, and what is left out is counted by
reason at the end. Token ids also as .npy, or as Megatron's .idx with .bin. Files and folders may
be on an object store: s3://BUCKET/FOLDER, gs://... or hf://datasets/NAME (the extra [remote]).
NAME=PATH puts an input into a named domain, which pack and training can weight.

The ids of a sample of the documents must spell the text that was encoded, and no id may stand for
an unknown character; otherwise the build stops, or with --on-loss count counts what is lost.

The bytes written do not depend on --workers. The folder appears under its name only when it is
complete; a build that was stopped or killed resumes when the same command is run again.

  python -m data_prep build --input notes/ more.jsonl.gz --tokenizer ./Qwen3-0.6B --out data/notes
  python -m data_prep build --input src/ --include '*.py' --exclude tests \\
      --train-tokenizer bpe --vocab-size 4096 --out data/code
  python -m data_prep build --input web=web/ chat=talks.jsonl --field chat.messages=messages \\
      --tokenizer ./Qwen3-0.6B --out data/mix
  mpirun -n 64 python -m data_prep build --input web/ --tokenizer ./Qwen3-0.6B --out data/web
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_input_argument(verb)
    verb.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="corpus folder to write"
    )
    verb.add_argument(
        "--overwrite", action="store_true", help="replace an existing corpus at --out"
    )
    verb.add_argument(
        "--restart", action="store_true", help="discard an unfinished build and start over"
    )

    tokens = verb.add_argument_group("tokenizer (one of the first two)")
    tokens.add_argument(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="a hub name, a Hugging Face folder, a tokenizer.json or a sentencepiece .model",
    )
    tokens.add_argument(
        "--train-tokenizer", choices=["bpe", "unigram"], help="train one on this corpus"
    )
    tokens.add_argument("--vocab-size", type=int, metavar="V", help="vocabulary size to train")
    tokens.add_argument(
        "--no-eos", dest="eos", action="store_false", help="do not end documents with EOS"
    )
    tokens.add_argument(
        "--no-fast-path",
        dest="fast_path",
        action="store_false",
        help="encode with the tokenizer's own library even where gigatoken is proven equivalent",
    )
    tokens.add_argument(
        "--on-loss",
        choices=["fail", "count"],
        default="fail",
        help="stop where the tokenizer loses characters (default), or count them and go on",
    )
    tokens.add_argument(
        "--check",
        dest="checked",
        choices=["sample", "all"],
        default="sample",
        help="compare some documents (default) or all with what their ids spell",
    )
    tokens.add_argument(
        "--split-on-eos",
        action="store_true",
        help="a flat .npy of ids holds many documents, each ending in EOS",
    )
    add_reading_arguments(verb.add_argument_group("reading"))
    _add_writing(verb.add_argument_group("writing"))


def _add_writing(writing: argparse._ArgumentGroup) -> None:
    writing.add_argument(
        "--val-frac",
        type=float,
        default=0.01,
        metavar="F",
        help="fraction of documents held out, by a hash of their text (default: 0.01)",
    )
    writing.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="worker processes (default: one per core; one below 2 MiB)",
    )
    writing.add_argument(
        "--shard-mib", type=float, default=512, metavar="M", help="shard size (default: 512)"
    )


def run(options: argparse.Namespace) -> int:
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.viewing.summary import build_summary

    fields, fields_of = fields_from(options)
    manifest = build(
        BuildOptions(
            inputs=tuple(options.input),
            out=options.out,
            tokenizer=options.tokenizer,
            train_tokenizer=options.train_tokenizer,
            train_vocab_size=options.vocab_size,
            fields=fields,
            fields_of=fields_of,
            globs=globs_from(options),
            val_frac=options.val_frac,
            on_error=options.on_error,
            on_loss=options.on_loss,
            checked=options.checked,
            add_eos=options.eos,
            split_on_eos=options.split_on_eos,
            num_workers=options.workers,
            shard_mib=options.shard_mib,
            overwrite=options.overwrite,
            restart=options.restart,
            fast_path=options.fast_path,
        )
    )
    print(build_summary(manifest, folder=options.out, asked_vocab_size=options.vocab_size))
    return 0
