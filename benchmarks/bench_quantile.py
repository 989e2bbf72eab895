"""The exact global quantile beside all-gather and sort: milliseconds and bytes sent, 2 processes.

    python -m benchmarks.bench_quantile --ranks 2 --log2-values 14 17 20

Gloo on one machine, so the figures say how the work grows, not how fast a cluster's network is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine import describe_machine
from tests.distributed import run_ranks
from training.entrodrop.quantile import global_quantile

Q = 0.5


def all_gather_and_sort(values: Tensor) -> float:
    """What others do: every rank holds all values."""
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, values)
    whole = torch.cat(gathered)
    return float(whole.kthvalue(max(1, -(-int(Q * len(whole) * 2) // 2))).values)


def ours(values: Tensor) -> float:
    return global_quantile(values, Q).threshold


def seconds_on_rank(log2_values: list[int], rounds: int) -> dict[str, list[float]]:
    """Median seconds of both, for each number of values; they must agree."""
    dist.init_process_group("gloo")
    results: dict[str, list[float]] = {"ours": [], "all_gather": []}
    for log2 in log2_values:
        torch.manual_seed(dist.get_rank())
        values = torch.rand(1 << log2)
        times: dict[str, list[float]] = {"ours": [], "all_gather": []}
        for _ in range(rounds + 1):  # the first round only warms up
            found = {
                name: timed(function, values, times[name])
                for name, function in (("ours", ours), ("all_gather", all_gather_and_sort))
            }
            assert found["ours"] == found["all_gather"]
        for name, seconds in times.items():
            results[name].append(statistics.median(seconds[1:]))
    return results


def timed(function: Callable[[Tensor], float], values: Tensor, seconds: list[float]) -> float:
    dist.barrier()
    began = time.perf_counter()
    result = function(values)
    seconds.append(time.perf_counter() - began)
    return result


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--log2-values", type=int, nargs="+", default=[14, 17, 20])
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    measured = run_ranks(
        seconds_on_rank, options.log2_values, options.rounds, world_size=options.ranks
    )
    # int64 counts of all passes: population and NaNs, then 11 + 11 + 10 bits
    bytes_ours = 8 * (2 + 2048 + 2048 + 1024)
    print(
        f"{describe_machine()}; {options.ranks} processes over gloo, median of {options.rounds}\n"
    )
    print("| values a rank | ours, ms | all-gather, kthvalue, ms | ratio | our bytes | its bytes |")
    print("|---|---|---|---|---|---|")
    for i, log2 in enumerate(options.log2_values):
        slowest = {name: max(rank[name][i] for rank in measured) for name in measured[0]}
        print(
            f"| 2^{log2} | {slowest['ours'] * 1e3:.1f} | {slowest['all_gather'] * 1e3:.1f} "
            f"| {slowest['ours'] / slowest['all_gather']:.2f} | {bytes_ours:,} "
            f"| {4 * (options.ranks - 1) << log2:,} |"
        )


if __name__ == "__main__":
    main()
