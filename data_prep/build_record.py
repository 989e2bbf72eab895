"""What a finished build records: domains with their ledgers, inputs, shards in order."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.durable import describe_file
from data_prep.journal import Journal
from data_prep.ledger import SPLITS, Ledger, SplitLedger, Tally, ledger_of
from data_prep.manifest import Domain, Shard
from data_prep.reading.sources import DomainInput
from data_prep.record import FileRecord
from data_prep.split import why_one_is_not_divided

INPUTS_NAME = "inputs.jsonl"


def recorded_domains(
    domains: Sequence[DomainInput], *, journal: Journal, val_frac: float
) -> tuple[Domain, ...]:
    """Each domain with its ledger.

    Raises:
        ValueError: when no document is left to train on, with what became of them.
    """
    tallies = journal.position.tallies
    ledgers = {
        domain.name: _ledger(
            tallies.get(domain.name, Tally()),
            shards=[shard for shard in journal.shards if shard.domain == domain.name],
        )
        for domain in domains
    }
    if not any(ledger.by_split["train"].num_documents for ledger in ledgers.values()):
        is_text = any(domain.fields.kind == "text" for domain in domains)
        raise ValueError(_nothing_left(ledgers.values(), val_frac=val_frac, is_text=is_text))
    return tuple(
        Domain(
            name=domain.name,
            fields=domain.fields.as_dict(),
            sources=domain.sources,
            ledger=ledgers[domain.name],
        )
        for domain in domains
    )


def _nothing_left(ledgers: Iterable[Ledger], *, val_frac: float, is_text: bool) -> str:
    total = Counter[str]()
    for ledger in ledgers:
        total["read"] += ledger.num_documents_in
        total["empty"] += ledger.num_documents_empty
        total["bad"] += ledger.num_documents_bad
        total["held out"] += ledger.num_documents_kept
    counts = ", ".join(f"{count} {what}" for what, count in total.items())
    message = f"no documents left to train on: {counts}"
    if total["held out"] == 1:
        message += f"; {why_one_is_not_divided(is_text=is_text)}; --val-frac 0 trains on it"
    elif total["held out"]:
        message += f" by --val-frac {val_frac}; lower it"
    return message


def _ledger(tally: Tally, *, shards: Sequence[Shard]) -> Ledger:
    by_split = {
        split: SplitLedger(
            num_documents=sum(s.num_documents for s in shards if s.split == split),
            num_tokens=sum(s.num_tokens for s in shards if s.split == split),
        )
        for split in SPLITS
    }
    return ledger_of(tally, by_split=by_split)


def shards_in_order(
    shards: Sequence[Shard], *, domains: Sequence[DomainInput]
) -> tuple[Shard, ...]:
    """By split, then by domain in the order of the inputs."""
    places = {domain.name: i for i, domain in enumerate(domains)}
    return tuple(sorted(shards, key=lambda s: (SPLITS.index(s.split), places[s.domain], s.name)))


def write_inputs(staging: Path, *, domains: Sequence[DomainInput]) -> FileRecord:
    """Write the list of the files that were read."""
    path = staging / INPUTS_NAME
    with path.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        for domain in domains:
            for file in domain.files:
                record = {"path": file.path, "num_bytes": file.num_bytes, "kind": file.kind}
                lines.write(json.dumps(record, ensure_ascii=True) + "\n")
    return describe_file(path)
