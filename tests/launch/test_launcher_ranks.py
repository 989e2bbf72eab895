"""What a process learns of its place from the environment that a launcher leaves it."""

from __future__ import annotations

import os

import pytest

from training.launcher_ranks import set_rank_variables


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of this process, empty, to be filled by the test."""
    variables: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", variables)
    return variables


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_LOCAL_SIZE", "LOCAL_SIZE"])
def test_processes_of_a_host_share_its_cores(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Every one of eight would start a thread on each of all cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)))
    environment.update({name: "8", "RANK": "0"})
    set_rank_variables()
    assert environment["OMP_NUM_THREADS"] == "12"
    environment["OMP_NUM_THREADS"] = "3"
    set_rank_variables()
    assert environment["OMP_NUM_THREADS"] == "3"
