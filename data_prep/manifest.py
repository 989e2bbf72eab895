"""The manifest of a corpus folder, its consistency checks and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from common.commands import command
from data_prep.ledger import SPLITS, Ledger, Split, SplitLedger, sum_ledgers
from data_prep.record import (
    Count,
    FileName,
    FileRecord,
    Printable,
    Record,
    Sha256,
    load_record,
    must_agree,
)

DOMAIN_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
DomainName = Annotated[str, Field(pattern=DOMAIN_PATTERN)]
TokenizerFileName = Annotated[
    str, Field(pattern=r"^(additional_chat_templates/)?[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}$")
]
TokenId = Annotated[int, Field(ge=0, lt=2**32)]

MANIFEST_NAME = "manifest.json"
OFFSET_BYTES = 8
ORIGIN_BYTES = 16  # number of the input file, place in it: two int64


class TokenizerFile(FileRecord):
    """A file of the tokenizer, by its name in the tokenizer's folder."""

    name: TokenizerFileName

    @property
    def is_template(self) -> bool:
        """Whether it is one of chats."""
        return self.name.endswith(".jinja")


class TokenizerRecord(Record):
    kind: Literal["huggingface", "sentencepiece"]
    source: Printable
    sha256: Sha256
    files: tuple[TokenizerFile, ...]
    changes: tuple[str, ...] = ()
    """What its normaliser does to a text before it is encoded, in words."""

    def gives_ids_of(self, other: TokenizerRecord) -> bool:
        """Whether a text has the same ids: chat templates are how conversations become texts."""
        own, others = (
            {(file.name, file.sha256) for file in record.files if not file.is_template}
            for record in (self, other)
        )
        return self.kind == other.kind and own == others


class SpecialIds(Record):
    """Ids of the tokenizer's special tokens, and those added around each document."""

    bos: TokenId | None = None
    eos: TokenId | None = None
    pad: TokenId | None = None
    document_prefix: tuple[TokenId, ...] = ()
    document_suffix: tuple[TokenId, ...] = ()


class Source(Record):
    """One --input: a file, a folder or the name of a dataset."""

    path: Printable
    num_files: Count
    num_bytes: Count
    files_left_out: dict[str, Count] = Field(default_factory=dict)
    """Files of a folder that are not read, by reason."""
    folders_left_out: dict[str, Count] = Field(default_factory=dict)
    """Folders in it that are not entered, by reason."""


class SplitRule(Record):
    val_frac: Annotated[float, Field(ge=0.0, lt=1.0)]
    hash: str


class Shard(Record):
    """Documents of one domain and one split, back to back."""

    name: FileName
    domain: DomainName
    split: Split
    num_documents: Count
    num_tokens: Count
    tokens: FileRecord
    docs: FileRecord
    origins: FileRecord
    mask: FileRecord | None = None
    """uint8 per token, 1 for a target; None: every token is a target."""

    @property
    def files(self) -> list[FileRecord]:
        return [f for f in (self.tokens, self.docs, self.origins, self.mask) if f is not None]


class Domain(Record):
    """A named part of the corpus with the inputs it came from and its own ledger."""

    name: DomainName
    fields: dict[str, str]
    """The record field used for each role: {"text": "content"}."""
    sources: tuple[Source, ...]
    ledger: Ledger


class Manifest(Record):
    schema_version: Literal[2]
    tokenizer: TokenizerRecord
    vocab_size: Annotated[int, Field(ge=1, le=2**32)]
    token_dtype: Literal["uint16", "uint32"]
    special_ids: SpecialIds
    split: SplitRule
    domains: tuple[Domain, ...]
    inputs: FileRecord
    """JSON lines, one per input file; `origins` refer to them by number, from 0."""
    shards: tuple[Shard, ...]
    """Sorted by split, then domain in the order of `domains`, then number."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if self.token_dtype == "uint16" and self.vocab_size > 65_536:
            raise ValueError(f"vocab_size {self.vocab_size} does not fit token_dtype uint16")
        names = [domain.name for domain in self.domains]
        must_agree("distinct domains", expected=len(names), found=len(set(names)))
        for shard in self.shards:
            if shard.domain not in names:
                raise ValueError(f"{shard.name}: domain {shard.domain!r} is not one of {names}")
            _check_shard_bytes(shard, token_bytes=self.dtype.itemsize)
        places = [(SPLITS.index(s.split), names.index(s.domain)) for s in self.shards]
        if places != sorted(places):
            raise ValueError("shards: expected by split and domain, found another order")
        for domain in self.domains:
            _check_domain(domain, shards=self.shards)
        files = [file.name for file in self.files()]
        must_agree("distinct files", expected=len(files), found=len(set(files)))
        return self

    @property
    def ledger(self) -> Ledger:
        """The sum of all domains' ledgers."""
        return sum_ledgers([domain.ledger for domain in self.domains])

    @property
    def dtype(self) -> np.dtype:
        """The numpy type of the ids on disk, little-endian on every machine."""
        return np.dtype("<u2" if self.token_dtype == "uint16" else "<u4")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what defines the content: ids, document bounds, tokenizer; not paths."""
        content = {
            "dtype": self.token_dtype,
            "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer.sha256,
            "shards": [
                [s.split, s.domain, s.tokens.sha256, s.docs.sha256, s.mask and s.mask.sha256]
                for s in self.shards
            ],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def split_shards(self, split: Split) -> list[Shard]:
        return [shard for shard in self.shards if shard.split == split]

    def files(self, splits: Sequence[Split] = SPLITS) -> list[FileRecord]:
        """All files next to the manifest; the tokenizer's are in their own folder."""
        shards = [shard for shard in self.shards if shard.split in splits]
        return [self.inputs, *(file for shard in shards for file in shard.files)]


def _check_shard_bytes(shard: Shard, *, token_bytes: int) -> None:
    expected = [
        (shard.tokens, shard.num_tokens * token_bytes),
        (shard.docs, (shard.num_documents + 1) * OFFSET_BYTES),
        (shard.origins, shard.num_documents * ORIGIN_BYTES),
    ]
    if shard.mask is not None:
        expected.append((shard.mask, shard.num_tokens))
    for file, num_bytes in expected:
        must_agree(f"{file.name} bytes", expected=num_bytes, found=file.num_bytes)


def _check_domain(domain: Domain, *, shards: Iterable[Shard]) -> None:
    domain.ledger.check()
    own = [shard for shard in shards if shard.domain == domain.name]
    for split in SPLITS:
        ledger = domain.ledger.by_split.get(split, SplitLedger(num_documents=0, num_tokens=0))
        found = sum(shard.num_documents for shard in own if shard.split == split)
        what = f"{domain.name} {split}"
        must_agree(f"{what} documents", expected=ledger.num_documents, found=found)
        found = sum(shard.num_tokens for shard in own if shard.split == split)
        must_agree(f"{what} tokens", expected=ledger.num_tokens, found=found)


def load_manifest(folder: Path) -> Manifest:
    """The manifest of a finished corpus folder."""
    made_by = f"`{command('data_prep build')}`"
    return load_record(Manifest, folder / MANIFEST_NAME, made_by=made_by)
