"""Layers that carry a state from token to token, run on each document apart.

B rows, T tokens of a whole sequence, N documents of similar lengths, L tokens of the longest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from training.data.documents import DocumentLayout


class Recurrences:
    """Mixers with a causal convolution: gated delta nets, mamba and its kin, short convolutions.

    transformers' own code runs them, from left to right and without a mask. It is given documents
    as the rows of a batch, padded behind their ends, where nothing comes back from; the longest of
    a batch is at most twice as long as the shortest, so padding at most doubles the work.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self._documents: DocumentLayout | None = None
        self._batches: list[_Batch] = []
        self._order: Tensor | None = None
        self.names = []
        for layer in layers:
            for name, module in layer.named_modules():
                if any(isinstance(child, nn.Conv1d) for child in module.children()):
                    module.forward = functools.partial(self._run, module.forward)
                    self.names.append(name)

    def begin(self, documents: DocumentLayout) -> None:
        """Set the documents of the coming forward pass."""
        if self.names and documents is not self._documents:
            self._documents = documents
            self._batches = batches_of(documents)
            self._order = torch.cat([batch.tokens for batch in self._batches]).argsort()

    def _run(self, forward: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """The mixer's own `forward`, on all tensors `[B, T, ...]` that it is given."""
        assert self._documents is not None and self._order is not None
        hidden = next(x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor))
        shape = hidden.shape[:2]
        if shape.numel() != self._documents.boundaries[-1]:
            raise ValueError(
                f"its layers of the kind {self.names[0]} carry a state through whole documents, of "
                "which a rank would have a part; set train.sequence_parallel_size to 1"
            )
        parts = []
        for batch in self._batches:
            take = functools.partial(_take, shape=shape, places_NL=batch.places_NL)
            output = forward(
                *map(take, arguments), **{name: take(x) for name, x in keywords.items()}
            )
            out = output[0] if isinstance(output, tuple) else output
            parts.append(out.flatten(0, 1)[batch.is_token])
        mixed = torch.cat(parts)[self._order].unflatten(0, shape)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed


class _Batch(NamedTuple):
    """Documents of similar lengths."""

    places_NL: Tensor
    """Where their tokens are in the stream of B * T; behind an end its last token again."""
    is_token: Tensor
    """Indices into the N * L places that are no padding."""
    tokens: Tensor
    """The places there."""


def batches_of(documents: DocumentLayout) -> list[_Batch]:
    """Lengths of 5 to 8 tokens together, 9 to 16, and so on."""
    groups: dict[int, list[tuple[int, int]]] = {}
    for start, end in pairwise(documents.boundaries):
        groups.setdefault((end - start - 1).bit_length(), []).append((start, end))
    device = documents.boundaries_tensor.device
    batches = []
    for group in groups.values():
        starts_N1, ends_N1 = torch.tensor(group).T[..., None]
        places_NL = starts_N1 + torch.arange(int((ends_N1 - starts_N1).max()))
        is_token = (places_NL < ends_N1).flatten().nonzero()[:, 0]
        places_NL = places_NL.minimum(ends_N1 - 1)
        tokens = places_NL.flatten()[is_token]
        batches.append(_Batch(*(x.to(device) for x in (places_NL, is_token, tokens))))
    return batches


def _take(value: Any, *, shape: torch.Size, places_NL: Tensor) -> Any:
    if isinstance(value, Tensor) and value.shape[:2] == shape:
        return value.flatten(0, 1)[places_NL]
    return value
