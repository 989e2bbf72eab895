"""Raw text to token shards: ours, its ceiling and other tools, on the same corpus and cores.

    python -m benchmarks.bench_data_prep --mb 110 --rounds 3

Each way runs in a process of its own, in turn, and only its work is timed: imports are not. For
datatrove: pip install --target DIR --no-deps datatrove loguru humanize, and PYTHONPATH=DIR.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.text_corpus import read_texts, train_bpe, write_corpus

CORES = os.cpu_count() or 1
_BATCH = 256


def ceiling(corpus: Path, tokenizer: Path, out: Path) -> float:
    """The tokenizer's own library alone: texts in memory, ids left inside, nothing written."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = read_texts(corpus)
    began = time.perf_counter()
    for start in range(0, len(texts), _BATCH):
        backend.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
    return time.perf_counter() - began


def gigatoken_alone(corpus: Path, tokenizer: Path, out: Path) -> float:
    """The fast path's library alone: texts in memory, one thread per core, nothing written."""
    from gigatoken.gigatoken_rs import load_hf_json

    backend = load_hf_json((tokenizer / "tokenizer.json").read_bytes())
    texts = read_texts(corpus)
    began = time.perf_counter()
    backend.encode_batch(texts, parallel=True)
    return time.perf_counter() - began


def ours(corpus: Path, tokenizer: Path, out: Path, *, fast_path: bool = True) -> float:
    """`python -m data_prep build`: JSON lines to a finished, checked, durable folder."""
    from data_prep.build import build
    from data_prep.build_options import BuildOptions

    options = BuildOptions(
        inputs=(corpus,),
        tokenizer=str(tokenizer),
        out=out,
        num_workers=CORES,
        fast_path=fast_path,
    )
    began = time.perf_counter()
    build(options)
    return time.perf_counter() - began


def ours_by_the_same_library(corpus: Path, tokenizer: Path, out: Path) -> float:
    """The same with --no-fast-path."""
    return ours(corpus, tokenizer, out, fast_path=False)


