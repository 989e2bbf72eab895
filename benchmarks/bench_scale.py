"""What size costs: opening and resuming 10^9 documents, listing 10^6 files, files of scores.

    python -m benchmarks.bench_scale --documents 1000000 1000000000 --files 1000000

The corpora are sparse: files of their full size that hold only what is read. Each row is a process
of its own; seconds are of its processor, memory is what it adds to its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_loader import _peak_mib

SEQ_LEN = 1024
DOCUMENT_TOKENS = 256
_PER_SAMPLE = SEQ_LEN // DOCUMENT_TOKENS
_SHARD_DOCUMENTS = 10**6
_STEP_SAMPLES = 32


def make_sparse(folder: Path, *, num_documents: int) -> None:
    """A corpus and its pack, with bounds and pieces only for the samples that `resume` reads."""
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.packing.pack import pack

    text = json.dumps({"text": "some words to begin with " * 40})
    (folder / "text.jsonl").write_text(text + "\n")
    out = folder / "corpus"
    options = {"train_tokenizer": "bpe", "train_vocab_size": 300, "val_frac": 0.0}
    build(BuildOptions((folder / "text.jsonl",), out, num_workers=1, **options))  # type: ignore[arg-type]
    pack(out, seq_len=SEQ_LEN)
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["sha256_of_the_rest"]
    first = manifest["shards"][0]
    manifest["shards"] = []
    for number in range(-(-num_documents // _SHARD_DOCUMENTS)):
        documents = min(_SHARD_DOCUMENTS, num_documents - number * _SHARD_DOCUMENTS)
        name = f"shard-train-main-{number:05d}"
        shard = {**first, "name": name, "num_documents": documents}
        shard["num_tokens"] = documents * DOCUMENT_TOKENS
        sizes = {"tokens": 2 * shard["num_tokens"], "docs": 8 * documents + 8}
        for kind, size in {**sizes, "origins": 16 * documents}.items():
            shard[kind] = _sparse(out / f"{name}.{kind}", size)
        manifest["shards"].append(shard)
    ledger = manifest["domains"][0]["ledger"]
    tokens = num_documents * DOCUMENT_TOKENS
    ledger["by_split"]["train"].update(num_documents=num_documents, num_tokens=tokens)
    ledger.update(num_documents_in=num_documents, num_documents_kept=num_documents)
    ledger.update(num_tokens_in=tokens, num_tokens_kept=tokens, num_tokens_special=0)
    (out / "manifest.json").write_text(json.dumps(manifest))
    _make_sparse_pack(out, num_documents=num_documents)


def _make_sparse_pack(out: Path, *, num_documents: int) -> None:
    from data_prep.manifest import load_manifest

    path = out / f"pack-{SEQ_LEN}" / "pack.json"
    content = json.loads(path.read_text())
    del content["sha256_of_the_rest"]
    content["corpus_fingerprint"] = load_manifest(out).fingerprint
    train = content["splits"]["train"]
    num_samples = num_documents // _PER_SAMPLE
    train["domains"][0].update(
        num_documents=num_documents,
        num_documents_cut=0,
        num_tokens=num_documents * DOCUMENT_TOKENS,
        num_samples=num_samples,
        num_pieces=num_documents,
        num_targets=num_documents * (DOCUMENT_TOKENS - 1),
        num_padding=0,
    )
    for kind, size in {"pieces": 24 * num_documents, "samples": 8 * num_samples + 8}.items():
        train[kind] = _sparse(path.parent / train[kind]["name"], size)
    path.write_text(json.dumps(content))
    pieces = np.memmap(path.parent / train["pieces"]["name"], dtype="<i8", mode="r+").reshape(-1, 3)
    samples = np.memmap(path.parent / train["samples"]["name"], dtype="<i8", mode="r+")
    for sample in _samples_read(num_samples):
        begin = sample * _PER_SAMPLE
        samples[sample : sample + 2] = begin, begin + _PER_SAMPLE
        for document in range(begin, begin + _PER_SAMPLE):
            pieces[document] = document, 0, DOCUMENT_TOKENS
            number, row = divmod(document, _SHARD_DOCUMENTS)
            docs = out / f"shard-train-main-{number:05d}.docs"
            offsets = np.memmap(docs, dtype="<i8", mode="r+")
            offsets[row : row + 2] = row * DOCUMENT_TOKENS, (row + 1) * DOCUMENT_TOKENS


def _sparse(path: Path, size: int) -> dict[str, Any]:
    with path.open("wb") as file:
        file.truncate(size)
    return {"name": path.name, "num_bytes": size, "sha256": "0" * 64}


def _samples_read(num_samples: int) -> list[int]:
    """Of the first step, and of one in the middle of an epoch."""
    from data_prep.packing.mixture import DomainShare
    from training.data.sample_order import SampleOrder

    share = DomainShare("main", range(num_samples), num_samples, 0, 0)
    order = SampleOrder((share,), seed=1)
    numbers = [first + j for first in (0, num_samples // 2) for j in range(_STEP_SAMPLES)]
    return [order.sample_at(number)[0] for number in numbers]


def open_and_resume(corpus: Path) -> list[float]:
    """Seconds to open, to the first step's samples and to those of a resume; MiB added."""
    from data_prep.shards import open_corpus
    from training.data.sample_order import SampleOrder

    before, seconds = _peak_mib(), [time.process_time()]
    index = open_corpus(corpus).open_pack(SEQ_LEN)
    order = SampleOrder(index.mixture(), seed=1)
    seconds.append(time.process_time())
    for first in (0, index.num_samples() // 2):
        for number in range(first, first + _STEP_SAMPLES):
            assert index.sample(order.sample_at(number)[0]).num_tokens == SEQ_LEN
        seconds.append(time.process_time())
    return [*np.diff(seconds).tolist(), _peak_mib() - before]


def list_files(folder: Path) -> list[float]:
    """Seconds to find the files of a folder as inputs, and to go through them again; MiB added."""
    from data_prep.reading.fields import Fields
    from data_prep.reading.folders import Globs
    from data_prep.reading.sources import find_domains

    before, began = _peak_mib(), time.process_time()
    (domain,) = find_domains([folder], globs=Globs(), fields_of={}, default=Fields(text="text"))
    assert sum(1 for _ in domain.files) == len(domain.files)
    return [time.process_time() - began, _peak_mib() - before]


def score_files(corpus: Path) -> list[float]:
    """Seconds of one rank to make the files of scores, and to hash them; MiB added."""
    from data_prep.scores_writer import describe_files, make_files
    from data_prep.shards import open_corpus

    opened, before, seconds = open_corpus(corpus), _peak_mib(), [time.process_time()]
    with tempfile.TemporaryDirectory(dir=corpus.parent) as name:
        for work in (make_files, describe_files):
            work(opened, Path(name))
            seconds.append(time.process_time())
    return [*np.diff(seconds).tolist(), _peak_mib() - before]


WORK = {"open": open_and_resume, "list": list_files, "score": score_files}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="*", default=[10**6, 10**9])
    parser.add_argument("--files", type=int, nargs="*", default=[10**5])
    parser.add_argument("--score-documents", type=int, default=2 * 10**6)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(WORK[options.work[0]](Path(options.work[1]))))
        return
    from benchmarks.machine import describe_machine

    print(f"{describe_machine()}\n\n| | seconds | MiB added |\n|---|---|---|")
    for number in options.documents:
        with tempfile.TemporaryDirectory() as name:
            make_sparse(Path(name), num_documents=number)
            opened, first, resumed, added = _in_a_process("open", Path(name, "corpus"))
        what = f"{number:,} documents: open, first step, resume"
        print(f"| {what} | {opened:.2f}, {first:.2f}, {resumed:.2f} | {added:.0f} |", flush=True)
    for number in options.files:
        with tempfile.TemporaryDirectory() as name:
            _make_files(Path(name), number)
            seconds, added = _in_a_process("list", Path(name))
        print(f"| {number:,} files: list | {seconds:.1f} | {added:.0f} |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        make_sparse(Path(name), num_documents=options.score_documents)
        made, hashed, added = _in_a_process("score", Path(name, "corpus"))
    tokens = options.score_documents * DOCUMENT_TOKENS
    print(f"| scores of {tokens:,} tokens: make, hash | {made:.1f}, {hashed:.1f} | {added:.0f} |")


def _make_files(folder: Path, number: int) -> None:
    """Empty files, a thousand in a folder; links to a few, since a disk has only so many files."""
    for first in range(0, number, 1000):
        inner = folder / f"{first // 1000:05d}"
        inner.mkdir()
        one = inner / "000.txt"
        one.touch()
        for i in range(1, min(1000, number - first)):
            os.link(one, f"{inner}/{i:03d}.txt")


def _in_a_process(work: str, folder: Path) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.bench_scale", "--work", work, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: list[float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
