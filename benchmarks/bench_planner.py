"""Peak memory by phase: the planner's forecast and what real training steps hold."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.machine import describe_machine
from launch.planner.rank import Phase
from tests.launch.measured_memory import measure_peaks
from tests.launch.planned_shapes import SHAPES, forecast_peaks

# the planner's phases by the names that the engine gives them
_PHASES: dict[str, Phase] = {
    "load": "load",
    "forward": "forward",
    "backward": "backward",
    "update": "step",
}


def main() -> None:
    """Print a row a shape: MiB forecast and measured at the peak, and the ratio of each phase."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="shapes whose name contains this")
    only = parser.parse_args().only or ""
    print(describe_machine())
    columns = ["shape", "forecast MiB", "measured MiB", "ratio", *_PHASES]
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    with tempfile.TemporaryDirectory() as folder:
        for shape in (shape for shape in SHAPES if only in shape.name):
            recipe = shape.recipe(Path(folder))
            measured = measure_peaks(recipe, world_size=shape.num_ranks)
            forecast = forecast_peaks(recipe, num_ranks=shape.num_ranks)
            peaks = [
                max(forecast[phase].total for phase in _PHASES.values()),
                max(measured[name] for name in _PHASES),
            ]
            ratios = [forecast[to].total / measured[name] for name, to in _PHASES.items()]
            cells = [f"{peak / 2**20:.1f}" for peak in peaks] + [f"{peaks[0] / peaks[1]:.3f}"]
            print("|", " | ".join([shape.name, *cells, *(f"{r:.3f}" for r in ratios)]), "|")


if __name__ == "__main__":
    main()
