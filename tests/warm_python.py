"""A `python` for tests that starts in a tenth of a second: a fork of a process with all loaded.

Most of a test of commands is Python's start: torch, transformers and DeepSpeed take some seconds of
processor time. `warm_python()` is the path of an executable to use in the place of
`sys.executable`: it hands its arguments, environment, folder, open files and signals to a server
that forks for each. What runs is the same code in a process of its own. Different are: its parent,
its session and its command line in /proc, so tests about these use the plain one, and so do tests
about imports. All have one seed of string hashes; data_prep under mpirun and some runs of a cluster
are plain, and are compared with forks. A client in namespaces of its own, as on a host of
tests.launch.hosts, has a fork that enters them. Where no server can start, it is the plain one.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

_FOLDER = "ENTRODROP_TESTS_WARM_PYTHON"
_PLAIN = "ENTRODROP_TESTS_PLAIN_PYTHON"
_SOCKET = "socket"
_ROOT = Path(__file__).resolve().parents[1]


def open_warm_python() -> None:
    """Called once, before the workers of a test session start; no server runs before it is asked.

    All processes that come from here find it by their environment.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-python-"))
    os.environ |= {_FOLDER: f"{folder}:{os.getpid()}", _PLAIN: sys.executable}
    command = shlex.join(
        [
            sys.executable,
            "-IS",
            str(_ROOT / "tests" / "warm_python_client.py"),
            str(folder / _SOCKET),
            sys.executable,
        ]
    )
    stub = folder / "python"
    stub.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    stub.chmod(0o755)


def be_plain_python() -> None:
    """In a worker that is a fork itself: `sys.executable` is the plain one, as tests expect."""
    sys.executable = os.environ[_PLAIN]


def close_warm_python() -> None:
    """The server, if there is one, ends with this process."""
    folder, _ = os.environ.pop(_FOLDER).rsplit(":", 1)
    shutil.rmtree(folder)


def warm_python() -> str:
    """A path to run in the place of `sys.executable`; the first call waits for the imports."""
    if _FOLDER not in os.environ:
        return sys.executable
    folder, owner = os.environ[_FOLDER].rsplit(":", 1)
    socket, log, failed = (Path(folder, name) for name in (_SOCKET, "log", "failed"))
    with Path(folder, "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not socket.exists() and not failed.exists():
            _start_server(socket, owner=owner, log=log)
            if not socket.exists():  # as on an older system
                failed.touch()
                print(f"tests start every Python anew, which is slow: {log.read_text()}")
    return os.environ[_PLAIN] if failed.exists() else str(Path(folder, "python"))


def warm_path() -> str:
    """A PATH on which `python` is `warm_python()`, and what else is installed is found as well."""
    return f"{Path(warm_python()).parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"


def _start_server(socket: Path, *, owner: str, log: Path) -> None:
    """Until it listens or has ended."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    environment["HF_HOME"] = str(log.with_name("hf_home"))  # which libraries read when loaded
    with log.open("w") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_python_server", str(socket), owner],
            cwd=_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    while not socket.exists():
        with suppress(subprocess.TimeoutExpired):
            server.wait(0.04)
        if server.poll() is not None:
            return
