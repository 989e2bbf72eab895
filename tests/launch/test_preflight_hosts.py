"""Preflight on several hosts: launchers start it; a slow, a full and a stale host are named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.preflight.catalogue import CHECKS
from tests.launch.hosts import Hosts, needs_hosts
from tests.launch.shared_runs import cluster_environment, write_recipe
from tests.mpi import MPI_OF_HOSTS, find_mpirun
from tests.training.short_runs import short_recipe
from tests.warm_python import warm_python

pytestmark = [needs_hosts, pytest.mark.cluster, pytest.mark.slow]
REPO_ROOT = Path(__file__).resolve().parents[2]
SLOW_LINK = "tbf rate 50mbit burst 64kb latency 100ms"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(tmp_path_factory.mktemp("hosts"), number=3) as up:
        yield up


@pytest.fixture
def recipe(small_corpus: Path, tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return write_recipe(
        short_recipe(small_corpus, tmp_path / "shared" / "run"), tmp_path / "r.yaml"
    )


def skip_all_but(*names: str) -> list[str]:
    return ["--skip", ",".join(name for name in CHECKS if name not in names), "--json"]


def rows_of(printed: str) -> dict[str, dict[str, Any]]:
    # launchers prefix lines with the host, and say things of their own
    lines = [line.removeprefix("h1: ") for line in printed.splitlines()]
    data = json.loads("\n".join(lines[lines.index("{") : lines.index("}") + 1]))
    return {row["name"]: row for row in data["checks"]}


@pytest.mark.parametrize("launcher", ["deepspeed", "mpirun"])
def test_a_launcher_of_several_hosts_starts_it_as_it_starts_a_training(
    hosts: Hosts, recipe: Path, tmp_path: Path, launcher: str
) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("h1 slots=1\nh2 slots=1\n")
    names = ("versions", "names", "paths", "clocks", "pairs", "all-to-all", "gradients")
    preflight = ["launch", "preflight", str(recipe), *skip_all_but(*names)]
    environment = cluster_environment(DS_ACCELERATOR="cpu", PYTHONPATH=str(REPO_ROOT))
    if launcher == "deepspeed":
        command = [warm_python(), "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)]
        command += ["--no_ssh_check", "--module", *preflight]
    else:
        environment |= MPI_OF_HOSTS
        environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        command = [str(find_mpirun()), "-np", "2", "--hostfile", str(hostfile)]
        command += ["--bind-to", "none", "-x", "PYTHONPATH", "-x", "DS_ACCELERATOR"]
        command += [sys.executable, "-m", *preflight]
    started = hosts.start("h1", command, environment=environment)
    printed, _ = started.communicate(timeout=300)
    assert started.returncode == 0, printed
    rows = rows_of(printed)
    assert list(rows) == [name for name in CHECKS if name in names], printed
    assert rows["clocks"]["verdict"] == rows["pairs"]["verdict"] == "pass", printed
    assert rows["gradients"]["verdict"] == "pass", printed
    # two ranks share each sequence, and lie on two hosts
    assert "span hosts (h1, h2)" in rows["names"]["findings"][0]["found"]


def test_hosts_that_are_slow_full_or_stale_are_named(
    hosts: Hosts, recipe: Path, tmp_path: Path
) -> None:
    """h2 has a small disk of its own where the run folder should be, and another checkout; what h3
    sends is slowed down."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path / "shared")]
    subprocess.run(hosts.command("h2", mount), check=True)
    subprocess.run(hosts.command("h3", [*tc("add"), *SLOW_LINK.split()]), check=True)
    checkout = copy_of_checkout(tmp_path / "checkout")
    arguments = [str(recipe), "train.sequence_parallel_size=1"]
    arguments += skip_all_but("versions", "paths", "disk", "pairs")
    try:
        started = [
            start_rank(hosts, rank, arguments, code=checkout if rank == 1 else REPO_ROOT)
            for rank in range(3)
        ]
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        subprocess.run(hosts.command("h3", tc("del")), check=True)
        subprocess.run(hosts.command("h2", ["umount", mount[-1]]), check=True)
    assert [process.returncode for process in started] == [1, 1, 1], printed
    rows = rows_of(printed[0])
    stale = [finding for finding in rows["versions"]["findings"] if finding["verdict"] == "fail"]
    assert {finding["found"].split()[0] for finding in stale} == {"sources"}
    assert stale[0]["hosts"] == ["h2"]
    (unseen,) = rows["paths"]["findings"]
    assert unseen["hosts"] == ["h2"] and "not visible to rank 1 on h2" in unseen["found"]
    (full,) = rows["disk"]["findings"]
    assert full["hosts"] == ["h2"] and "No space left on device" in full["found"]
    (slow,) = rows["pairs"]["findings"]
    assert slow["hosts"] == ["h3"] and slow["verdict"] == "warn", slow


def tc(verb: str) -> list[str]:
    return ["tc", "qdisc", verb, "dev", "eth0", "root"]


def copy_of_checkout(folder: Path) -> Path:
    """This one with another line, and without its history."""
    for name in ("common", "launch", "training", "data_prep", "ds_configs"):
        shutil.copytree(REPO_ROOT / name, folder / name)
    with (folder / "training" / "schedule.py").open("a", encoding="utf-8") as file:
        file.write("\n# another line\n")
    return folder


def start_rank(
    hosts: Hosts, rank: int, arguments: list[str], *, code: Path
) -> subprocess.Popen[str]:
    environment = cluster_environment(
        DS_ACCELERATOR="cpu",
        PYTHONPATH=str(code),
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(len(hosts.names)),
        MASTER_ADDR="h1",
        MASTER_PORT="29517",
    )
    # "-P" leaves the folder that it is started from, this checkout, off the path
    command = [sys.executable, "-P", "-m", "launch", "preflight", *arguments]
    return hosts.start(hosts.names[rank], command, environment=environment)
