"""Some steps of a run under torch's profiler."""

from __future__ import annotations

from pathlib import Path

from torch.profiler import profile

from training.config.profile import Profile


class StepProfiler:
    """Writes one trace, of rank 0; a run that ends before its last step writes none."""

    def __init__(self, settings: Profile | None, run_dir: Path, *, enabled: bool) -> None:
        """`enabled`: true on rank 0 alone."""
        self._settings = settings if enabled else None
        self._folder = run_dir / "profile"
        self._profiler: profile | None = None

    def begin(self, step: int) -> None:
        """Before a step, counted from 1."""
        if self._settings and step == self._settings.first_step:
            self._profiler = profile()
            self._profiler.start()

    def end(self, step: int) -> None:
        """After it."""
        if self._profiler is None or self._settings is None:
            return
        first, last = self._settings.first_step, step
        if last - first + 1 < self._settings.num_steps:
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        path = self._folder / f"steps-{first}-{last}.json.gz"
        try:
            self._folder.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(path))
        except OSError as error:  # a trace is not worth a run
            print(f"profile: {path}: {error.strerror}", flush=True)
        else:
            print(f"profile: {path}, to be opened at https://ui.perfetto.dev", flush=True)
