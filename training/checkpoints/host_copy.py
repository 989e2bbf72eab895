"""Copies of a state's tensors from a GPU to memory of the host, at the speed of the bus.

The driver copies to ordinary memory through a buffer of its own, and what is new memory waits for
its pages besides. Here the GPU fills one of two pinned buffers while the host empties the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from copy import copy
from itertools import cycle
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

BUFFER_BYTES = 1 << 26
"""Of each of two. torch keeps them for the next save."""


class Buffer(Protocol):
    """Through which one chunk of bytes is copied at a time."""

    size: int

    def fetch(self, source_N: Tensor, target_N: Tensor) -> None:
        """Begin to copy; `source_N` stays as it is until `deliver`."""

    def deliver(self) -> None:
        """The bytes of the last `fetch` are in its target; at once when there was none."""


class PinnedBuffer:
    """In memory that a GPU writes to by itself."""

    def __init__(self) -> None:
        self.size = BUFFER_BYTES
        self._memory = torch.empty(self.size, dtype=torch.uint8, pin_memory=True)
        self._arrived = torch.cuda.Event()
        self._waiting: tuple[Tensor, Tensor] | None = None

    def fetch(self, source_N: Tensor, target_N: Tensor) -> None:
        part_N = self._memory[: len(source_N)]
        # In the stream of the steps, so behind what computes the state. Training is paused: there
        # is no kernel that another stream could run beside it.
        part_N.copy_(source_N, non_blocking=True)
        self._arrived.record()
        self._waiting = part_N, target_N

    def deliver(self) -> None:
        if self._waiting is not None:
            part_N, target_N = self._waiting
            self._arrived.synchronize()
            target_N.copy_(part_N)
            self._waiting = None


class HostCopy:
    """A state for `torch.save` whose tensors on GPUs are copies on the host.

    They share storages as the tensors do. All else is the state's own, also tensors that are more
    than bytes, type and shape, which `torch.save` copies.
    """

    def __init__(
        self, state: Any, *, device_type: str = "cuda", buffer: type[Buffer] = PinnedBuffer
    ) -> None:
        """Copy; returns when all is on the host.

        Args:
            state: a tree of dicts, lists and tuples; leaves may be anything.
            device_type: of the tensors to copy.
        """
        self._device_type = device_type
        self._by_storage: dict[int, tuple[Tensor, Tensor]] = {}
        on_host = self._mapped(state)
        pairs = list(self._by_storage.values())
        self.state = on_host if pairs else state
        if pairs:
            _copy(pairs, (buffer(), buffer()))
        self._hosts = sorted((host_N for _, host_N in pairs), key=Tensor.data_ptr)
        self._starts = [host_N.data_ptr() for host_N in self._hosts]

    def own(self, content: memoryview) -> memoryview | None:
        """The same bytes with a lease of their own, if they lie in one of the copies."""
        if not self._hosts:
            return None
        start = np.frombuffer(content, np.uint8).ctypes.data
        place = bisect_right(self._starts, start) - 1
        if place < 0 or start + content.nbytes > self._starts[place] + len(self._hosts[place]):
            return None
        offset = start - self._starts[place]
        return self._hosts[place].numpy().data[offset : offset + content.nbytes]

    def _mapped(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._on_host(value)
        if type(value) in (dict, OrderedDict):
            mapped = copy(value)  # with the attributes of a module's state
            mapped.update((key, self._mapped(item)) for key, item in value.items())
            return mapped
        if type(value) in (list, tuple):
            return type(value)(map(self._mapped, value))
        return value

    def _on_host(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != self._device_type or not _is_plain(tensor):
            return tensor
        storage = tensor.untyped_storage()
        pair = self._by_storage.get(storage._cdata)
        if pair is None:
            source_N = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            pair = source_N, torch.empty(len(source_N), dtype=torch.uint8)
            self._by_storage[storage._cdata] = pair
        place = pair[1].untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride()
        return torch.empty(0, dtype=tensor.dtype).set_(*place)


def _is_plain(tensor: Tensor) -> bool:
    """Whether bytes, type and shape are all there is to it."""
    return (
        type(tensor) is Tensor
        and tensor.layout is torch.strided
        and not (tensor.requires_grad or tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not tensor.__dict__
    )


def _copy(pairs: Iterable[tuple[Tensor, Tensor]], buffers: tuple[Buffer, Buffer]) -> None:
    for buffer, (source_N, target_N) in zip(
        cycle(buffers), _chunks(pairs, buffers[0].size), strict=False
    ):
        buffer.deliver()
        buffer.fetch(source_N, target_N)
    for buffer in buffers:
        buffer.deliver()


def _chunks(pairs: Iterable[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for source_N, target_N in pairs:
        if len(source_N):
            yield from zip(source_N.split(size), target_N.split(size), strict=True)
