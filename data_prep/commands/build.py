"""The verb `build`: raw text, conversations or ids to a corpus folder."""

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

Inputs: .jsonl and .ndjson (a document a line), .parquet and .arrow (one a row), .txt and .md (one
a file), text and JSONL also as .gz or .zst; folders that `datasets` saved; names on the hub as
hf:NAME@CONFIG:SPLIT, streamed; or a folder, in which every file counts that is not hidden, binary
or named by a .gitignore. With ids also .npy and Megatron's .idx with .bin. NAME=PATH puts an
input into a named domain, which pack and training can weigh.

The bytes written do not depend on --workers. The folder appears under its name only when it is
whole; a build that was stopped or killed goes on where it was when it is asked for again.

  python -m data_prep build --input notes/ more.jsonl.gz --tokenizer ./Qwen3-0.6B --out data/notes
  python -m data_prep build --input src/ --include '*.py' --exclude tests \\
      --train-tokenizer bpe --vocab-size 4096 --out data/code
  python -m data_prep build --input web=web/ chat=talks.jsonl --field chat.messages=messages \\
      --tokenizer ./Qwen3-0.6B --out data/mix
  mpirun -n 64 python -m data_prep build --input web/ --tokenizer ./Qwen3-0.6B --out data/web
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    add_input_argument(verb)
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder")
    verb.add_argument("--overwrite", action="store_true", help="replace an older corpus at --out")
    verb.add_argument(
        "--restart", action="store_true", help="forget an unfinished build and begin anew"
    )

    tokens = verb.add_argument_group("tokenizer (one of the first two)")
    tokens.add_argument(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="a hub name, a Hugging Face folder, a tokenizer.json or a sentencepiece .model",
    )
    tokens.add_argument(
        "--train-tokenizer", choices=["bpe", "unigram"], help="make one from this corpus"
    )
    tokens.add_argument("--vocab-size", type=int, metavar="V", help="entries of the one made")
    tokens.add_argument(
        "--no-eos", dest="eos", action="store_false", help="do not end documents with EOS"
    )
    tokens.add_argument(
        "--no-fast-path",
        dest="fast_path",
        action="store_false",
        help="encode with the tokenizer's own library even where tiktoken is proven the same",
    )
    tokens.add_argument(
        "--split-on-eos",
        action="store_true",
        help="a flat .npy of ids holds many documents, one behind each EOS",
    )
    add_reading_arguments(verb.add_argument_group("reading"))
    _add_writing(verb.add_argument_group("writing"))


def _add_writing(writing: argparse._ArgumentGroup) -> None:
    writing.add_argument(
        "--val-frac",
        type=float,
        default=0.01,
        metavar="F",
        help="part of the documents held out, by a hash of their text (default: 0.01)",
    )
    writing.add_argument(
        "--workers", type=int, metavar="N", help="processes that tokenise (default: one a core)"
    )
    writing.add_argument(
        "--shard-mib", type=float, default=512, metavar="M", help="size of a shard (default: 512)"
    )


def run(options: argparse.Namespace) -> int:
    from data_prep.build import BuildOptions, build
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
            add_eos=options.eos,
            split_on_eos=options.split_on_eos,
            num_workers=options.workers,
            shard_mib=options.shard_mib,
            overwrite=options.overwrite,
            restart=options.restart,
            fast_path=options.fast_path,
        )
    )
    print(build_summary(manifest, folder=options.out))
    return 0
