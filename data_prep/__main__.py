"""The command `python -m data_prep`: build, pack, inspect and verify a corpus."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from data_prep.arguments import make_parser
from data_prep.executor import abort_mpi, serve_as_mpi_worker

# Verbs import what they need themselves, so that --help and a slip of the pen answer at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Exit codes: 0 done, 1 a check failed, 2 the user can mend it."""
    options = make_parser().parse_args(arguments)
    verb = {"build": _build, "pack": _pack, "inspect": _inspect, "verify": _verify}[options.verb]
    try:
        return verb(options)
    except BrokenPipeError:  # `inspect ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        abort_mpi(2)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was left under the name asked for", file=sys.stderr)
        abort_mpi(130)
        return 130


def _build(options: argparse.Namespace) -> int:
    if serve_as_mpi_worker():
        return 0
    from data_prep.build import BuildOptions, build
    from data_prep.reading.sources import Globs
    from data_prep.viewing.summary import build_summary

    manifest = build(
        BuildOptions(
            inputs=tuple(options.input),
            out=options.out,
            tokenizer=options.tokenizer,
            train_tokenizer=options.train_tokenizer,
            train_vocab_size=options.vocab_size,
            text_key=options.text_key,
            ids_key=options.ids_key,
            globs=Globs(include=tuple(options.include), exclude=tuple(options.exclude)),
            val_frac=options.val_frac,
            on_error=options.on_error,
            add_eos=options.eos,
            num_workers=options.workers,
            shard_mib=options.shard_mib,
            overwrite=options.overwrite,
        )
    )
    print(build_summary(manifest, folder=options.out))
    return 0


def _pack(options: argparse.Namespace) -> int:
    from data_prep.packing.pack import pack
    from data_prep.viewing.summary import pack_summary

    index = pack(
        options.folder,
        seq_len=options.seq_len,
        policy=options.policy,
        overwrite=options.overwrite,
    )
    print(pack_summary(index, corpus_folder=options.folder))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from data_prep.viewing.show import show

    lines = show(
        options.folder,
        seq_len=options.seq_len,
        split=options.split,
        numbers=options.sample,
        in_colour=sys.stdout.isatty(),
    )
    for line in lines:
        print(line)
    sys.stdout.flush()
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_prep.verify import verify
    from data_prep.viewing.summary import verify_summary

    checks = verify(options.folder, deep=options.deep)
    print(verify_summary(checks, folder=options.folder, deep=options.deep))
    return 0 if all(check.problem is None for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
