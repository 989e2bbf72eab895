"""Flags of every verb, with the help that teaches them."""

from __future__ import annotations

import argparse
from pathlib import Path

_TOP_HELP = """\
Turn raw text into a corpus that training reads: token ids in shards, with a manifest that
accounts for every document and every token.

  python -m data_prep build   --input docs.jsonl --tokenizer Qwen/Qwen3-0.6B --out data/docs
  python -m data_prep pack    data/docs --seq-len 2048
  python -m data_prep inspect data/docs --seq-len 2048 --sample 0
  python -m data_prep verify  data/docs --deep
"""

_BUILD_HELP = """\
Read documents, tokenise them on all cores and write a corpus folder.

Inputs: .jsonl and .ndjson (a document a line), .parquet (one a row), .txt and .md (one a file),
text and JSONL also as .gz or .zst; or a folder, in which every file counts that is not hidden
or binary. The bytes written do not depend on --workers. The folder appears under its name only
when it is whole.

  python -m data_prep build --input notes/ more.jsonl.gz --tokenizer ./Qwen3-0.6B --out data/notes
  python -m data_prep build --input src/ --include '*.py' --exclude tests \\
      --train-tokenizer bpe --vocab-size 4096 --out data/code
"""

_PACK_HELP = """\
Make samples of S tokens out of a corpus: an index in DIR/pack-S beside the shards, not a copy.

best_fit puts each document, longest first, into the fullest sample that has room; only documents
longer than S are cut. concat lays documents back to back and cuts them wherever a sample ends.
Neither loses a token, and both keep the boundaries of documents.

  python -m data_prep pack data/notes --seq-len 2048
"""

_INSPECT_HELP = """\
Show what training will see: samples as text with a line wherever a document begins, or whole
documents when no --seq-len is given.

  python -m data_prep inspect data/notes --seq-len 2048 --sample 0 17
  python -m data_prep inspect data/notes --split val
"""

_VERIFY_HELP = """\
Check a corpus and its packs: sizes, document offsets, ids within the vocabulary, no document on
both sides of the split, every token in exactly one sample; with --deep also every checksum.
Prints a table; exit code 1 when a check fails, with shard, expected and found.

  python -m data_prep verify data/notes --deep
"""


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep",
        description=_TOP_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, short, text, add in (
        ("build", "raw text to shards", _BUILD_HELP, _add_build),
        ("pack", "documents to samples of one length", _PACK_HELP, _add_pack),
        ("inspect", "print samples or documents", _INSPECT_HELP, _add_inspect),
        ("verify", "check a corpus and its packs", _VERIFY_HELP, _add_verify),
    ):
        add(
            verbs.add_parser(
                name,
                help=short,
                description=text,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
        )
    return parser


def _add_build(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="PATH", help="files and folders"
    )
    verb.add_argument("--out", type=Path, required=True, metavar="DIR", help="the corpus folder")
    verb.add_argument("--overwrite", action="store_true", help="replace an older corpus at --out")

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

    reading = verb.add_argument_group("reading")
    reading.add_argument(
        "--text-key", default="text", metavar="KEY", help="field with the text (default: text)"
    )
    reading.add_argument(
        "--ids-key",
        metavar="KEY",
        help="field with token ids, for a corpus that is tokenised already; kept as they are",
    )
    reading.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, read only such files (repeatable); with a slash: path inside the folder",
    )
    reading.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="in folders, leave out such files and folders (repeatable)",
    )
    reading.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="a bad document stops the build (default), or is counted and left out",
    )
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


def _add_pack(verb: argparse.ArgumentParser) -> None:
    _add_folder(verb)
    verb.add_argument("--seq-len", type=int, required=True, metavar="S", help="tokens a sample")
    verb.add_argument(
        "--policy", choices=["best_fit", "concat"], default="best_fit", help="default: best_fit"
    )
    verb.add_argument("--overwrite", action="store_true", help="replace another pack of S")


def _add_inspect(verb: argparse.ArgumentParser) -> None:
    _add_folder(verb)
    verb.add_argument("--seq-len", type=int, metavar="S", help="show samples of the pack of S")
    verb.add_argument("--split", choices=["train", "val"], default="train")
    verb.add_argument(
        "--sample",
        type=int,
        nargs="+",
        default=[0],
        metavar="I",
        help="numbers of samples, or of documents without --seq-len (default: 0)",
    )


def _add_verify(verb: argparse.ArgumentParser) -> None:
    _add_folder(verb)
    verb.add_argument("--deep", action="store_true", help="read all bytes and compare checksums")


def _add_folder(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that build wrote")
