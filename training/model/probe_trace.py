"""A trace of its own for passes without gradient, beside that of training, under ZeRO-3."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class ProbeTrace:
    """DeepSpeed gathers weights ahead by the order of modules that it recorded.

    It knows one order, and forgets it at the first module that does not follow: a probe before
    each training pass would leave both without.
    """

    def __init__(self, ds: Any) -> None:
        """Of a DeepSpeed engine of ZeRO-3 that has not run yet."""
        self._offload = getattr(ds.optimizer, "parameter_offload", ds.optimizer)
        # which weights are under way, and on which stream, stays common to both
        self._coordinator = copy.copy(self._offload.param_coordinator)
        self._coordinator._clear_trace_structures()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Around whole forward passes without gradient."""
        of_training = self._offload.param_coordinator
        self._offload.param_coordinator = self._coordinator
        try:
            yield
        finally:
            self._offload.param_coordinator = of_training
