from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.distributed import run_ranks
from training.ranks.dist import init_layout
from training.ranks.run_folder import LOCK_FILE, lock_run_dir

HOLDER = """
import fcntl, os, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
os.pwrite(lock, sys.argv[2].encode(), 0)
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


def hold(run_dir: Path, *, as_host: str, seconds: float) -> subprocess.Popen[str]:
    """Another process that has the folder."""
    command = [sys.executable, "-c", HOLDER, str(run_dir / LOCK_FILE)]
    holder = subprocess.Popen(
        [*command, f"{as_host} process 0", str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def enter(run_dir: Path) -> str:
    """What the rank holds, or is told."""
    try:
        with lock_run_dir(run_dir, init_layout(sp_size=1)):
            return (run_dir / LOCK_FILE).read_text()
    except ValueError as error:
        return f"refused: {error}"


def test_two_starts_never_share_a_run_folder(tmp_path: Path) -> None:
    host = socket.gethostname()
    holder = hold(tmp_path, as_host=host, seconds=60)
    try:
        messages = run_ranks(enter, tmp_path, world_size=2)
    finally:
        holder.kill()
    assert messages[0] == messages[1]
    told = f"run_dir {tmp_path} is in use by another start ({host} process 0)"
    assert messages[0].startswith(f"refused: {told}")


def test_a_killed_start_leaves_the_folder_free(tmp_path: Path) -> None:
    holder = hold(tmp_path, as_host=socket.gethostname(), seconds=60)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (held,) = run_ranks(enter, tmp_path, world_size=1)
    assert held.startswith(f"{socket.gethostname()} process ")
    assert "process 0" not in held


def test_the_lock_of_a_lost_host_is_waited_for(tmp_path: Path) -> None:
    """A file server gives it back some time after the host has gone."""
    holder = hold(tmp_path, as_host="lost", seconds=3)
    began = time.monotonic()
    (held,) = run_ranks(enter, tmp_path, world_size=1)
    holder.wait()
    assert held.startswith(f"{socket.gethostname()} process ")
    assert time.monotonic() - began > 2


def test_the_lock_is_let_go_of_at_the_end(tmp_path: Path) -> None:
    run_ranks(enter, tmp_path, world_size=2)
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)
