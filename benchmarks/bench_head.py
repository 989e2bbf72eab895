"""The head beside plain logits and torch's linear cross-entropy: seconds and peak bytes.

    python -m benchmarks.bench_head --tokens 1024 --hidden 512 --vocab 151936

Each head runs forward and backward in a process of its own, so that its peak is its own; the
rounds of all heads alternate. On a CPU the peak is that of the resident set over what it was with
the inputs in place, in a process of its own in which freed blocks go back to the system at once
(glibc would keep those below 32 MiB, and the figure would show its habits); on a GPU it is the
allocator's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.machine import describe_machine
from tests.training.entrodrop.test_head import plain_head
from training.entrodrop.head import linear_cross_entropy_with_entropy

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets)
    return nll.mean()


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    nll, entropy = plain_head(hidden, weight, targets)
    return nll.mean() + 0.0 * entropy.detach().mean()


def plain_loss_only(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((hidden @ weight.T).float(), targets)


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.linear_cross_entropy(
        hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions()
    )


HEADS: dict[str, tuple[Head, str]] = {
    "ours": (ours, "loss of each token, entropy"),
    "plain": (plain, "loss of each token, entropy"),
    "plain_loss_only": (plain_loss_only, "mean loss"),
    "torch_chunked": (torch_chunked, "mean loss"),
}


def main() -> None:
    """Measure every head in turn and print one table with ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--head", choices=HEADS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head:
        print(json.dumps(measure(options)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.heads}
    for done in range(options.rounds):
        for name in options.heads:
            if name == "torch_chunked" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
                continue  # torch before 2.13
            timed = measure_in_process(name)
            memory = timed if torch.cuda.is_available() else measure_in_process(name, frees=True)
            results[name].append(timed | {"bytes": memory["bytes"]})
            print(f"round {done + 1}/{options.rounds}: {name}", file=sys.stderr)
    print_table(options, {name: rounds for name, rounds in results.items() if rounds})


def measure_in_process(name: str, *, frees: bool = False) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_head", *sys.argv[1:], "--head", name]
    environment = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if frees else {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak bytes over the inputs of one forward and backward, and the loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, dtype=dtype, device=device)
    weight = torch.empty(options.vocab, options.hidden, dtype=dtype, device=device)
    weight.normal_(std=options.hidden**-0.5)
    targets = torch.randint(0, options.vocab, (options.tokens,), device=device)
    hidden.requires_grad_()
    weight.requires_grad_()
    head, _ = HEADS[options.head]
    head(hidden[:8], weight, targets[:8])  # libraries loaded, threads started
    before = reset_peak(device)
    began = time.perf_counter()
    loss = head(hidden, weight, targets)
    loss.backward()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": peak(device) - before, "loss": loss.item()}


def reset_peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
    return peak(device)


def peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024


def print_table(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> None:
    print(f"{describe_machine()}")
    print(f"T={options.tokens} D={options.hidden} V={options.vocab} {options.dtype}, forward and")
    print(f"backward, median of {options.rounds}\n")
    print("| head | gives | seconds | to plain | peak MiB over inputs | to plain | loss |")
    print("|---|---|---|---|---|---|---|")
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    base = medians.get("plain") or next(iter(medians.values()))
    for name, found in medians.items():
        print(
            f"| {name} | {HEADS[name][1]} | {found['seconds']:.2f} "
            f"| {found['seconds'] / base['seconds']:.2f} | {found['bytes'] / 2**20:,.0f} "
            f"| {found['bytes'] / base['bytes']:.3f} | {found['loss']:.5f} |"
        )


if __name__ == "__main__":
    main()
