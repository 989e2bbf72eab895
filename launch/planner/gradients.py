"""Gradients on their way to be reduced, in bytes: by buckets at stage 3, all at once at stage 1."""

from __future__ import annotations

from launch.planner.zero import Zero

_MESSAGE_NUMBERS = 500_000_000


class Bucket:
    """Gradients in flight: they gather in a buffer, which is copied to be sent when it is full.

    One that is larger than the buffer waits outside it. Source: `__add_grad_to_ipg_bucket` and
    `reduce_scatter_coalesced` of DeepSpeed 0.19.
    """

    def __init__(self, zero: Zero, *, num_copies: int) -> None:
        """Send copies of `num_copies` buckets: gloo makes one more than NCCL."""
        self._zero, self._num_copies = zero, num_copies
        self._numbers = self._num_weights = 0
        self.held = 0
        """Bytes outside the buffer."""

    def add(self, numbers: int) -> int:
        """Returns bytes of the copy that is sent to make room, 0 for none."""
        zero, sent = self._zero, 0
        if self._numbers and self._numbers + numbers > zero.reduce_bucket:
            sent = self.send()
        if not zero.contiguous_gradients or self._numbers + numbers > zero.reduce_bucket:
            self.held += numbers * zero.number_bytes
        self._numbers += numbers
        self._num_weights += 1
        return sent

    def send(self) -> int:
        """Returns bytes of the copies; DeepSpeed sends a single gradient without a copy."""
        num_copies = self._num_copies - (self._num_weights == 1)
        copied = num_copies * self._numbers
        self._numbers = self._num_weights = self.held = 0
        return copied * self._zero.communication_bytes


class WholeSum:
    """At stage 1 gradients add up whole, and are reduced behind the last micro-step.

    Source: `allreduce_no_retain` and `allreduce_bucket` of DeepSpeed 0.19.
    """

    held = 0

    def __init__(self, zero: Zero, *, numbers: int) -> None:
        """`numbers`: of all gradients."""
        self._zero, self._numbers = zero, numbers

    def add(self, numbers: int) -> int:
        return 0

    def send(self) -> int:
        """Matrices and vectors are joined first, unless the matrices are enough for a message."""
        zero, numbers = self._zero, self._numbers
        joined = numbers * zero.gradient_bytes if numbers <= _MESSAGE_NUMBERS else 0
        is_sent_as_it_is = zero.communication_bytes == zero.gradient_bytes
        return joined + (0 if is_sent_as_it_is else numbers * zero.communication_bytes)
