"""The tokenizer of a build: copied or trained, described, and its fast path."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.build_options import BuildOptions
from data_prep.manifest import TokenizerRecord
from data_prep.reading.sources import DomainInput
from data_prep.reading.texts import iter_texts
from data_prep.record import files_sha256
from data_prep.round_trip import Check
from data_prep.tokenizing.files import as_given, copy_tokenizer, describe_tokenizer_files
from data_prep.tokenizing.tokenizer import Tokenizer, kind_of, load_once, prove_fast_path


def put_tokenizer(folder: Path, *, domains: Sequence[DomainInput], options: BuildOptions) -> None:
    """Copy the tokenizer that was asked for into the folder, or train it on the texts."""
    if options.tokenizer is not None:
        copy_tokenizer(options.tokenizer, to=folder)
        _refuse_damaged(folder.resolve(), options=options, of=options.tokenizer)
        if any(domain.fields.kind == "chat" for domain in domains):
            _refuse_unusable_template(folder, of=options.tokenizer)
    else:
        from data_prep.tokenizing.training import train_tokenizer

        assert options.train_tokenizer and options.train_vocab_size
        train_tokenizer(
            iter_texts(domains, on_error=options.on_error),
            algorithm=options.train_tokenizer,
            vocab_size=options.train_vocab_size,
            to=folder,
        )


def _refuse_damaged(folder: Path, *, options: BuildOptions, of: str) -> None:
    try:
        load_once(folder, describe_tokenizer(options=options, folder=folder).sha256)  # kept
    except ValueError as error:
        what = as_given(str(error), copied=folder, name_or_path=of)
        raise ValueError(f"--tokenizer {what}") from None


def _refuse_unusable_template(folder: Path, *, of: str) -> None:
    """Now, and by the name that was given: conversations may come after hours of texts."""
    from data_prep.tokenizing.chat import ChatEncoder  # only for conversations: loads transformers

    try:
        ChatEncoder(folder)
    except ValueError as error:
        what = str(error).removeprefix(f"{folder}: ")
        raise ValueError(f"--tokenizer {of}: {what}") from None


def has_same_tokenizer(staging: Path, *, options: BuildOptions) -> bool:
    """Whether the files of an unfinished build are those that would be copied now."""
    if options.tokenizer is None:
        return True
    check = staging.parent / "tokenizer.check"
    shutil.rmtree(check, ignore_errors=True)
    copy_tokenizer(options.tokenizer, to=check)
    files, kept = (describe_tokenizer_files(f) for f in (check, staging / "tokenizer"))
    shutil.rmtree(check)
    return files == kept


def describe_tokenizer(*, options: BuildOptions, folder: Path) -> TokenizerRecord:
    """As the manifest records it, without the changes that it makes to texts."""
    files = describe_tokenizer_files(folder)
    source = options.tokenizer or f"{options.train_tokenizer} trained on this corpus"
    return TokenizerRecord(
        kind=kind_of(folder), source=source, sha256=files_sha256(files), files=files
    )


def write_fast_path(
    tokenizer: Tokenizer, *, into: Path, is_wanted: bool, check: Check
) -> Path | None:
    """The proven fast path in a file that the workers load; they need not prove it again."""
    path, how = prove_fast_path(tokenizer) if is_wanted else (None, tokenizer.how)
    if path is None:
        print(f"encoding with {how}", file=sys.stderr)
        return None
    compared = "all texts are" if check == "all" else "a sample is"
    print(f"encoding with {how}; {compared} compared with it", file=sys.stderr)
    file = into / "fast_path.json"
    path.save(file)
    return file
