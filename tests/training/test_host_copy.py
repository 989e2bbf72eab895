"""Copies of a GPU's tensors by chunks; on a CPU its own tensors stand in for them."""

from __future__ import annotations

import io
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.distributed import ranks_folder, run_ranks
from training.checkpoints import files, host_copy
from training.checkpoints.files import CheckpointFiles, read_state
from training.checkpoints.host_copy import HostCopy


class LateBuffer:
    """Copies as late as a GPU may: when it is waited for, from what the source then is."""

    size = 24

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, Tensor] | None = None

    def fetch(self, source_N: Tensor, target_N: Tensor) -> None:
        assert self._waiting is None, "what is still underway would be overwritten"
        assert len(source_N) == len(target_N) <= self.size
        self._waiting = source_N, target_N

    def deliver(self) -> None:
        if self._waiting is not None:
            source_N, target_N = self._waiting
            target_N.copy_(source_N)
            self._waiting = None


copy_of_cpu = partial(HostCopy, device_type="cpu", buffer=LateBuffer)


def state_of_all_kinds(device: str, num_large: int) -> dict[str, Any]:
    """Types, odd sizes, views that share storages, and what is copied by torch itself."""
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(num_large, generator=generator).to(device)
    square = torch.arange(35.0, device=device).view(5, 7)
    types = (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)
    return {
        "types": [large[:13].to(dtype) for dtype in types],
        "large": large,
        "views": OrderedDict(
            column=square.t(), part=square[1:4, ::2], same=square, tail=large[5:], none=large[:0]
        ),
        "empty": (torch.empty(0, device=device), torch.tensor(3.5, device=device)),
        "others": {
            "parameter": nn.Parameter(square.clone()),
            "graph": square.clone().requires_grad_(),
            "complex": torch.complex(square, square).conj(),
            "shape": large.shape,
            "nothing": None,
        },
        "module": nn.BatchNorm1d(3).to(device).state_dict(),  # with notes beside its keys
    }


def saved(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


@pytest.mark.parametrize("size", [1, 24, 25, 1 << 20])
def test_a_copy_is_saved_as_its_tensors_were_bit_for_bit(monkeypatch, size):
    monkeypatch.setattr(LateBuffer, "size", size)
    state = state_of_all_kinds("cpu", 101)
    before, copy = saved(state), copy_of_cpu(state)
    for tensor in (state["large"], state["views"]["same"], *state["types"]):
        tensor.zero_()
    assert saved(copy.state) == before
    assert saved(state) != before


def test_a_state_without_tensors_of_a_gpu_stays_as_it_is():
    state = state_of_all_kinds("cpu", 101)
    assert HostCopy(state).state is state


def test_a_file_is_written_later_from_the_one_copy_of_the_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr(LateBuffer, "size", (1 << 20) + 1)
    state = state_of_all_kinds("cpu", (1 << 22) + 3)
    CheckpointFiles(tmp_path).save(state, tmp_path / "at_once.pt")
    monkeypatch.setattr(files, "HostCopy", copy_of_cpu)
    later = CheckpointFiles(tmp_path, defers=True)
    later.save(state, tmp_path / "later.pt")
    ((_, pieces),) = later._deferred
    state["large"].zero_()
    # all of 16 MiB but what files of torch have between tensors, in pieces of up to 4 MiB
    assert max(len(piece) for piece in pieces if isinstance(piece, memoryview)) > 12 << 20
    assert sum(len(piece) for piece in pieces if isinstance(piece, bytes)) < 5 << 20
    later.write_deferred()
    assert not later.errors
    assert (tmp_path / "later.pt").read_bytes() == (tmp_path / "at_once.pt").read_bytes()
    assert later.sizes[str(tmp_path / "later.pt")] == later.records["later.pt"].num_bytes


def save_on_a_gpu() -> None:
    """Three buffers and a bit; the state changes at once, as in the next step."""
    state = state_of_all_kinds("cuda", 3 * host_copy.BUFFER_BYTES // 4 + 5)
    path = Path(ranks_folder()) / "state.pt"
    later = CheckpointFiles(path.parent, defers=True)
    plain = io.BytesIO()
    torch.save(state, plain)
    later.save(state, path)
    state["large"].zero_()
    later.write_deferred()
    assert not later.errors
    plain.seek(0)
    expected = torch.load(plain, map_location="cpu")
    assert saved(read_state(path)) == saved(expected)


@pytest.mark.gpu
def test_a_save_has_the_numbers_of_the_gpu():
    run_ranks(save_on_a_gpu, world_size=1, gpus=True)
