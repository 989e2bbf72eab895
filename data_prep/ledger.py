"""The ledger of a build: where every input document and token went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from data_prep.record import Count, Printable, Record, must_agree

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class Tally(Record):
    """Counts of reading and encoding so far in one domain."""

    num_documents: Count = 0
    num_empty: Count = 0
    num_tokens: Count = 0
    num_special_tokens: Count = 0
    num_tokens_left_out: Count = 0
    bad_by_reason: dict[str, Count] = Field(default_factory=dict)
    first_bad: tuple[Printable, ...] = ()
    members_left_out: dict[str, Count] = Field(default_factory=dict)
    num_documents_checked: Count = 0
    num_documents_with_loss: Count = 0
    num_chars_lost: Count = 0
    first_losses: tuple[Printable, ...] = ()


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
    first_bad: tuple[Printable, ...]
    members_left_out: dict[str, Count] = Field(default_factory=dict)
    """Members of archives that are not read, by reason."""
    num_documents_checked: Count = 0
    """Texts compared with what their ids spell."""
    num_documents_with_loss: Count = 0
    num_chars_lost: Count = 0
    """Characters of these texts that no token stands for, with `--on-loss count`."""
    first_losses: tuple[Printable, ...] = ()

    def check(self) -> None:
        """Raise when documents or tokens do not add up."""
        parts = self.num_documents_empty + self.num_documents_bad + self.num_documents_kept
        must_agree("documents in the ledger", expected=self.num_documents_in, found=parts)
        tokens = self.num_tokens_in + self.num_tokens_special
        parts = self.num_tokens_left_out + self.num_tokens_kept
        must_agree("tokens in the ledger", expected=tokens, found=parts)
        found = sum(part.num_documents for part in self.by_split.values())
        must_agree("documents by split", expected=self.num_documents_kept, found=found)
        found = sum(part.num_tokens for part in self.by_split.values())
        must_agree("tokens by split", expected=self.num_tokens_kept, found=found)
        found = sum(self.bad_by_reason.values())
        must_agree("bad documents by reason", expected=self.num_documents_bad, found=found)
        if not self.num_documents_with_loss <= self.num_documents_checked <= self.num_documents_in:
            raise ValueError(
                f"documents that lose characters ({self.num_documents_with_loss}): expected at "
                f"most those checked ({self.num_documents_checked}), of {self.num_documents_in}"
            )
        if set(self.by_split) != set(SPLITS):
            raise ValueError(f"by_split: expected {list(SPLITS)}, found {sorted(self.by_split)}")


def sum_ledgers(ledgers: Sequence[Ledger]) -> Ledger:
    """One ledger for several domains."""
    counts = {
        name: sum(getattr(ledger, name) for ledger in ledgers)
        for name in Ledger.model_fields
        if name.startswith("num_")
    }
    reasons: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for ledger in ledgers:
        reasons.update(ledger.bad_by_reason)
        left_out.update(ledger.members_left_out)
    by_split = {
        split: SplitLedger(
            num_documents=sum(ledger.by_split[split].num_documents for ledger in ledgers),
            num_tokens=sum(ledger.by_split[split].num_tokens for ledger in ledgers),
        )
        for split in SPLITS
    }
    return Ledger(
        **counts,
        by_split=by_split,
        bad_by_reason=reasons,
        members_left_out=left_out,
        first_bad=tuple(line for ledger in ledgers for line in ledger.first_bad),
        first_losses=tuple(line for ledger in ledgers for line in ledger.first_losses),
    )


def ledger_of(tally: Tally, *, by_split: dict[Split, SplitLedger]) -> Ledger:
    """Kept counts come from the shards, the others from reading, so that they check each other."""
    num_from_documents = tally.num_tokens - tally.num_special_tokens
    ledger = Ledger(
        num_documents_in=tally.num_documents,
        num_documents_empty=tally.num_empty,
        num_documents_bad=sum(tally.bad_by_reason.values()),
        num_documents_kept=sum(part.num_documents for part in by_split.values()),
        num_tokens_in=num_from_documents + tally.num_tokens_left_out,
        num_tokens_special=tally.num_special_tokens,
        num_tokens_left_out=tally.num_tokens_left_out,
        num_tokens_kept=sum(part.num_tokens for part in by_split.values()),
        by_split=by_split,
        bad_by_reason=dict(sorted(tally.bad_by_reason.items())),
        first_bad=tally.first_bad,
        members_left_out=tally.members_left_out,
        num_documents_checked=tally.num_documents_checked,
        num_documents_with_loss=tally.num_documents_with_loss,
        num_chars_lost=tally.num_chars_lost,
        first_losses=tally.first_losses,
    )
    ledger.check()
    return ledger
