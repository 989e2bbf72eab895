"""The head compared with other implementations, with and without entropies: time and memory.

    python -m benchmarks.bench_head --tokens 1024 --hidden 512 --vocab 151936

Peers that are not installed are skipped; put them on PYTHONPATH:
`pip install --no-deps --target DIR trl cut-cross-entropy liger-kernel`. Liger needs a GPU.

Each head runs forward and backward in a process of its own, so that its peak is its own; the
rounds of all heads alternate. A round's time is the median of warm calls, on a GPU by CUDA's
events. On a CPU the peak is the growth of the resident set from when the inputs are in place, in a
process of its own that returns freed blocks to the system at once (glibc would keep those below
32 MiB and distort the figure); on a GPU it is the allocator's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.device_time import median_milliseconds
from benchmarks.machine import describe_machine
from tests.training.entrodrop.test_head import plain_head
from training.entrodrop.head import (
    linear_cross_entropy_with_entropy,
    weighted_linear_cross_entropy,
)

Head = Callable[[Tensor, Tensor, Tensor], Tensor]


def one_pass(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    weights = torch.full(targets.shape, 1.0 / len(targets), device=targets.device)
    loss, _, _ = weighted_linear_cross_entropy(hidden, weight, targets, weights)
    return loss


def two_passes(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets)
    return nll.mean()


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    nll, entropy = plain_head(hidden, weight, targets)
    return nll.mean() + 0.0 * entropy.detach().mean()


def plain_loss_only(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy((hidden @ weight.T).float(), targets)


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.trainer.utils import entropy_from_logits

    logits = hidden @ weight.T
    with torch.no_grad():
        entropy_from_logits(logits)
    return functional.cross_entropy(logits.float(), targets)


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return functional.linear_cross_entropy(
        hidden, weight, targets, options=torch.nn.LinearCrossEntropyOptions()
    )


def deepspeed_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from deepspeed.runtime.chunked_cross_entropy import chunked_cross_entropy

    return chunked_cross_entropy(hidden @ weight.T, targets)


def cut_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    # its kernels need a GPU; elsewhere it compiles the plain version
    impl = "cce" if hidden.is_cuda else "torch_compile"
    return linear_cross_entropy(hidden, weight, targets, impl=impl)


def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(weight, hidden, targets)


_BOTH, _LOSS = "loss of each token, entropy", "mean loss"
HEADS: dict[str, tuple[Head, str]] = {
    "one_pass": (one_pass, _BOTH),
    "two_passes": (two_passes, _BOTH),
    "plain": (plain, _BOTH),
    "trl": (trl, "mean loss, entropy"),
    "plain_loss_only": (plain_loss_only, _LOSS),
    "torch_chunked": (torch_chunked, _LOSS),
    "deepspeed_chunked": (deepspeed_chunked, _LOSS),
    "cut_cross_entropy": (cut_cross_entropy, _LOSS),
    "liger": (liger, _LOSS),
}


def why_not(name: str) -> str:
    """What a head requires and this machine has not; empty where it runs."""
    needs = {"trl": "trl", "cut_cross_entropy": "cut_cross_entropy", "liger": "liger_kernel"}
    if name == "torch_chunked" and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return "torch has it from 2.13 on"
    if name in needs and find_spec(needs[name]) is None:
        return f"{needs[name]} is not installed"
    return "needs a GPU" if name == "liger" and not torch.cuda.is_available() else ""


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
    parser.add_argument("--calls", type=int, help="timed in a round (20 on a GPU, else 1)")
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--head", choices=HEADS, help=argparse.SUPPRESS)
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.head:
        print(json.dumps(measure(options)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.heads}
    for done in range(options.rounds):
        for name in options.heads:
            if why_not(name):
                continue
            timed = measure_in_process(name)
            is_of_both = torch.cuda.is_available()
            memory = timed if is_of_both else measure_in_process(name, only_memory=True)
            results[name].append(timed | {"bytes": memory["bytes"]})
            print(f"round {done + 1}/{options.rounds}: {name}", file=sys.stderr)
    print_table(options, {name: rounds for name, rounds in results.items() if rounds})


def measure_in_process(name: str, *, only_memory: bool = False) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.bench_head", *sys.argv[1:], "--head", name]
    environment = dict(os.environ)
    if only_memory:
        command.append("--only-memory")
        environment["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds and peak bytes over the inputs of one forward and backward, and the loss."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, dtype=dtype, device=device)
    weight = torch.empty(options.vocab, options.hidden, dtype=dtype, device=device)
    weight.normal_(std=options.hidden**-0.5)
    targets = torch.randint(0, options.vocab, (options.tokens,), device=device)
    hidden.requires_grad_()
    weight.requires_grad_()
    head, _ = HEADS[options.head]

    def once() -> Tensor:
        hidden.grad = weight.grad = None
        loss = head(hidden, weight, targets)
        loss.backward()
        return loss

    head(hidden[:8], weight, targets[:8]).backward()  # libraries loaded, kernels compiled
    hidden.grad = weight.grad = None
    before = reset_peak(device)
    found = {"loss": once().item(), "bytes": peak(device) - before}
    if not options.only_memory:
        calls = options.calls or (20 if device == "cuda" else 1)
        found["ms"] = median_milliseconds(once, device, rounds=calls)
    return found


def reset_peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the peak
    return peak(device)


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kib) * 1024


def print_table(options: argparse.Namespace, results: dict[str, list[dict[str, float]]]) -> None:
    print(f"{describe_machine()}")
    print(f"T={options.tokens} D={options.hidden} V={options.vocab} {options.dtype}, forward and")
    print(f"backward, median of {options.rounds} rounds\n")
    print("| head | gives | ms | to plain | peak MiB over inputs | to plain | loss |")
    print("|---|---|---|---|---|---|---|")
    medians = {
        name: {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }
    base = medians.get("plain") or next(iter(medians.values()))
    for name, found in medians.items():
        # a tiny problem may fit into memory the process already has
        memory = f"{found['bytes'] / base['bytes']:.3f}" if base["bytes"] else "-"
        print(
            f"| {name} | {HEADS[name][1]} | {found['ms']:,.2f} "
            f"| {found['ms'] / base['ms']:.2f} | {found['bytes'] / 2**20:,.0f} "
            f"| {memory} | {found['loss']:.5f} |"
        )


if __name__ == "__main__":
    main()
