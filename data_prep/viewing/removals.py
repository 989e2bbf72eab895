"""The summary of a cleaning pass: what is removed, by split and domain."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from common.commands import command
from data_prep.cleaning.removals import FOLDER_NAME, REPORT_NAME, Removals
from data_prep.ledger import SPLITS
from data_prep.packing.manifest import PACK_NAME, PackManifest
from data_prep.record import load_record
from data_prep.shards import open_corpus


def removals_summary(removals: Removals, *, corpus_folder: Path, is_written: bool) -> str:
    corpus = open_corpus(corpus_folder)
    folder = corpus_folder / FOLDER_NAME / removals.name
    settings = ", ".join(f"{name} {value}" for name, value in removals.parameters.items())
    lines = [f"{removals.kind:<14} {settings or 'identical tokens'}"]
    emptied = []
    for split in SPLITS:
        documents = corpus.domain_documents(split)
        for domain in removals.splits[split].domains:
            of = len(documents[domain.name])
            if not of:
                continue
            lines.append(
                f"{split:<14} {domain.name}: {domain.num_documents:,} of {of:,} documents "
                f"({domain.num_documents / of:.2%}), {domain.num_tokens:,} tokens"
            )
            if domain.num_documents == of:
                emptied.append(f"note           nothing of {domain.name} stays in {split}")
    lines += emptied
    if not is_written:
        return "\n".join([*lines, "dry run        nothing was written"])
    lines.append(f"report         {folder / REPORT_NAME} lists each with its origin")
    packs = sorted(path.name.removeprefix("pack-") for path in corpus_folder.glob("pack-*"))
    for seq_len in packs or ["2048"]:
        flags = f"{_flags_of(corpus_folder / f'pack-{seq_len}')} --overwrite" if packs else ""
        pack = command(f"data_prep pack {corpus_folder} --seq-len {seq_len}{flags}")
        lines.append(f"next           {pack}")
    return "\n".join(lines)


def _flags_of(pack: Path) -> str:
    """Those that pack again as before: without them the weights of domains would be lost."""
    with suppress(ValueError):  # damaged, or none of ours: `pack` says so
        return load_record(PackManifest, pack / PACK_NAME, made_by="pack").flags
    return ""
