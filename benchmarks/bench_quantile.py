"""The exact global quantile compared with all-gather and sort: milliseconds and bytes sent.

    python -m benchmarks.bench_quantile --ranks 2 --log2-values 14 17 20 --simulate 64 1024 8192

Gloo on one machine, so the figures say how the work grows, not how fast a cluster's network is. A
second table simulates many ranks, one after the other in one process: each rank's own work and
bytes, without a network.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.machine import describe_machine
from tests.distributed import run_ranks
from training.entrodrop import quantile
from training.entrodrop.quantile import Quantile, global_quantile

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


class WaitsForOthersError(Exception):
    """A simulated rank reached an all-reduce whose sum is not known yet."""

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        self.counts = counts


def run_rank(values: Tensor, sums: list[Tensor]) -> tuple[Quantile | Tensor, float]:
    """What one rank finds, or brings to the first all-reduce beyond `sums`; and its seconds."""
    known = iter(sums)

    def all_reduce(counts: Tensor, group: dist.ProcessGroup | None) -> None:
        total = next(known, None)
        if total is None:
            raise WaitsForOthersError(counts)
        counts.copy_(total)

    with mock.patch.object(quantile, "_all_reduce", all_reduce):
        began = time.perf_counter()
        try:
            outcome: Quantile | Tensor = global_quantile(values, Q)
        except WaitsForOthersError as waiting:
            outcome = waiting.counts
        return outcome, time.perf_counter() - began


def run_simulated_ranks(values_RN: Tensor) -> tuple[list[Quantile], list[float], int]:
    """What each of R ranks finds, its seconds, and the bytes that it contributes.

    Ranks run one after the other and cannot wait, so all restart for each all-reduce and stop
    where its sum is missing. Once every sum is known, all run to the end; that round is timed.
    """
    sums: list[Tensor] = []
    while True:
        outcomes, seconds = zip(*(run_rank(values_N, sums) for values_N in values_RN), strict=True)
        if isinstance(outcomes[0], Quantile):
            return list(outcomes), list(seconds), sum(counts.nbytes for counts in sums)
        sums.append(torch.stack(outcomes).sum(0))


def print_simulation(numbers_of_ranks: list[int], tokens: int) -> None:
    """One row for each number of ranks; every rank must find what a sort of all values gives."""
    print(
        f"\nsimulated ranks of {tokens:,} tokens; own work is the median over ranks, no network\n"
    )
    print("| ranks | tokens a rank | own work, ms | our bytes | all-gather's bytes | ratio |")
    print("|---|---|---|---|---|---|")
    for num_ranks in numbers_of_ranks:
        torch.manual_seed(num_ranks)
        values_RN = torch.rand(num_ranks, tokens)
        found, seconds, num_bytes = run_simulated_ranks(values_RN)
        middle = math.ceil(Q * values_RN.numel()) - 1
        assert {of_rank.threshold for of_rank in found} == {
            float(np.sort(values_RN.numpy(), axis=None)[middle])
        }
        gathered_bytes = 4 * tokens * num_ranks
        print(
            f"| {num_ranks:,} | {tokens:,} | {statistics.median(seconds) * 1e3:.2f} "
            f"| {num_bytes:,} | {gathered_bytes:,} | {gathered_bytes / num_bytes:,.1f} |"
        )


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--log2-values", type=int, nargs="+", default=[14, 17, 20])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--simulate",
        type=int,
        nargs="*",
        default=[64, 1024, 8192],
        metavar="RANKS",
        help="numbers of ranks to simulate in one process; none: skip the second table",
    )
    parser.add_argument("--simulate-tokens", type=int, default=8192, help="of each such rank")
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
    if options.simulate:
        torch.set_num_threads(1)  # as each real process has
        print_simulation(options.simulate, options.simulate_tokens)


if __name__ == "__main__":
    main()
