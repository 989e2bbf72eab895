"""Which weights ZeRO-3 holds whole at each point of a step: a simulation of its own rules.

Source: `PartitionedParameterCoordinator` in deepspeed/runtime/zero/partitioned_param_coordinator.py
of DeepSpeed 0.19, once it has recorded the order of the modules.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import NamedTuple

from launch.planner.architecture import Architecture
from launch.planner.zero import Zero


class Use(NamedTuple):
    """A module that runs, forward or backward: a whole layer, or one outside the layers."""

    block: int
    """0 is the embedding, 1 to L are the layers, L + 1 the last norm and the head."""
    is_backward: bool
    """True also where a layer is recomputed for its backward pass."""
    weights: tuple[int, ...]
    """Which weights it needs, all of them until its end."""
    is_layer: bool


class Order(NamedTuple):
    """All uses of a step."""

    uses: tuple[Use, ...]
    sizes: tuple[int, ...]
    """Numbers in each weight."""


@lru_cache
def order_of_uses(arch: Architecture, *, checkpointing: bool) -> Order:
    """The modules with weights in the order in which a training step runs them."""
    sizes = [arch.embedding_weight]
    modules: list[tuple[int, tuple[int, ...]]] = [(0, (0,))]
    for weight in arch.beside_weights:
        modules.append((0, (len(sizes),)))
        sizes.append(weight)
    for number, layer in enumerate(arch.stack, 1):
        of_layer = (*arch.weights_of(layer), *arch.adapter_weights)
        weights = range(len(sizes), len(sizes) + len(of_layer))
        modules.append((number, tuple(weights)))
        sizes += of_layer
    last = arch.layers + 1
    modules.append((last, (len(sizes),)))
    sizes.append(arch.norm)
    modules.append((last, (0 if arch.tied else len(sizes),)))
    if not arch.tied:
        sizes.append(arch.embedding_weight)
    uses = [Use(block, False, weights, 0 < block < last) for block, weights in modules]
    for use in reversed(uses[:]):
        times = 2 if checkpointing and use.is_layer else 1
        uses += [use._replace(is_backward=True)] * times
    return Order(tuple(uses), tuple(sizes))


@lru_cache
def gathered_numbers(
    arch: Architecture, zero: Zero, *, checkpointing: bool
) -> tuple[tuple[Use, int], ...]:
    """For each use the most numbers of whole weights and of buffers in flight, until its end.

    A weight stays when it is small (`persistence_threshold`) or comes again within
    `max_reuse_distance` numbers; up to `prefetch_bucket` numbers are gathered ahead while no more
    than `max_live` are whole. Weights that are gathered together come in one buffer, which is
    copied apart when the first of them is needed and goes when the last has been.
    """
    uses, sizes = order = order_of_uses(arch, checkpointing=checkpointing)
    state = _State(sizes)
    queue = deque((step, weight) for step, use in enumerate(uses) for weight in use.weights)
    fetched_for: dict[int, int] = {}
    result = []
    for step, use in enumerate(uses):
        state.gather([weight for weight in use.weights if weight not in state.known])
        for weight in use.weights:
            state.wait(weight)
        for _ in [w for w in use.weights if fetched_for.get(w, -1) < step]:
            if queue:
                later, weight = queue.popleft()
                fetched_for[weight] = later
        ahead: list[int] = []
        room, found = min(zero.max_live - state.num_known, zero.prefetch_bucket), 0
        while queue and found < room:
            later, next_weight = queue.popleft()
            fetched_for[next_weight] = max(fetched_for.get(next_weight, -1), later)
            if next_weight not in state.known and next_weight not in ahead:
                ahead.append(next_weight)
                found += sizes[next_weight]
        state.gather(ahead)
        result.append((use, state.peak()))
        soon = _soon(order, step, within=zero.max_reuse_distance)
        for weight in use.weights:
            is_skipped = fetched_for[weight] > step + 1
            stays = sizes[weight] <= zero.persistence_threshold or is_skipped or weight in soon
            if not stays:
                state.release(weight)
    return tuple(result)


def _soon(order: Order, step: int, *, within: int) -> set[int]:
    """Weights that DeepSpeed sees used again within so many numbers.

    Looking ahead from a layer it sees the whole model at the turn to the backward pass, since the
    module around all others comes there; from any other module it sees no weights of layers.
    """
    uses, sizes = order
    passed, soon = 0, set[int]()
    for use in uses[step + 1 :]:
        if passed >= within:
            break
        if uses[step].is_layer and use.is_backward and not uses[step].is_backward:
            return set(range(len(sizes)))
        if use.is_layer <= uses[step].is_layer:
            soon |= set(use.weights)
            passed += sum(sizes[weight] for weight in use.weights)
    return soon


class _Buffer:
    """Weights that were gathered together."""

    def __init__(self, weights: list[int], numbers: int) -> None:
        self.weights, self.numbers = weights, numbers
        self.waiting = set(weights)
        self.is_apart = len(weights) == 1
        """A weight gathered alone stays in its buffer and is never copied."""


class _State:
    """Weights that are whole or in flight, in numbers."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self._sizes = sizes
        self.known: set[int] = set()
        self.num_known = 0
        self._buffers: dict[int, _Buffer] = {}
        self._num_held = self._peak = 0

    def gather(self, weights: list[int]) -> None:
        if not weights:
            return
        buffer = _Buffer(weights, sum(self._sizes[weight] for weight in weights))
        self._buffers |= dict.fromkeys(weights, buffer)
        self.known |= set(weights)
        self.num_known += buffer.numbers
        self._hold(buffer.numbers)

    def wait(self, weight: int) -> None:
        buffer = self._buffers.pop(weight, None)
        if buffer is None:
            return
        if not buffer.is_apart:
            self._hold(buffer.numbers)
            buffer.is_apart = True
        buffer.waiting.discard(weight)
        if len(buffer.weights) > 1 and not buffer.waiting:
            self._num_held -= buffer.numbers

    def release(self, weight: int) -> None:
        self.known.discard(weight)
        self.num_known -= self._sizes[weight]
        self._num_held -= self._sizes[weight]

    def peak(self) -> int:
        """Since the last call."""
        peak, self._peak = self._peak, self._num_held
        return max(peak, self._num_held)

    def _hold(self, numbers: int) -> None:
        self._num_held += numbers
        self._peak = max(self._peak, self._num_held)
