"""How long training pauses for a save: ours compared with DeepSpeed's plain one.

    python -m benchmarks.bench_checkpoint --hidden 512 --layers 8

Each saves the same engine in turn, into a folder that is emptied before. Ours write the same files,
flush them to disk, hash each, and publish them by a rename; DeepSpeed's leaves them to the page
cache. In the background ours copies them to memory first, and a thread writes them while training
continues. `--folder` should be on the disk that holds the runs.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.machine import describe_machine
from tests.distributed import run_ranks
from tests.training.layouts import UnevenPack, make_regulariser, tiny_recipe
from training.checkpoints.progress import Progress
from training.checkpoints.save import CheckpointSave
from training.data.stream import SampleStream
from training.model.causal_lm import resolve_model_config
from training.model.engine import build_engine
from training.model.inputs import NO_REGULARISATION
from training.ranks.dist import init_layout
from training.run.step import train_step


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """On one rank: seconds of each save, in turn."""
    layout = init_layout(sp_size=1)
    recipe = tiny_recipe(
        model__config__hidden_size=options.hidden,
        model__config__intermediate_size=3 * options.hidden,
        model__config__num_hidden_layers=options.layers,
        model__config__vocab_size=options.vocab,
    )
    config = resolve_model_config(recipe.model, vocab_size=options.vocab, dtype=torch.float32)
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    stream = SampleStream(
        pack=UnevenPack(),  # type: ignore[arg-type]
        split="train",
        layout=layout,
        total_samples=8,
        samples_per_step=layout.dp_size,
        micro_batch_samples=1,
    )
    regulariser = make_regulariser(recipe, engine, stream.pack)
    # one step, so that the optimizer has a state to save
    train_step(engine, stream, regulariser, step=0, trained_frac=0.0, lr=recipe.optimizer.lr)
    plain_engine = engine.ds.checkpoint_engine

    def plain() -> None:
        engine.ds.checkpoint_engine = plain_engine
        engine.ds.save_checkpoint(str(folder / "plain"), tag="zero3")

    def ours(name: str, *, in_background: bool) -> CheckpointSave:
        return CheckpointSave(
            engine,
            folder / name,
            progress=Progress(step=1, tokens=0),
            identity={},
            in_background=in_background,
        )

    def foreground() -> None:
        ours("foreground", in_background=False).publish(recipe.checkpoint)

    def background() -> None:
        """The two pauses of training; not the writing between them."""
        nonlocal written_beside
        under_way = ours("background", in_background=True)
        paused = time.perf_counter()
        while not under_way.is_written:
            time.sleep(0.001)
        dist.barrier()
        written_beside = time.perf_counter() - paused
        under_way.publish(recipe.checkpoint)

    written_beside = 0.0
    saves = {"plain": plain, "foreground": foreground, "background": background}
    seconds: dict[str, list[float]] = {name: [] for name in saves}
    beside: list[float] = []
    num_bytes: dict[str, int] = {}
    for number in range(options.rounds + 1):
        for name, save in saves.items():
            written_beside = 0.0
            took = timed(save) - written_beside
            if number:  # the first round warms up
                seconds[name].append(took)
                beside += [written_beside] * (name == "background")
            num_bytes[name] = sum(
                path.stat().st_size for path in (folder / name).rglob("*") if path.is_file()
            )
            dist.barrier()
            if layout.is_main:
                shutil.rmtree(folder / name)
            dist.barrier()
    return {
        "seconds": seconds,
        "beside": statistics.median(beside),
        "bytes": num_bytes,
        "parameters": engine.num_parameters,
    }


def timed(save: Callable[[], None]) -> float:
    dist.barrier()
    began = time.perf_counter()
    save()
    dist.barrier()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = run_ranks(
            measure, options, Path(folder), world_size=options.ranks, timeout_seconds=3600
        )[0]
    print(
        f"{describe_machine()}; {options.ranks} processes, {found['parameters'] / 1e6:.1f} M "
        f"parameters in fp32, median of {options.rounds}\n"
    )
    print("| save | seconds of standstill | least and most | to plain | MB | MB/s |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(found["seconds"]["plain"])
    for name, seconds in found["seconds"].items():
        middle, size = statistics.median(seconds), found["bytes"][name] / 1e6
        print(
            f"| {name} | {middle:.2f} | {min(seconds):.2f} {max(seconds):.2f} "
            f"| {middle / base:.2f} | {size:.1f} | {size / middle:.0f} |"
        )
    print(f"\nIn the background, {found['beside']:.2f} s of writing during steps are not counted.")


if __name__ == "__main__":
    main()
