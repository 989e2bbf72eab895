"""Communication waits longer than the watchdog, which says what hangs."""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from tests.distributed import run_ranks
from training.config.sections import Watchdog
from training.ranks.dist import init_layout


def timeout_of_the_group(seconds: float) -> timedelta:
    init_layout(sp_size=1, timeout_seconds=seconds)
    group = dist.distributed_c10d._get_default_group()
    timeout: timedelta = group._get_backend(torch.device("cpu")).options._timeout
    return timeout


def test_ranks_wait_for_each_other_twice_as_long_as_the_watchdog():
    seconds = Watchdog(seconds=50.0, slow_seconds=4000.0).group_timeout_seconds
    assert run_ranks(timeout_of_the_group, seconds, world_size=1) == [timedelta(seconds=8000)]


def test_without_a_watchdog_the_timeout_is_torchs():
    assert Watchdog(seconds=None).group_timeout_seconds is None
