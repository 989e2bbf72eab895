"""External meters of a training step: seconds of its phases, bytes of its collectives."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from training.data.stream import SampleStream
from training.model.engine import Engine
from training.regularisers import drop_sets, lagged
from training.regularisers.entropy_source import KeptEntropies, OnlineProbe

PHASES = {
    "data": "the step's micro-batches",
    "entropies": "the probe, or the look-up of scores",
    "quantile": "the global threshold",
    "forward": "without the head",
    "head": "forward of the head",
    "backward": "without the head",
    "head backward": "",
    "update": "DeepSpeed's step()",
    "rest": "draws, masks, sums of metrics",
}


@dataclass(frozen=True)
class Took:
    """Seconds by the wall clock, and of processor time in all threads of this process."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Took:
        wait_for_gpu()
        return Took(time.perf_counter(), time.process_time())

    def since(self, began: Took) -> Took:
        return Took(self.wall - began.wall, self.cpu - began.cpu)


def wait_for_gpu() -> None:
    """Before a clock is read, where there is a GPU: calls return before it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Host:
    """What one way to train took of the host, by micro-step."""

    ms: list[float] = field(default_factory=list)
    """Processor time in each round."""
    num_operators: float = 0.0
    deepspeed_frac: float = 0.0
    ours_frac: float = 0.0


def median_took(taken: list[Took]) -> Took:
    wall, cpu = (statistics.median(getattr(t, clock) for t in taken) for clock in ("wall", "cpu"))
    return Took(wall, cpu)


class Clock:
    """Seconds of each phase, without those of the phases inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @property
    def phase(self) -> str:
        return self._open[-1]

    def enter(self, name: str) -> None:
        self._charge()
        # the passes of a probe are the probe's, head and all
        self._open.append("entropies" if "entropies" in self._open else name)

    def leave(self) -> None:
        self._charge()
        self._open.pop()

    def _charge(self) -> None:
        wait_for_gpu()
        now = time.perf_counter()
        if self._open:
            self.seconds[self.phase] += now - self._since
        self._since = now

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run


@contextmanager
def phase_clock(engine: Engine) -> Iterator[Clock]:
    """A clock around the functions and methods of a step, which takes the rest itself."""
    clock, ds = Clock(), engine.ds
    with ExitStack() as stack:
        for owner, name, phase in (
            (SampleStream, "step", "data"),  # of the class: the stream itself is frozen
            (OnlineProbe, "of_step", "entropies"),
            (KeptEntropies, "of_step", "entropies"),
            (drop_sets, "select_low_tokens", "quantile"),
            (lagged, "select_low_tokens", "quantile"),
            (ds, "forward", "forward"),
            (ds, "backward", "backward"),
            (ds, "step", "update"),
        ):
            timed = clock.timed(getattr(owner, name), phase)
            stack.enter_context(patch.object(owner, name, timed))
        for hook in _clock_the_head(clock, engine):
            stack.callback(hook.remove)
        yield clock


def _clock_the_head(clock: Clock, engine: Engine) -> list[Any]:
    """Forward by hooks of the module, backward by hooks of its output's and input's gradients."""
    head = engine.model.lm.get_output_embeddings()

    def began_backward(_: torch.Tensor) -> None:
        if clock.phase != "head backward":
            clock.enter("head backward")

    def ended_backward(_: torch.Tensor) -> None:
        if clock.phase == "head backward":
            clock.leave()

    def ended(_: torch.nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        for tensor in tree_leaves(outputs):
            if tensor.requires_grad:
                tensor.register_hook(began_backward)
        if inputs[0].requires_grad:
            inputs[0].register_hook(ended_backward)
        clock.leave()

    return [
        # first, so that gathering the weight counts
        head.register_forward_pre_hook(lambda *_: clock.enter("head"), prepend=True),
        head.register_forward_hook(ended),
    ]


class Operators(TorchDispatchMode):
    """Counts what torch dispatches, in forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


class CollectiveCounter(TorchDispatchMode):
    """Counts collectives where torch dispatches them.

    Wrapping the functions of torch.distributed would miss those that DeepSpeed took a reference to
    when it started. Ulysses' all-to-all is an operator of DeepSpeed's own, and a mode does not see
    what an operator calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.totals: Counter[tuple[str, str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "deepspeed") and "barrier" not in func.__name__:
            # the longer of what goes in and what comes out: an all-gather's result, for one
            num_bytes = max(
                sum(t.nbytes for t in tree_leaves(argument) if isinstance(t, torch.Tensor))
                for argument in args
            )
            name = func.__name__.partition(".")[0].strip("_")
            self.totals[caller(), name, "calls"] += 1
            self.totals[caller(), name, "bytes"] += num_bytes
        return func(*args, **(kwargs or {}))


def caller() -> str:
    """Whose code is nearest on the stack: `ours` from training/, else `DeepSpeed`."""
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        module = frame.f_globals.get("__name__", "")
        if module.startswith("training."):
            return "ours"
        if module.startswith("deepspeed."):
            return "DeepSpeed"
    return "other"
