"""Measures: ceilings of the device, and the head compared with others' and with plain logits."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.bench_head import measure, why_not
from benchmarks.device_time import median_milliseconds
from benchmarks.gpu_proof.rows import Figures, Row, Skipped

_PLAIN = "plain_loss_only"
_OURS = ("one_pass", "two_passes")
_OTHERS = ("torch_chunked", "liger", "cut_cross_entropy")
_HIDDEN = {"0.6b": 1024, "8b": 4096}
_ONE_ROUNDING = 2**-8


def rows(device: str, small: bool) -> Iterator[Row]:
    """The ceilings, and at the widths of two models forward and backward of each head."""
    yield "ceilings", partial(ceilings, device, small)
    for model, hidden_size in _HIDDEN.items():
        plain: Figures = {}
        for name in (_PLAIN, *_OURS, *_OTHERS):
            options = argparse.Namespace(
                head=name,
                tokens=32 if small else 4096,
                hidden=16 if small else hidden_size,
                vocab=300 if small else 151_936,
                dtype="bfloat16",
                calls=1 if small else 10,
                only_memory=False,
            )
            yield f"head {model} {name}", partial(_head, options, plain)


def ceilings(device: str, small: bool) -> Figures:
    """What a product of matrices in bf16, and a copy, reach at most."""
    size = 128 if small else 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    source = torch.empty((1 << 16) if small else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = (
        median_milliseconds(work, device, rounds=1 if small else 20) / 1e3
        for work in (lambda: a @ b, lambda: target.copy_(source))
    )
    return {
        "matmul_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * source.nbytes / copy / 1e9,
    }


def _head(options: argparse.Namespace, plain: Figures) -> Figures:
    """Milliseconds, memory beyond the inputs, loss; after plain logits also compared with these.

    Args:
        plain: figures of plain logits, which their own row fills in.
    """
    if reason := why_not(options.head):
        raise Skipped(reason)
    found = measure(options)
    found["mib"] = found.pop("bytes") / 2**20
    if options.head == _PLAIN:
        plain |= found
    if not plain:
        raise Skipped("plain logits, which it is compared with, did not run")
    error = abs(found["loss"] / plain["loss"] - 1)  # others' may be a number in bf16
    is_ours = options.head in _OURS
    assert not is_ours or error < _ONE_ROUNDING, f"the mean loss is off by {error:.1e} of it"
    return found | {"loss_error": error, "to_plain": found["ms"] / plain["ms"]}
