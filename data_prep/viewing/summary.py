"""The final summary of each verb: what was written, what it means, what to run next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.commands import command
from data_prep.ledger import SPLITS
from data_prep.manifest import Manifest, Source
from data_prep.split import why_one_is_not_divided

if TYPE_CHECKING:
    from data_prep.packing.index import PackIndex
    from data_prep.packing.manifest import DomainPack
    from data_prep.verify import Check


def build_summary(manifest: Manifest, *, folder: Path, asked_vocab_size: int | None = None) -> str:
    """Of a corpus that was written.

    Args:
        asked_vocab_size: of a tokenizer that was trained on it.
    """
    ledger = manifest.ledger
    tokenizer = manifest.tokenizer
    sources = [source for domain in manifest.domains for source in domain.sources]
    lines = [
        f"corpus     {folder}",
        f"tokenizer  {tokenizer.source} ({tokenizer.kind}), {manifest.vocab_size:,} ids as "
        f"{manifest.token_dtype}, kept in {folder / 'tokenizer'}",
        f"files      {files_read(sources)}",
        f"documents  {ledger.num_documents_in:,} read = {ledger.num_documents_kept:,} kept + "
        f"{ledger.num_documents_empty:,} empty + {ledger.num_documents_bad:,} bad",
        f"tokens     {ledger.num_tokens_in:,} from documents + {ledger.num_tokens_special:,} "
        f"special = {ledger.num_tokens_kept:,} kept + {ledger.num_tokens_left_out:,} left out",
    ]
    for split in SPLITS:
        part = ledger.by_split[split]
        num_shards = len(manifest.split_shards(split))
        lines.append(
            f"{split:<10} {part.num_documents:,} documents, {part.num_tokens:,} tokens, "
            f"{num_shards:,} shard{'' if num_shards == 1 else 's'}"
        )
    if len(manifest.domains) > 1:
        lines += _by_domain(manifest)
    lines += _remarks(manifest)
    lines += vocab_remarks(manifest.vocab_size, asked=asked_vocab_size)
    lines.append(f"next       {command(f'data_prep pack {folder} --seq-len 2048')}")
    return "\n".join(lines)


def vocab_remarks(vocab_size: int, *, asked: int | None) -> list[str]:
    if asked is None or vocab_size >= asked:
        return []
    return [f"note       the texts yielded fewer entries than --vocab-size {asked}"]


def files_read(sources: Iterable[Source]) -> str:
    """What is read of the inputs: `read 10 of 14 files: 3 .tar (not supported), 1 hidden`."""
    num_read = 0
    files: Counter[str] = Counter()
    folders: Counter[str] = Counter()
    for source in sources:
        num_read += source.num_files
        files.update(source.files_left_out)
        folders.update(source.folders_left_out)
    parts = [f"{count:,} {why}" for why, count in files.most_common()]
    parts += [
        f"{count:,} {'folder' if count == 1 else 'folders'} {why}"
        for why, count in folders.most_common()
    ]
    total = num_read + files.total()
    return f"read {num_read:,} of {total:,} files{': ' if parts else ''}{', '.join(parts)}"


def _by_domain(manifest: Manifest) -> list[str]:
    total = max(1, manifest.ledger.num_tokens_kept)
    return [
        f"domain     {domain.name}: {domain.ledger.num_documents_kept:,} documents, "
        f"{domain.ledger.num_tokens_kept:,} tokens ({domain.ledger.num_tokens_kept / total:.1%})"
        for domain in manifest.domains
    ]


def _remarks(manifest: Manifest) -> list[str]:
    lines = []
    ledger = manifest.ledger
    for reason, count in ledger.members_left_out.items():
        lines.append(f"left out   {count:,} members of archives: {reason}")
    for reason, count in ledger.bad_by_reason.items():
        lines.append(f"bad        {count:,} x {reason}")
    lines += [f"           {where}" for where in ledger.first_bad]
    if ledger.num_documents_checked:
        lines.append(
            f"checked    {ledger.num_documents_checked:,} documents against what their ids spell: "
            f"{ledger.num_documents_with_loss:,} lose characters"
        )
    if ledger.num_chars_lost:
        lines.append(f"lost       {ledger.num_chars_lost:,} characters that have no token")
    lines += [f"           {where}" for where in ledger.first_losses]
    is_text = any("text" in domain.fields for domain in manifest.domains)
    if is_text and not manifest.special_ids.document_suffix:
        lines.append("note       documents do not end with EOS")
    val = ledger.by_split["val"]
    if manifest.split.val_frac and not val.num_documents:
        why = "with so few documents raise --val-frac"
        if ledger.num_documents_kept == 1:
            why = why_one_is_not_divided(is_text=is_text)
        lines.append(f"note       no document was assigned to val; {why}")
    return lines


def pack_summary(index: PackIndex, *, corpus_folder: Path) -> str:
    from data_prep.packing.mixture import describe  # not loaded for the summary of a build

    lines = [f"pack       {index.folder} ({index.policy}, {index.seq_len:,} tokens per sample)"]
    for split in SPLITS:
        domains = index.manifest.splits[split].domains
        lines += _packed(domains, head=split, seq_len=index.seq_len)
        if len(domains) > 1:
            for domain in domains:
                lines += _packed([domain], head=f"  {domain.name}", seq_len=index.seq_len)
    if len(index.manifest.splits["train"].domains) > 1 and index.num_samples("train"):
        lines += [f"epoch      {line}" for line in describe(index.mixture())]
    inspect = command(f"data_prep inspect {corpus_folder} --seq-len {index.seq_len}")
    lines.append(f"next       {inspect}")
    return "\n".join(lines)


def _packed(domains: Sequence[DomainPack], *, head: str, seq_len: int) -> list[str]:
    """The counts of some domains: what is kept, split, in the loss, removed and padded."""
    from data_prep.packing.manifest import DomainPack

    counts = {
        name: sum(getattr(domain, name) for domain in domains)
        for name in DomainPack.model_fields
        if name != "name"
    }
    padding = counts["num_padding"] / max(1, counts["num_samples"] * seq_len)
    masked = counts["num_tokens"] - counts["num_pieces"] - counts["num_targets"]
    lines = [
        f"{head:<10} {counts['num_samples']:,} samples: {counts['num_tokens']:,} tokens (none "
        f"lost), {counts['num_targets']:,} targets, {padding:.2%} padding; "
        f"{counts['num_documents_cut']:,} of {counts['num_documents']:,} documents split over "
        "several samples"
    ]
    if masked:
        lines.append(f"{'':<10} {masked:,} tokens masked out of the loss")
    if counts["num_documents_removed"]:
        lines.append(
            f"{'':<10} {counts['num_documents_removed']:,} documents, "
            f"{counts['num_tokens_removed']:,} tokens left out by removal lists"
        )
    return lines


def verify_summary(checks: Sequence[Check], *, folder: Path, deep: bool) -> str:
    lines = [
        f"{'FAILED' if check.problem else 'ok':<7} {check.name:<20} {check.problem or check.detail}"
        for check in checks
    ]
    num_failed = sum(check.problem is not None for check in checks)
    if num_failed:
        lines.append(f"{folder}: {num_failed} of {len(checks)} checks failed; do not train on it")
    elif deep:
        lines.append(f"{folder}: all checks passed")
    else:
        deeper = command(f"data_prep verify {folder} --deep")
        lines.append(f"{folder}: all checks passed; {deeper} also reads checksums")
    return "\n".join(lines)
