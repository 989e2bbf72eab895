"""Random samples per second from a packed corpus, compared with other loaders.

    python -m benchmarks.bench_loader --tokens 100000000

Every loader reads the same ids on one core, from the page cache, in the same random order. For the
peers: pip install --target DIR --no-deps litdata mosaicml-streaming (and what they miss), and
PYTHONPATH=DIR; missing ones are skipped. Then: opening and resuming a sparse corpus of
10^9 tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np

SAMPLE_TOKENS = 4096
EOS = 0
Read = Callable[[int], np.ndarray]


def make_ids(path: Path, *, num_tokens: int) -> None:
    """Flat ids with an EOS after every document, with realistic lengths."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 32_000, num_tokens, dtype=np.uint16)
    lengths = rng.lognormal(6.5, 1.2, num_tokens // 500).astype(np.int64) + 2
    ends = np.cumsum(lengths)
    ids[ends[ends < num_tokens] - 1] = EOS
    ids[-1] = EOS
    np.save(path, ids)


def ours(folder: Path, ids: np.ndarray) -> tuple[Read, int]:
    """PackIndex.sample: assembled documents, with positions and the loss mask."""
    from data_prep.shards import open_corpus

    index = open_corpus(folder / "corpus").open_pack(SAMPLE_TOKENS)
    return lambda i: index.sample(i).ids, index.num_samples()


def plain_memmap(folder: Path, ids: np.ndarray) -> tuple[Read, int]:
    """The limit: a copy of 4,096 neighbours, no documents known."""
    mapped = np.load(folder / "ids.npy", mmap_mode="r")
    count = len(mapped) // SAMPLE_TOKENS
    return (lambda i: mapped[i * SAMPLE_TOKENS : (i + 1) * SAMPLE_TOKENS].astype(np.int64)), count


def datasets_mapped(folder: Path, ids: np.ndarray) -> tuple[Read, int]:
    """A saved Arrow data set of rows of 4,096 ids, memory-mapped, as numpy."""
    import datasets

    count = len(ids) // SAMPLE_TOKENS
    rows = ids[: count * SAMPLE_TOKENS].reshape(count, SAMPLE_TOKENS)
    features = datasets.Features(
        {"ids": datasets.Sequence(datasets.Value("uint16"), length=SAMPLE_TOKENS)}
    )
    made = datasets.Dataset.from_generator(
        lambda: ({"ids": row} for row in rows), features=features, cache_dir=str(folder / "cache")
    )
    made.save_to_disk(str(folder / "datasets"))
    opened = datasets.load_from_disk(str(folder / "datasets")).with_format("numpy")
    return lambda i: opened[i]["ids"].astype(np.int64), count


def litdata(folder: Path, ids: np.ndarray) -> tuple[Read, int]:
    """Chunks of 64 MB with its loader for tokens."""
    import torch
    from litdata import StreamingDataset
    from litdata.streaming import TokensLoader
    from litdata.streaming.cache import Cache

    out = folder / "litdata"
    out.mkdir()
    loader = TokensLoader(block_size=SAMPLE_TOKENS)
    cache = Cache(str(out), chunk_bytes="64MB", item_loader=loader)
    count = len(ids) // SAMPLE_TOKENS
    for i in range(count):
        part = ids[i * SAMPLE_TOKENS : (i + 1) * SAMPLE_TOKENS].astype(np.int32)
        cache._add_item(i, torch.from_numpy(part))
    cache.done()
    cache.merge()
    opened = StreamingDataset(str(out), item_loader=TokensLoader(block_size=SAMPLE_TOKENS))
    return lambda i: opened[i].numpy().astype(np.int64), len(opened)


def mosaicml_streaming(folder: Path, ids: np.ndarray) -> tuple[Read, int]:
    """Its own shards (MDS) of rows of 4,096 ids, local."""
    _stand_in_for_torchvision()
    from streaming import MDSWriter, StreamingDataset

    count = len(ids) // SAMPLE_TOKENS
    columns = {"ids": f"ndarray:uint16:{SAMPLE_TOKENS}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for i in range(count):
            writer.write({"ids": ids[i * SAMPLE_TOKENS : (i + 1) * SAMPLE_TOKENS]})
    opened = StreamingDataset(local=str(folder / "mds"), batch_size=1)
    return lambda i: opened[i]["ids"].astype(np.int64), count


def _stand_in_for_torchvision() -> None:
    """It is imported only for images, and may not match the installed torch."""
    import types

    for name, members in (
        ("torchvision", ()),
        ("torchvision.datasets", ("VisionDataset",)),
        ("torchvision.transforms", ()),
        ("torchvision.transforms.functional", ("to_tensor",)),
    ):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for member in members:
            setattr(module, member, type(member, (), {}))
        sys.modules[name] = module


LOADERS: dict[str, Callable[[Path, np.ndarray], tuple[Read, int]]] = {
    "ours": ours,
    "plain memmap copy": plain_memmap,
    "datasets, memory-mapped": datasets_mapped,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
}


def samples_a_second(loader: str, folder: Path, *, seconds: float) -> float:
    """Median of five rounds of random reading, after one to warm up."""
    ids = np.load(folder / "ids.npy", mmap_mode="r")
    read, count = LOADERS[loader](folder, ids)
    rng = np.random.default_rng(1)
    speeds = []
    for _ in range(6):
        began, num_read = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            sample = read(int(rng.integers(count)))
            assert sample.shape == (SAMPLE_TOKENS,) and sample.dtype == np.int64
            num_read += 1
        speeds.append(num_read / spent)
    return statistics.median(speeds[1:])


def make_sparse_corpus(folder: Path, *, num_tokens: int) -> None:
    """A corpus of documents of 1,000 zeros that takes no space on disk."""
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.reading.fields import Fields

    small = folder / "small.jsonl"
    small.write_text(json.dumps({"ids": [1] * 10}) + "\n")
    options = BuildOptions(
        inputs=(small,),
        tokenizer=str(folder / "tokenizer"),
        out=folder / "sparse",
        fields=Fields(ids="ids"),
        val_frac=0.0,
        num_workers=1,
    )
    build(options)
    path = folder / "sparse" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["sha256_of_the_rest"]  # it is recomputed below
    num_documents = num_tokens // 1000
    shard = manifest["shards"][0]
    sizes = {
        "tokens": num_tokens * (2 if manifest["token_dtype"] == "uint16" else 4),
        "origins": num_documents * 16,
    }
    for name, size in sizes.items():
        with (path.parent / shard[name]["name"]).open("wb") as file:
            file.truncate(size)
        shard[name]["num_bytes"] = size
    offsets = np.arange(num_documents + 1, dtype="<i8") * 1000
    offsets.tofile(path.parent / shard["docs"]["name"])
    shard["docs"]["num_bytes"] = offsets.nbytes
    ledger = manifest["domains"][0]["ledger"]
    for account in (shard, ledger["by_split"]["train"]):
        account.update(num_documents=num_documents, num_tokens=num_tokens)
    ledger.update(
        num_documents_in=num_documents,
        num_documents_kept=num_documents,
        num_tokens_in=num_tokens,
        num_tokens_kept=num_tokens,
    )
    path.write_text(json.dumps(manifest))


def open_and_resume(corpus: Path) -> None:
    """In a fresh process: seconds to open, to find the place of a resume, and peak memory."""
    before = _peak_mib()
    began = time.perf_counter()
    from data_prep.shards import open_corpus
    from training.data.sample_order import SampleOrder

    imported = time.perf_counter() - began
    began = time.perf_counter()
    index = open_corpus(corpus).open_pack(SAMPLE_TOKENS)
    opened = time.perf_counter() - began
    began = time.perf_counter()
    order = SampleOrder(index.mixture(), seed=1)
    for number in range(123_456, 123_456 + 32):  # a step somewhere in the middle
        index.sample(order.sample_at(number % index.num_samples())[0])
    resumed = time.perf_counter() - began
    print(json.dumps([imported, opened, resumed, _peak_mib() - before]))


def _peak_mib() -> float:
    """Of this program alone; getrusage would count what its parent had before it started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=100_000_000)
    parser.add_argument("--sparse-tokens", type=int, nargs="+", default=[10**7, 10**9])
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round; default: 2")
    parser.add_argument("--loader", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.loader:
        print(samples_a_second(options.loader, options.folder, seconds=options.seconds))
    elif options.open:
        open_and_resume(options.open)
    else:
        with tempfile.TemporaryDirectory() as name:
            run(Path(name), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """Make the data, measure every loader in its own process, print the tables."""
    from benchmarks.machine import describe_machine
    from benchmarks.text_corpus import train_bpe
    from data_prep.build import build
    from data_prep.build_options import BuildOptions
    from data_prep.packing.pack import pack
    from data_prep.reading.fields import Fields

    text = folder / "text.jsonl"
    text.write_text(json.dumps({"text": Path(__file__).read_text()}) + "\n")
    train_bpe(text, vocab_size=400, to=folder / "tokenizer")
    settings = folder / "tokenizer" / "tokenizer.json"
    content = json.loads(settings.read_text())
    vocab = content["model"]["vocab"]
    vocab |= {f"<{i}>": i for i in range(len(vocab), 32_000)}  # ids that the corpus may hold
    settings.write_text(json.dumps(content))
    make_ids(folder / "ids.npy", num_tokens=options.tokens)
    build(
        BuildOptions(
            inputs=(folder / "ids.npy",),
            tokenizer=str(folder / "tokenizer"),
            out=folder / "corpus",
            fields=Fields(ids="ids"),
            val_frac=0.0,
            split_on_eos=True,
        )
    )
    pack(folder / "corpus", seq_len=SAMPLE_TOKENS)
    command = [sys.executable, "-m", "benchmarks.bench_loader"]
    speeds: dict[str, float] = {}
    for loader in LOADERS:
        flags = ["--loader", loader, "--folder", str(folder), "--seconds", str(options.seconds)]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {loader}: skipped: {done.stderr.splitlines()[-1]}", file=sys.stderr)
            continue
        speeds[loader] = float(done.stdout.split()[-1])
    print(f"{describe_machine()}; {options.tokens:,} tokens\n")
    print(f"| loader | samples of {SAMPLE_TOKENS:,} tokens a second | ours to it |")
    print("|---|---|---|")
    for loader, speed in speeds.items():
        print(f"| {loader} | {speed:,.0f} | {speeds['ours'] / speed:.2f} |")
    print("\n| sparse corpus | import, s | open, s | first step of a resume, s | memory, MiB |")
    print("|---|---|---|---|---|")
    for num_tokens in options.sparse_tokens:
        subprocess.run(["rm", "-rf", str(folder / "sparse")], check=True)
        make_sparse_corpus(folder, num_tokens=num_tokens)
        pack(folder / "sparse", seq_len=SAMPLE_TOKENS)
        flags = ["--open", str(folder / "sparse")]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
        imported, opened, resumed, grown = json.loads(done.stdout)
        print(f"| {num_tokens:,} | {imported:.2f} | {opened:.3f} | {resumed:.3f} | {grown:.0f} |")


if __name__ == "__main__":
    main()
