"""A fingerprint of weights does not depend on how they are sharded, and tells any change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from training.model import fingerprint
from training.model.fingerprint import model_fingerprint


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))


def of(weights: nn.Module, dtype: torch.dtype = torch.float32) -> str:
    return model_fingerprint(weights, dtype=dtype)


@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_same_weights_have_the_same(monkeypatch, chunk, dtype):
    expected = of(model(), dtype)
    monkeypatch.setattr(fingerprint, "_CHUNK", chunk)
    assert of(model(), dtype) == expected


def test_any_change_gives_another():
    found = {of(model())}
    for name, weight in model().named_parameters():
        for place in range(weight.numel()):
            changed = model()
            flat = dict(changed.named_parameters())[name].data.flatten()
            flat[place] = torch.nextafter(flat[place], torch.tensor(9.0))
            found.add(of(changed))
    swapped = model()
    swapped[0].weight.data[[0, 1]] = swapped[0].weight.data[[1, 0]]  # type: ignore[index,union-attr]
    found.add(of(swapped))
    assert len(found) == 2 + sum(weight.numel() for weight in model().parameters())


def test_places_beyond_32_bits_count_too():
    weight = torch.randn(11)
    parts = [fingerprint._sums(weight, begin=begin)[1] for begin in (0, 2**31 - 5, 2**31 + 7)]
    assert len({int(part) for part in parts}) == 3


def test_shards_add_up_to_the_whole():
    weight = torch.randn(11)
    parts = [fingerprint._sums(weight[a:b], begin=a) for a, b in ((0, 4), (4, 8), (8, 11))]
    assert torch.equal(sum(parts), fingerprint._sums(weight, begin=0))
