"""The processes of a preflight find each other, or report which are missing and why."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from launch.preflight.exchange import Exchange
from launch.preflight.setting import Context, Setting
from training.config.load import load_recipe
from training.config.recipe import Recipe
from training.ranks.dist import broadcast_from_rank0, init_layout, raise_together
from training.ranks.launcher_env import set_rank_variables, whole_number


class Request(NamedTuple):
    """The options of the command line."""

    recipe: str
    overrides: list[str]
    deep: bool = False
    min_gbps: float | None = None
    meet_seconds: float = 300.0


class CommonMistake(ValueError):
    """The same on every rank, so that one is enough to report it."""


def meet(request: Request) -> tuple[Context, Exchange]:
    """Join the other processes; every rank comes back with the same recipe, or with an error.

    Raises:
        ValueError: for mistakes of recipe, launch or host names, on every rank that meets.
    """
    set_rank_variables()
    recipe, error = None, None
    try:
        recipe = load_recipe(request.recipe, request.overrides)
    except ValueError as caught:  # raised once all have met: other hosts may have the recipe
        error = f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()}: {caught}"
    _refuse_master_without_address()
    _refuse_missing_gpu()
    with _patience(request.meet_seconds):
        try:
            layout = init_layout(sp_size=recipe.train.sequence_parallel_size if recipe else 1)
            raise_together(error)
        except ValueError as mistake:
            raise CommonMistake(str(mistake)) from None
        assert recipe is not None
        hosts: list[str] = [""] * layout.world_size
        dist.all_gather_object(hosts, socket.gethostname())
        on_gpu = layout.device.type == "cuda"
        cpu_group = dist.new_group(backend="gloo") if on_gpu else None
        store = _own_store(layout.rank)
    setting = Setting(
        recipe=recipe,
        hosts=tuple(hosts),
        on_gpu=on_gpu,
        deep=request.deep,
        min_gbps=request.min_gbps,
    )
    context = Context(setting, layout, cpu_group, nonce=broadcast_from_rank0(secrets.token_hex(4)))
    return context, Exchange(store, rank=layout.rank, world_size=layout.world_size)


def sizes_only(recipe: Recipe) -> Recipe:
    """The recipe with files compared by size, where another check compares contents."""
    return replace(recipe, data=replace(recipe.data, verify="sizes"))


def _own_store(rank: int) -> TCPStore:
    """Rank 0 keeps it, on a port that was free."""
    host = os.environ["MASTER_ADDR"]
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    port = broadcast_from_rank0(store.port if store else 0)
    return store or TCPStore(host, port, is_master=False, wait_for_workers=False)


def _refuse_master_without_address() -> None:
    name = os.environ.get("MASTER_ADDR")
    if name is None:
        return
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        raise ValueError(
            f"on {socket.gethostname()} the name of the first host, MASTER_ADDR={name}, does not "
            f"resolve ({error.strerror}): see /etc/hosts or DNS there"
        ) from None


def _refuse_missing_gpu() -> None:
    local_rank, num_gpus = whole_number("LOCAL_RANK"), torch.cuda.device_count()
    if torch.cuda.is_available() and local_rank >= num_gpus:
        raise ValueError(
            f"LOCAL_RANK is {local_rank} on {socket.gethostname()}, but this process sees "
            f"{num_gpus} GPUs: start one process per GPU, and let each see all GPUs of its host "
            "(under Slurm --gpus-per-node, not --gpus-per-task)"
        )


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """End the process with a message when the others do not arrive."""

    def give_up() -> None:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        print(
            f"error: rank {os.environ.get('RANK')} on {socket.gethostname()} has not met all "
            f"{os.environ.get('WORLD_SIZE')} processes at {where} within {seconds:g} seconds. Are "
            "all hosts up, is there a firewall between them, do NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME name the network that they share?",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
