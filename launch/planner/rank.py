"""A rank of a run: what determines its memory, and what it holds at one time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from launch.planner.activations import Activations
from launch.planner.architecture import Architecture
from launch.planner.prefetch import order_of_uses
from launch.planner.zero import Zero

Phase = Literal["load", "forward", "backward", "step", "evaluation", "save"]
PHASES: tuple[Phase, ...] = ("load", "forward", "backward", "step", "evaluation", "save")


class Moment(NamedTuple):
    """What a GPU holds at one time, bytes."""

    parameters: int = 0
    second_partition: int = 0
    gradients: int = 0
    optimizer: int = 0
    buckets: int = 0
    gathered: int = 0
    activations: int = 0
    head: int = 0
    whole_gradients: int = 0
    method: int = 0

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class Run:
    """All that determines the memory of a rank."""

    arch: Architecture
    zero: Zero
    world_size: int
    activations: Activations
    checkpointing: bool
    step_tokens: int
    """Of an optimizer step on this rank, all micro-steps."""
    one_pass_head: bool
    """Gradients come with the loss: always, except where the loss waits for the forward pass."""
    averages: bool = False
    """Whether a moving average of the weights is kept (`ema`), in fp32."""
    keeps_base: bool = False
    """Whether the base is kept beside the optimizer's weights (`l2_sp`), in its own dtype."""
    teacher: Literal["ema", "base", "scores"] | None = None
    top_k: int = 0
    """How many likeliest tokens of each position a teacher of the kind scores has; 0 if unknown."""

    @property
    def partition(self) -> int:
        """Numbers of weights that each rank keeps, padded to the same on every rank."""
        sizes = order_of_uses(self.arch, checkpointing=False).sizes
        num_parts = self.world_size if self.zero.shards_weights else 1
        return sum(-(-size // num_parts) for size in sizes)

    @property
    def second_partition(self) -> int:
        """Bytes of weights that a rank owns within its node, from forward pass to update."""
        ranks = min(self.zero.second_partition, self.world_size)
        sizes = order_of_uses(self.arch, checkpointing=False).sizes
        numbers = sum(-(-size // ranks) for size in sizes) if ranks > 1 else 0
        return numbers * self.zero.number_bytes

    @property
    def trained_partition(self) -> int:
        """Numbers of those that are trained whose optimizer state each rank keeps."""
        return self._trained(self.world_size)

    @property
    def summed(self) -> int:
        """Numbers of gradients that each rank adds up."""
        return self._trained(self.world_size if self.zero.shards_weights else 1)

    def _trained(self, num_parts: int) -> int:
        sizes = order_of_uses(self.arch, checkpointing=False).sizes
        if self.arch.adapter is not None:
            sizes = self.arch.adapter_weights * self.arch.layers
        return sum(-(-size // num_parts) for size in sizes)
