"""The subject of a preflight: the recipe and the processes, and this process among them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch.distributed as dist

from training.config.recipe import Recipe
from training.ranks.dist import Layout


@dataclass(frozen=True)
class Setting:
    """The same on every rank; all that is needed to judge a check."""

    recipe: Recipe
    hosts: tuple[str, ...]
    """Name of the host of each rank."""
    on_gpu: bool
    deep: bool = False
    """Read all bytes of the corpus, however long it takes."""
    min_gbps: float | None = None
    """Gbit/s that two hosts must exchange each way; on one host, what all-reduce must reach."""

    @property
    def world_size(self) -> int:
        return len(self.hosts)

    @property
    def sp_size(self) -> int:
        return self.recipe.train.sequence_parallel_size

    @property
    def run_dir(self) -> Path:
        return Path(self.recipe.run_dir)

    @cached_property
    def ranks_of_host(self) -> dict[str, list[int]]:
        """In the order of their first ranks."""
        found: dict[str, list[int]] = {}
        for rank, host in enumerate(self.hosts):
            found.setdefault(host, []).append(rank)
        return found

    @property
    def num_hosts(self) -> int:
        return len(self.ranks_of_host)


@dataclass(frozen=True)
class Context:
    """A rank's view: what is needed to measure."""

    setting: Setting
    layout: Layout
    cpu_group: dist.ProcessGroup | None
    """All ranks over gloo, for tensors on the CPU; None where the default group is that."""
    nonce: str
    """Of this preflight, part of the names of all files that it writes."""

    @property
    def recipe(self) -> Recipe:
        return self.setting.recipe

    @property
    def shared_file(self) -> Path:
        """Written by rank 0 for the others to find."""
        return self.setting.run_dir / f".preflight-{self.nonce}"

    @property
    def own_file(self) -> Path:
        """Written by this rank to measure the disk."""
        return self.setting.run_dir / f".preflight-{self.nonce}-rank-{self.layout.rank:05d}"
