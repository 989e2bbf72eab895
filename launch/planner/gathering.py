"""Which weights ZeRO-3 holds whole at each point of a step: its own rules, walked through.

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
    """A module that runs, forward or backward."""

    block: int
    """0 is the embedding, 1 to L are the layers, L + 1 the last norm and the head."""
    is_backward: bool
    """Also where a layer is recomputed for its backward pass."""
    weight: int
    """Which weight it needs."""


class Order(NamedTuple):
    """All uses of a step."""

    uses: tuple[Use, ...]
    sizes: tuple[int, ...]
    """Numbers in each weight."""


@lru_cache
def order_of_uses(arch: Architecture, *, checkpointing: bool) -> Order:
    """The modules with weights in the order in which a training step runs them."""
    sizes = [arch.embedding_weight]
    blocks = [[0]]
    for _ in range(arch.layers):
        blocks.append(list(range(len(sizes), len(sizes) + len(arch.layer_weights))))
        sizes += arch.layer_weights
    sizes.append(arch.hidden)
    head = 0 if arch.tied else len(sizes)
    if not arch.tied:
        sizes.append(arch.embedding_weight)
    blocks.append([arch.layers * len(arch.layer_weights) + 1, head])
    uses = [Use(block, False, weight) for block, of in enumerate(blocks) for weight in of]
    for block, of in reversed(list(enumerate(blocks))):
        if checkpointing and 0 < block <= arch.layers:
            uses += [Use(block, True, weight) for weight in of]
        uses += [Use(block, True, weight) for weight in reversed(of)]
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
    uses, sizes = order_of_uses(arch, checkpointing=checkpointing)
    state = _State(sizes)
    queue = deque(enumerate(use.weight for use in uses))
    fetched_for: dict[int, int] = {}
    result = []
    for step, use in enumerate(uses):
        weight = use.weight
        if weight not in state.known:
            state.gather([weight])
        state.wait(weight)
        if fetched_for.get(weight, -1) < step and queue:
            fetched_for[weight] = queue.popleft()[0]
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
        is_skipped = fetched_for[weight] > step + 1
        stays = sizes[weight] <= zero.persistence_threshold or is_skipped
        if not stays and not _comes_again(uses, sizes, step, within=zero.max_reuse_distance):
            state.release(weight)
    return tuple(result)


def _comes_again(uses: tuple[Use, ...], sizes: tuple[int, ...], step: int, *, within: int) -> bool:
    passed = 0
    for use in uses[step + 1 :]:
        if passed >= within:
            return False
        if use.weight == uses[step].weight:
            return True
        passed += sizes[use.weight]
    return False


class _Buffer:
    """Weights that were gathered together."""

    def __init__(self, weights: list[int], numbers: int) -> None:
        self.weights, self.numbers = weights, numbers
        self.waiting = set(weights)
        self.is_apart = len(weights) == 1
        """A weight gathered alone stays in its buffer and is never copied."""


class _State:
    """Weights that are whole or on their way, in numbers."""

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
        """Since it was asked for last."""
        peak, self._peak = self._peak, self._num_held
        return max(peak, self._num_held)

    def _hold(self, numbers: int) -> None:
        self._num_held += numbers
        self._peak = max(self._peak, self._num_held)
