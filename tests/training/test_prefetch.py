"""The next step's batches, built by a thread: the same ones, and the thread ends."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from torch import Tensor

from tests.training.test_data import make_stream
from training.data.prefetch import prefetching
from training.data.stream import MicroBatch, SampleStream


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "next step"]


def as_lists(batches: list[MicroBatch]) -> list[dict[str, object]]:
    """All that is in them."""
    found = []
    for batch in batches:
        values = vars(batch) | {f"documents.{name}": x for name, x in vars(batch.documents).items()}
        del values["documents"]
        found.append({n: x.tolist() if isinstance(x, Tensor) else x for n, x in values.items()})
    return found


def same(found: list[MicroBatch], expected: list[MicroBatch]) -> bool:
    return as_lists(found) == as_lists(expected)


def test_any_order_of_steps_gives_the_batches_of_a_plain_stream():
    """In order, again after a rollback, from the middle as a resume, and the last."""
    plain = make_stream(2, 1, sp_size=1, rows=1, total=25)
    with prefetching(plain) as ahead:
        for step in (0, 1, 2, 1, 2, 5, 6, 0):
            assert same(ahead.step(step), plain.step(step)), step
    assert not threads()


def test_the_next_step_is_built_meanwhile_and_none_behind_the_last(monkeypatch):
    built: list[tuple[int, str]] = []
    on_host = SampleStream.on_host

    def note(stream: SampleStream, step: int) -> list[MicroBatch]:
        built.append((step, threading.current_thread().name))
        return on_host(stream, step)

    monkeypatch.setattr(SampleStream, "on_host", note)
    plain = make_stream(1, 0, sp_size=1, rows=4, total=12)
    with prefetching(plain) as ahead:
        for step in range(plain.num_steps):
            ahead.step(step)
    assert built == [(step, "next step") for step in range(plain.num_steps)]


class _Damaged:
    """A pack with a sample that cannot be read."""

    def __init__(self, pack: object) -> None:
        self._pack = pack
        self.num_read = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._pack, name)

    def sample(self, i: int, split: str = "train") -> object:
        self.num_read += 1
        if self.num_read > 6:
            raise OSError("the disk is gone")
        return self._pack.sample(i, split)  # type: ignore[attr-defined]


def test_an_error_is_that_of_its_own_step_and_ends_the_thread():
    plain = make_stream(1, 0, sp_size=1, rows=4, total=28)
    damaged = replace(plain, pack=_Damaged(plain.pack))
    with pytest.raises(OSError, match="the disk is gone"), prefetching(damaged) as ahead:
        assert same(ahead.step(0), plain.step(0))  # while the next already fails
        ahead.step(1)
    assert not threads()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, RuntimeError])
def test_the_thread_ends_with_whatever_ends_the_run(raised):
    plain = make_stream(1, 0, sp_size=1, rows=4, total=28)
    with pytest.raises(raised), prefetching(plain) as ahead:
        ahead.step(0)
        raise raised
    assert not threads()
