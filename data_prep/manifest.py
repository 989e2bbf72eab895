"""What a corpus folder says of itself: the manifest, its own checks and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

MANIFEST_NAME = "manifest.json"
OFFSET_BYTES = 8
RecordT = TypeVar("RecordT", bound="Record")

# A file is named, never located: no folder, no "..", nothing hidden. Whoever sends a corpus
# cannot make its reader open another file.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}$")]
Count = Annotated[int, Field(ge=0, le=2**62)]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A part of a manifest: no unknown field, no silent conversion, no change after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FileRecord(Record):
    name: FileName
    num_bytes: Count
    sha256: Sha256


class TokenizerRecord(Record):
    kind: Literal["huggingface", "sentencepiece"]
    source: str
    sha256: Sha256
    files: tuple[FileRecord, ...]


class SpecialIds(Record):
    """Ids of the tokenizer's own special tokens, and what a build put around each document."""

    bos: TokenId | None = None
    eos: TokenId | None = None
    pad: TokenId | None = None
    document_prefix: tuple[TokenId, ...] = ()
    document_suffix: tuple[TokenId, ...] = ()


class Source(Record):
    path: str
    num_files: Count
    num_bytes: Count


class SplitRule(Record):
    val_frac: Annotated[float, Field(ge=0.0, lt=1.0)]
    hash: str


class Shard(Record):
    name: FileName
    split: Split
    num_documents: Count
    num_tokens: Count
    tokens: FileRecord
    docs: FileRecord


class SplitLedger(Record):
    num_documents: Count
    num_tokens: Count


class Ledger(Record):
    """Where every document and every token went; `check` proves that none is unaccounted for."""

    num_documents_in: Count
    num_documents_empty: Count
    num_documents_bad: Count
    num_documents_kept: Count
    num_tokens_in: Count
    num_tokens_special: Count
    num_tokens_left_out: Count
    num_tokens_kept: Count
    by_split: dict[Split, SplitLedger]
    bad_by_reason: dict[str, Count]
    first_bad: tuple[str, ...]

    def check(self) -> None:
        """Raise when documents or tokens do not add up."""
        parts = self.num_documents_empty + self.num_documents_bad + self.num_documents_kept
        _must_agree("documents in the ledger", expected=self.num_documents_in, found=parts)
        tokens = self.num_tokens_in + self.num_tokens_special
        parts = self.num_tokens_left_out + self.num_tokens_kept
        _must_agree("tokens in the ledger", expected=tokens, found=parts)
        found = sum(part.num_documents for part in self.by_split.values())
        _must_agree("documents by split", expected=self.num_documents_kept, found=found)
        found = sum(part.num_tokens for part in self.by_split.values())
        _must_agree("tokens by split", expected=self.num_tokens_kept, found=found)
        found = sum(self.bad_by_reason.values())
        _must_agree("bad documents by reason", expected=self.num_documents_bad, found=found)


class Manifest(Record):
    schema_version: Literal[1]
    tokenizer: TokenizerRecord
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    token_dtype: Literal["uint16", "uint32"]
    special_ids: SpecialIds
    sources: tuple[Source, ...]
    split: SplitRule
    shards: tuple[Shard, ...]
    ledger: Ledger

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.token_dtype == "uint16" and self.vocab_size > 65_536:
            raise ValueError(f"vocab_size {self.vocab_size} does not fit token_dtype uint16")
        self.ledger.check()
        for shard in self.shards:
            num_bytes = shard.num_tokens * self.dtype.itemsize
            _must_agree(f"{shard.name} bytes", expected=num_bytes, found=shard.tokens.num_bytes)
            num_bytes = (shard.num_documents + 1) * OFFSET_BYTES
            _must_agree(f"{shard.name} offsets", expected=num_bytes, found=shard.docs.num_bytes)
        for split in SPLITS:
            ledger = self.ledger.by_split.get(split, SplitLedger(num_documents=0, num_tokens=0))
            found = sum(shard.num_documents for shard in self.split_shards(split))
            _must_agree(f"{split} documents", expected=ledger.num_documents, found=found)
            found = sum(shard.num_tokens for shard in self.split_shards(split))
            _must_agree(f"{split} tokens", expected=ledger.num_tokens, found=found)
        names = [file.name for file in self.shard_files()]
        _must_agree("distinct shard files", expected=len(names), found=len(set(names)))
        return self

    @property
    def dtype(self) -> np.dtype:
        """The numpy type of the ids on disk, little-endian whatever the machine."""
        return np.dtype("<u2" if self.token_dtype == "uint16" else "<u4")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what defines the content: ids, document bounds, tokenizer; not paths."""
        content = {
            "dtype": self.token_dtype,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer.sha256,
            "shards": [[s.split, s.tokens.sha256, s.docs.sha256] for s in self.shards],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split_shards(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def shard_files(self) -> list[FileRecord]:
        return [file for shard in self.shards for file in (shard.tokens, shard.docs)]


def _must_agree(what: str, *, expected: int, found: int) -> None:
    if expected != found:
        raise ValueError(f"{what}: expected {expected}, found {found}")


def load_record(record_type: type[RecordT], path: Path, *, made_by: str) -> RecordT:
    """Read and check one JSON record; whatever is wrong with it is a ValueError of ours."""
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path}: not found; {made_by} writes it when it has finished") from None
    try:
        return record_type.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'record'}: {problem['msg']}"
            for problem in error.errors()[:5]
        )
        raise ValueError(f"{path}: not a valid record of {made_by}: {problems}") from None


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a finished corpus folder."""
    return load_record(Manifest, folder / MANIFEST_NAME, made_by="`python -m data_prep build`")


def files_sha256(files: Iterable[FileRecord]) -> str:
    """One hash for a set of files, whatever the order in which they were listed."""
    listing = sorted((file.name, file.sha256) for file in files)
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
