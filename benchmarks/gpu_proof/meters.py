"""What a step takes beside time: launches, waits for the device, and memory beside its forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_proof.rows import Figures
from benchmarks.step_meters import Operators
from benchmarks.step_workload import Bench
from launch.planner.forecast import make_run
from launch.planner.machine import Machine
from launch.planner.memory import peak_moments
from launch.planner.models import find_architecture
from launch.planner.rank import Phase
from tests.launch.measured_memory import peaks_of_steps
from training.config.recipe import Recipe
from training.ranks.phase_memory import PHASES

_MOST = 1 / (1 - Machine.margin_frac)
"""What the planner's own margin covers: above it, a run that it lets start may not fit."""
_LEAST = 0.8
"""Below it, the planner asks for larger machines than needed."""


def count_launches(work: Callable[[], object], device: str, *, micro_steps: int) -> Figures:
    """Of one call of `work`, by micro-step; on a CPU the calls of ATen's operators."""
    if device == "cpu":
        with Operators() as operators:
            work()
        return {"operators": operators.calls / micro_steps}
    # the runtime's calls come with the device's activities; the host's operators would be many
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
    calls = {event.key: event.count for event in profiler.key_averages()}
    return {name: count / micro_steps for name, count in sums_of_calls(calls).items()}


def sums_of_calls(calls: Mapping[str, int]) -> dict[str, int]:
    """Launches and synchronisations out of calls by name, as of `cudaLaunchKernelExC`.

    A copy to the host from memory that is not pinned waits as well, and counts where CUDA waits by
    a call of its own.

    Raises:
        AssertionError: when there is no launch: the profiler saw none of CUDA's calls.
    """
    of_cuda = {name: count for name, count in calls.items() if name.startswith("cu")}
    sums = {
        figure: sum(count for name, count in of_cuda.items() if part in name)
        for figure, part in (("launches", "Launch"), ("synchronisations", "Synchronize"))
    }
    assert sums["launches"], f"no launch among {len(calls)} kinds of events"
    return sums


def peaks_on_gpu(bench: Bench, *, held_bytes: int) -> dict[str, float]:
    """Bytes by phase of the steps since the last call.

    Args:
        held_bytes: allocated before the engine was built, by others.
    """
    allocated_gib = bench.engine.memory.take()[:-1:2]
    return {
        phase: gib * 2**30 - held_bytes
        for phase, gib in zip(PHASES, allocated_gib, strict=True)
        if gib
    }


def peaks_on_cpu(recipe: Recipe) -> dict[str, float]:
    """Bytes of live tensors by phase, in steps of an engine of its own."""
    return {phase: float(peak) for phase, peak in peaks_of_steps(recipe).items()}


def forecast_bytes(recipe: Recipe, *, on_gpu: bool) -> dict[str, float]:
    """By phase of a step on one rank, in the words of the measured ones."""
    moments = peak_moments(make_run(recipe, find_architecture(recipe), world_size=1, on_gpu=on_gpu))
    names: dict[str, Phase] = {"forward": "forward", "backward": "backward", "update": "step"}
    return {name: float(moments[planned].total) for name, planned in names.items()}


def compare(measured: dict[str, float], recipe: Recipe, *, on_gpu: bool) -> Figures:
    """GiB by phase and measured to forecast; the largest phase has to be near its forecast."""
    forecast = forecast_bytes(recipe, on_gpu=on_gpu)
    figures = {f"{phase}_gib": measured[phase] / 2**30 for phase in forecast}
    figures |= {
        f"{phase}_to_forecast": measured[phase] / expected for phase, expected in forecast.items()
    }
    ratio = max(measured[phase] for phase in forecast) / max(forecast.values())
    figures["peak_to_forecast"] = ratio
    assert _LEAST <= ratio <= _MOST, f"{ratio:.2f} of the forecast; by phase {figures}"
    return figures