def by_mpi(ranks: int, corpus: Path, tokenizer: Path, out: Path) -> float:
    """The same by the command line under mpirun, a core for each rank, Python's start included."""
    from tests.mpi import find_mpirun

    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    build = ["-m", "data_prep", "build", "--input", corpus, "--tokenizer", tokenizer]
    build += ["--out", out, "--no-fast-path"]
    command = [str(find_mpirun()), "-n", str(ranks), sys.executable, *map(str, build)]
    began = time.perf_counter()
    subprocess.run(command, env=os.environ | root, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


_backend = None


def _start_worker(path: str) -> None:
    global _backend
    from tokenizers import Tokenizer

    _backend = Tokenizer.from_file(path)


def _encode_line(line: str) -> list[int]:
    assert _backend is not None
    return _backend.encode(json.loads(line)["text"], add_special_tokens=False).ids


def pool_imap(corpus: Path, tokenizer: Path, out: Path) -> float:
    """The common script (Megatron-LM's preprocess_data): a Pool whose lists of ids are pickled."""
    began = time.perf_counter()
    out.mkdir()
    path = str(tokenizer / "tokenizer.json")
    lengths = []
    with (
        multiprocessing.Pool(CORES, _start_worker, (path,)) as pool,
        corpus.open(encoding="utf-8") as lines,
        (out / "tokens.bin").open("wb") as tokens,
    ):
        for ids in pool.imap(_encode_line, lines, 32):
            tokens.write(np.array(ids, dtype=np.uint16).tobytes())
            lengths.append(len(ids))
        np.array(lengths).tofile(out / "tokens.idx")
    return time.perf_counter() - began


def datatrove(corpus: Path, tokenizer: Path, out: Path) -> float:
    """Its DocumentTokenizer with one local worker per core, each with a part of the lines."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    parts = out.with_name("parts")
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir()
    lines = corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    for rank in range(CORES):  # it distributes files, not lines
        (parts / f"{rank}.jsonl").write_text("".join(lines[rank::CORES]), encoding="utf-8")
    writer = DocumentTokenizer(
        output_folder=str(out),
        tokenizer_name_or_path=str(tokenizer / "tokenizer.json"),
        eos_token="<eos>",
        shuffle_documents=False,
    )
    executor = LocalPipelineExecutor(
        pipeline=[JsonlReader(str(parts)), writer],
        tasks=CORES,
        workers=CORES,
        logging_dir=str(out.with_name("logs")),
        skip_completed=False,
    )
    began = time.perf_counter()
    executor.run()
    return time.perf_counter() - began


VERBS = (
    "verify",
    "verify --deep",
    "stats",
    "dedup",
    "dedup --near",
    "decontaminate",
    "pack",
    "pack --policy concat --overwrite",
    "export-megatron",
)
WAYS: dict[str, Callable[[Path, Path, Path], float]] = {
    "ceiling": ceiling,
    "gigatoken alone": gigatoken_alone,
    "ours, same library": ours_by_the_same_library,
    "ours": ours,
    "Pool.imap": pool_imap,
    "datatrove": datatrove,
    "MPI, 1 rank": partial(by_mpi, 1),
    "MPI, 2 ranks": partial(by_mpi, 2),
}


def measure(way: str, *, corpus: Path, tokenizer: Path, folder: Path) -> float:
    """Seconds of one way in a fresh process."""
    for name in ("out", "parts", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    paths = [str(corpus), str(tokenizer), str(folder / "out")]
    command = [sys.executable, "-m", "benchmarks.bench_data_prep", "--way", way, "--paths", *paths]
    threads = {"RAYON_NUM_THREADS": str(CORES), "TOKENIZERS_PARALLELISM": "true"}
    # A pool worker has one core: its tokenizer must not start threads of its own.
    is_alone = way in ("ceiling", "gigatoken alone")
    environment = os.environ | (threads if is_alone else {"TOKENIZERS_PARALLELISM": "false"})
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{way} failed:\n{found.stderr[-3000:]}")
    return float(found.stdout.split()[-1])


def measure_verbs(corpus: Path, verbs: Sequence[str]) -> dict[str, float]:
    """Seconds of each verb that reads a corpus, Python's start included."""
    benchmark = corpus.with_name("benchmark.jsonl")
    benchmark.write_text(json.dumps({"text": Path(__file__).read_text(encoding="utf-8")}))
    found = {}
    for line in verbs:
        verb, *words = line.split()
        needs = {
            "pack": ["--seq-len", "4096"],
            "decontaminate": ["--against", str(benchmark)],
            "export-megatron": ["--out", str(corpus.with_name("scratch"))],
        }
        command = [sys.executable, "-m", "data_prep", verb, str(corpus), *words]
        began = time.perf_counter()
        subprocess.run([*command, *needs.get(verb, [])], capture_output=True, check=True)
        found[line] = time.perf_counter() - began
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mb", type=int, default=110, help="MB of text; default: 110")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=[], help="default: all")
    parser.add_argument(
        "--verbs", nargs="*", choices=VERBS, help="of the corpus; default: all, with all ways"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--paths", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(WAYS[options.way](*options.paths))
        return
    with tempfile.TemporaryDirectory() as name:
        run(Path(name), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Make the corpus, measure all ways in turn, print the tables."""
    from benchmarks.machine import describe_machine
    from data_prep.shards import open_corpus
    from tests.mpi import find_mpirun

    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer"
    num_documents = write_corpus(corpus, num_bytes=options.mb * 10**6)
    train_bpe(corpus, vocab_size=options.vocab_size, to=tokenizer)
    ways = [way for way in WAYS if way in (options.ways or WAYS)]
    is_there = {"datatrove": find_spec("datatrove"), "MPI": find_mpirun()}
    ways = [way for way in ways if is_there.get(way.partition(",")[0], True)]
    if not ways:
        raise SystemExit(f"{', '.join(options.ways)}: not installed here")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    num_tokens = 0
    for round_ in range(options.rounds):
        for way in ways[:: -1 if round_ % 2 else 1]:  # a drift of the machine's speed cancels
            spent = measure(way, corpus=corpus, tokenizer=tokenizer, folder=folder)
            seconds[way].append(spent)
            print(f"  {way}: {spent:.1f} s", file=sys.stderr, flush=True)
            if way == "ours":
                built = open_corpus(folder / "out")
                num_tokens = built.num_tokens("train") + built.num_tokens("val")
    print(f"{describe_machine()}; median of {options.rounds}")
    tokens = f", {num_tokens:,} tokens" if num_tokens else ""
    print(f"{num_documents:,} documents, {options.mb} MB of text{tokens}\n")
    reference = "ceiling" if "ceiling" in ways else ways[0]
    print(f"| way | seconds | spread | M tokens/s | speed to {reference}'s, of the same round |")
    print("|---|---|---|---|---|")
    for way, spent in seconds.items():
        middle = statistics.median(spent)
        # counted in what `ours` has built
        speed = f"{num_tokens / middle / 1e6:.2f}" if num_tokens else "not counted"
        print(
            f"| {way} | {middle:.1f} | {min(spent):.1f} to {max(spent):.1f} | {speed} "
            f"| {_times_as_fast(spent, seconds[reference]):.2f} |"
        )
    if {"MPI, 1 rank", "MPI, 2 ranks"} <= set(ways):
        times = _times_as_fast(seconds["MPI, 2 ranks"], seconds["MPI, 1 rank"])
        print(f"\n2 MPI ranks are {times:.2f} times as fast as 1")
    if verbs := VERBS if options.verbs is None and not options.ways else options.verbs:
        if not (folder / "out" / "manifest.json").is_file():  # another way has written there
            measure("ours", corpus=corpus, tokenizer=tokenizer, folder=folder)
        print("\n| verb | seconds | MB of text a second |\n|---|---|---|")
        for verb, spent in measure_verbs(folder / "out", verbs).items():
            print(f"| {verb} | {spent:.1f} | {options.mb / spent:.0f} |")


def _times_as_fast(seconds: Sequence[float], other: Sequence[float]) -> float:
    """Median over rounds, each compared with itself."""
    return statistics.median(b / a for a, b in zip(seconds, other, strict=True))


if __name__ == "__main__":
    main()
