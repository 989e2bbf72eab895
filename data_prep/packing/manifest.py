"""The manifest of a pack: its files, and where every token of every domain went."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.ledger import SPLITS, Split
from data_prep.manifest import DomainName
from data_prep.record import Count, FileRecord, Record, Sha256, files_sha256, must_agree

PACK_NAME = "pack.json"
PIECE_FIELDS = 3  # document, start, length
INDEX_BYTES = 8
Policy = Literal["best_fit", "concat"]


class DomainPack(Record):
    """The counts of one domain in one split: tokens = packed + removed, and none is lost."""

    name: DomainName
    num_documents: Count
    """Packed documents; those on removal lists are counted separately."""
    num_documents_cut: Count
    """Packed in more than one piece, each in another sample."""
    num_documents_removed: Count
    num_tokens: Count
    num_tokens_removed: Count
    num_samples: Count
    num_pieces: Count
    num_targets: Count
    """Tokens in the loss: neither the first of a piece nor masked out."""
    num_padding: Count


class SplitPack(Record):
    """Samples of one split, grouped by domain."""

    domains: tuple[DomainPack, ...]
    pieces: FileRecord
    samples: FileRecord

    @property
    def num_samples(self) -> int:
        return sum(domain.num_samples for domain in self.domains)

    @property
    def num_tokens(self) -> int:
        return sum(domain.num_tokens for domain in self.domains)

    @property
    def num_targets(self) -> int:
        return sum(domain.num_targets for domain in self.domains)


class PackWeight(Record):
    """How much of a domain an epoch takes; exactly one of the two is set."""

    epochs: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    proportion: Annotated[float, Field(ge=0, le=1)] | None = None


class PackManifest(Record):
    schema_version: Literal[2]
    seq_len: Annotated[int, Field(ge=2, le=2**31)]
    policy: Policy
    corpus_fingerprint: Sha256
    removals_fingerprint: Sha256 | None
    """Of the removal lists whose documents were left out; None without any."""
    weights: dict[DomainName, PackWeight]
    """Of an epoch, unless a recipe sets others; an unnamed domain is seen once."""
    splits: dict[Split, SplitPack]

    @property
    def flags(self) -> str:
        """What `pack` was given beside the length, each behind a blank."""
        policy = "" if self.policy == "best_fit" else f" --policy {self.policy}"
        return policy + "".join(
            f" --{what} {name}={str(value).removesuffix('.0')}"
            for name, weight in self.weights.items()
            for what, value in weight.model_dump(exclude_none=True).items()
        )

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if set(self.splits) != set(SPLITS):
            raise ValueError(f"splits: expected {list(SPLITS)}, found {sorted(self.splits)}")
        names = [domain.name for domain in self.splits["train"].domains]
        must_agree("distinct domains", expected=len(names), found=len(set(names)))
        if unknown := set(self.weights) - set(names):
            raise ValueError(f"weights: {sorted(unknown)} is not among the domains {names}")
        for split, part in self.splits.items():
            if [domain.name for domain in part.domains] != names:
                raise ValueError(f"{split}: expected the domains {names}, found others")
            for domain in part.domains:
                self._check_domain(domain, what=f"{split} {domain.name}")
            num_pieces = sum(domain.num_pieces for domain in part.domains)
            for file, expected in (
                (part.pieces, num_pieces * PIECE_FIELDS * INDEX_BYTES),
                (part.samples, (part.num_samples + 1) * INDEX_BYTES),
            ):
                must_agree(f"{file.name} bytes", expected=expected, found=file.num_bytes)
        return self

    def _check_domain(self, domain: DomainPack, *, what: str) -> None:
        must_agree(
            f"{what} padding",
            expected=domain.num_samples * self.seq_len - domain.num_tokens,
            found=domain.num_padding,
        )
        if domain.num_targets > domain.num_tokens - domain.num_pieces:
            raise ValueError(
                f"{what} targets: expected at most {domain.num_tokens - domain.num_pieces}, "
                f"found {domain.num_targets}"
            )

    @property
    def fingerprint(self) -> str:
        """Changes with the corpus, the length, the packing or the weights of an epoch.

        It identifies sample numbers and the order of samples.
        """
        files = [f for part in self.splits.values() for f in (part.pieces, part.samples)]
        files.append(FileRecord(name="corpus", num_bytes=0, sha256=self.corpus_fingerprint))
        if not self.weights:
            return files_sha256(files)
        weights = {name: weight.model_dump() for name, weight in sorted(self.weights.items())}
        content = json.dumps([files_sha256(files), weights])
        return hashlib.sha256(content.encode()).hexdigest()


def pack_folder(corpus_folder: Path, *, seq_len: int) -> Path:
    return corpus_folder / f"pack-{seq_len}"
