"""Where documents start in the rows of a batch, for attention that never crosses one.

B rows, T tokens of a whole sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class DocumentLayout:
    """Where documents start in the whole rows of a batch, made once and used by every layer.

    Rows are seen as one stream of B * T tokens, the form of variable-length flash attention.
    Example, B=1: position ids 0 1 2 0 1 have the starts 0 3 and the end 5.
    """

    boundaries: tuple[int, ...]
    """Starts of all documents in the stream, and its end."""
    boundaries_tensor: Tensor
    """The same, int32, on the device."""
    max_tokens: int
    """Tokens of the longest document."""

    def to(self, device: torch.device) -> DocumentLayout:
        """The same on a device; from pinned memory, without waiting for it."""
        return replace(self, boundaries_tensor=self.boundaries_tensor.to(device, non_blocking=True))

    def pinned(self) -> DocumentLayout:
        """The same in pinned memory."""
        return replace(self, boundaries_tensor=self.boundaries_tensor.pin_memory())


def find_documents(position_ids_BT: Tensor, *, device: torch.device) -> DocumentLayout:
    """Find the documents in whole rows of position ids, which restart at 0 in each document.

    Args:
        position_ids_BT: int64 `[B, T]`, on the CPU, of whole sequences and not of shards.
    """
    starts = (position_ids_BT.flatten() == 0).nonzero()[:, 0].tolist()
    boundaries = (*starts, position_ids_BT.numel())
    return DocumentLayout(
        boundaries=boundaries,
        boundaries_tensor=torch.tensor(boundaries, dtype=torch.int32, device=device),
        max_tokens=max(end - start for start, end in pairwise(boundaries)),
    )
