"""Iterates over the plain texts of inputs in this process, for training a tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from common.progress import progress_bar
from data_prep.reading.documents import BadInput, OnError
from data_prep.reading.formats import cut_files, describe_fault, read_part
from data_prep.reading.sources import DomainInput


def iter_texts(
    domains: Sequence[DomainInput], *, on_error: OnError, skipped: Counter[str] | None = None
) -> Iterator[str]:
    """Every text in order; bad documents raise, or are counted by reason in `skipped`."""
    total = sum(domain.num_bytes for domain in domains)
    with progress_bar(total or None, what="read for the tokenizer", unit="B") as bar:
        for domain in domains:
            for part in cut_files(domain.files, fields=domain.fields):
                for item in read_part(part, fields=domain.fields):
                    if isinstance(item, BadInput):
                        if on_error == "fail":
                            what = describe_fault(part.file, item)
                            raise ValueError(f"{what}; fix it, or add --on-error skip to skip it")
                        if skipped is not None:
                            skipped[item.reason] += 1
                    elif isinstance(item.content, str):
                        yield item.content
                bar.update(part.num_bytes)
