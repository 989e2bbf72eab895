"""The corpora of a study: general text with its tokenizer, and slices of domains.

Held-out and training documents are separated by a hash of their text, the same that the build
splits by. Reported runs and the runs that tune settings hold out different documents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study.canaries import Canary, make_canaries
from benchmarks.study.settings import TUNING_SEED, Setting
from benchmarks.study.texts import domain_texts, general_texts
from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.cleaning.passes import decontaminate, dedup_near
from data_prep.encode import split_position
from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer

_VAL_FRAC = 0.2
_REPORTED_FRAC = _VAL_FRAC / 2
"""Of all documents, those whose losses are reported; as many more are held out for tuning."""
_NGRAM_WORDS = 13


@dataclass(frozen=True)
class Folders:
    """Where the parts of a study are stored in its output folder."""

    out: Path

    @property
    def general(self) -> Path:
        return self.out / "corpora" / "general"

    def slice(self, domain: str, seed: int) -> Path:
        return self.out / "corpora" / f"{domain}-{seed}"

    def base(self, size: str) -> Path:
        return self.out / "base" / size

    def run(self, name: str) -> Path:
        return self.out / "runs" / name

    @property
    def tasks(self) -> Path:
        return self.out / "corpora" / "tasks"

    def texts(self, name: str) -> Path:
        return self.out / "corpora" / f"{name}.jsonl"


def prepare_corpora(setting: Setting, folders: Folders) -> None:
    """Build what is missing: the general corpus, then a slice per domain and seed.

    The tokenizer of a ready model is taken from its folder, which must be there.
    """
    whole = folders.out / "corpora" / "complete"
    if whole.exists():
        return
    folders.general.parent.mkdir(parents=True, exist_ok=True)
    _build_general(setting, folders)
    tokenizer = load_tokenizer(open_corpus(folders.general).tokenizer_dir)
    for domain in setting.domains:
        _build_slices(setting, folders, domain, tokenizer)
    _pack_general(setting, folders)
    whole.touch()


def canaries_of(setting: Setting, seed: int) -> list[Canary]:
    """Those in the slices of a seed."""
    return make_canaries(
        seed,
        count=setting.num_canaries,
        num_rivals=setting.num_canary_rivals,
        is_usable=lambda line: split_position(line) >= _VAL_FRAC,
    )


def heldout_texts(setting: Setting, domain: str) -> list[str]:
    """All documents of a domain that no run of any seed trains on, nor tunes by."""
    texts = domain_texts(domain, document_chars=setting.document_chars)
    return [text for text in texts if split_position(text) < _REPORTED_FRAC]


def _build_general(setting: Setting, folders: Folders) -> None:
    inputs = []
    for source, num_chars in setting.general_chars.items():
        path = folders.texts(source)
        _write_texts(path, general_texts(source, num_chars=num_chars))
        inputs.append(f"{source}={path}")
    ready = setting.ready_model
    build(
        BuildOptions(
            inputs=tuple(inputs),
            out=folders.general,
            tokenizer=str(folders.base(ready.name) / "export") if ready else None,
            train_tokenizer=None if ready else "bpe",
            train_vocab_size=None if ready else setting.vocab_size,
            val_frac=setting.general_val_frac,
            num_workers=1,
            overwrite=True,
        )
    )
    dedup_near(
        folders.general,
        threshold=0.8,
        ngram=5,
        num_perm=128,
        num_workers=1,
        name="near",
        overwrite=True,
        dry_run=False,
    )


def _pack_general(setting: Setting, folders: Folders) -> None:
    """Without documents that share words with any text of a domain that is used."""
    used = [
        str(folders.texts(f"{domain}-{seed}"))
        for domain in setting.domains
        for seed in setting.all_seeds
    ]
    decontaminate(
        folders.general,
        against=used,
        keys=["text"],
        ngram=_NGRAM_WORDS,
        min_matches=1,
        includes_val=True,
        num_workers=1,
        name="domains",
        overwrite=True,
        dry_run=False,
    )
    pack(folders.general, seq_len=setting.sequence_tokens, overwrite=True)


def _build_slices(setting: Setting, folders: Folders, domain: str, tokenizer: Tokenizer) -> None:
    """A slice for each seed, and what it holds out; the tuning seed holds out texts of its own."""
    texts = domain_texts(domain, document_chars=setting.document_chars)
    positions = [split_position(text) for text in texts]
    reported = [t for t, at in zip(texts, positions, strict=True) if at < _REPORTED_FRAC]
    tuned = [t for t, at in zip(texts, positions, strict=True) if _REPORTED_FRAC <= at < _VAL_FRAC]
    unread = iter(reported)
    training = iter(t for t, at in zip(texts, positions, strict=True) if at >= _VAL_FRAC)
    for seed in setting.all_seeds:
        again = unread if setting.heldout_of_each_seed else iter(reported)
        heldout = iter(tuned) if seed == TUNING_SEED else again
        canaries = [canary.text for canary in canaries_of(setting, seed)]
        own = _take(training, tokenizer, num_tokens=setting.slice_tokens)
        path = folders.texts(f"{domain}-{seed}")
        held = _take(heldout, tokenizer, num_tokens=setting.heldout_tokens)
        _write_texts(path, [*own, *canaries, *held])
        corpus = folders.slice(domain, seed)
        build(
            BuildOptions(
                inputs=(str(path),),
                out=corpus,
                tokenizer=str(open_corpus(folders.general).tokenizer_dir),
                val_frac=_VAL_FRAC,
                num_workers=1,
                overwrite=True,
            )
        )
        pack(corpus, seq_len=setting.sequence_tokens, overwrite=True)


def _take(texts: Iterator[str], tokenizer: Tokenizer, *, num_tokens: int) -> list[str]:
    """Whole documents until there are enough tokens.

    Raises:
        ValueError: when the domain has too few.
    """
    taken, total = [], 0
    for text in texts:
        taken.append(text)
        total += len(tokenizer.encode([text])[0])
        if total >= num_tokens:
            return taken
    raise ValueError(f"corpora: a domain has only {total:,} of {num_tokens:,} tokens left")


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    lines = (json.dumps({"text": text}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
