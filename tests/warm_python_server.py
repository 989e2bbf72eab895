"""The process of which `warm_python` starts are forks: it has loaded everything and does nothing.

Arguments: the socket to listen at, and the process with which it ends.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import importlib
import inspect
import marshal
import os
import runpy
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import traceback
import types
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.distributed import PRELOADED

_MORE = (
    "launch.torchrun",
    "torch.distributed.run",
    "deepspeed.launcher.runner",
    "training.checkpoints.export",
    "training.run.evaluate_run",
    "training.run.preview",
    "training.run.score",
    "training.reports.report",
    "training.sweeps.sweep",
    "data_prep.build",
    "launch.preflight.run",
)
_HIGH = 512
"""Descriptors from here on are the server's own, so that a fork can give its own any number."""


def main(address: str, owner: int) -> int:
    for name in (*PRELOADED, *_MORE, "tests.frozen"):
        importlib.import_module(name)
    # torchrun asks for its own stack some 60 times a start; for a frame of a file that does not
    # exist inspect goes through all modules.
    inspect.modulesbyfile["<frozen runpy>"] = "runpy"  # type: ignore[attr-defined]
    request = _serve_until_forked(address, owner)
    if request is not None:
        _end(_exit_code(request))
    return 0


def _serve_until_forked(address: str, owner: int) -> dict[str, Any] | None:
    """Fork for each client. Returns in the fork with what it is to do, or here at the end."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{address}.new")
    listener.listen(64)
    wakeup, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    owners = os.pidfd_open(owner)
    poll = select.poll()
    for descriptor in (listener.fileno(), wakeup, owners):
        poll.register(descriptor, select.POLLIN)
    clients: dict[int, tuple[int, socket.socket]] = {}  # by descriptor
    Path(f"{address}.new").rename(address)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == owners:
                for child, _ in clients.values():
                    _kill(child)
                return None
            if descriptor == listener.fileno():
                client, _ = listener.accept()
                host = _host_of(client)
                try:
                    child = _fork_on(host)
                except OSError:  # the host has lost its power since
                    client.close()
                    continue
                if child == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for other in (listener, *(each for _, each in clients.values())):
                        other.detach()  # or its end would close a descriptor of the fork's own
                    for namespace in host[1:]:
                        _enter(namespace)
                    return _receive(client)
                for namespace in host:
                    os.close(namespace)
                clients[client.fileno()] = child, client
                poll.register(client.fileno(), 0)  # tells only that the client has gone
            elif descriptor == wakeup:
                os.read(wakeup, 4096)
            elif descriptor in clients:  # killed, and so is what it stands for
                _kill(clients[descriptor][0])
                poll.unregister(descriptor)
        for descriptor, (child, client) in list(clients.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                with suppress(OSError):
                    client.sendall(struct.pack("q", status))
                with suppress(KeyError):
                    poll.unregister(descriptor)
                client.close()
                del clients[descriptor]


def _host_of(client: socket.socket) -> list[int]:
    """Open namespaces of a client on one of tests.launch.hosts; none of one that shares ours."""
    credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, _, _ = struct.unpack("iII", credentials)
    theirs, ours = Path(f"/proc/{pid}/ns"), Path("/proc/self/ns")
    try:
        if (theirs / "pid").readlink() == (ours / "pid").readlink():
            return []
        return [os.open(theirs / name, os.O_RDONLY) for name in ("pid", "net", "uts", "ipc", "mnt")]
    except OSError:  # it has gone already, which is noticed later
        return []


def _fork_on(host: list[int]) -> int:
    """A namespace of processes is entered by the children of who asks for it."""
    if not host:
        return os.fork()
    own = os.open("/proc/self/ns/pid", os.O_RDONLY)
    _enter(host[0])
    child = -1
    try:
        child = os.fork()
    finally:
        if child:
            _enter(own)
        os.close(own)
    return child


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns is of Python 3.12
    if libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def _kill(child: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _receive(client: socket.socket) -> dict[str, Any]:
    """In the fork: take over all that a new process would inherit."""
    os.setsid()
    head, given, _, _ = socket.recv_fds(client, 8, 256)
    size, content = struct.unpack("q", head)[0], b""
    while len(content) < size:
        content += client.recv(size - len(content))
    request: dict[str, Any] = marshal.loads(content)
    with suppress(OSError):  # it may be gone already, which ends this, too
        client.sendall(struct.pack("q", os.getpid()))  # as its host counts
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in given]
    client.detach()
    os.closerange(0, _HIGH)
    for descriptor, wanted in zip(moved, request["descriptors"], strict=True):
        os.dup2(descriptor, wanted, inheritable=True)
        os.close(descriptor)
    # Python ignores these two by itself; a shell's job in the background ignores SIGINT
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if number in request["ignored"]:
            signal.signal(number, signal.SIG_IGN)
        elif signal.getsignal(number) == signal.SIG_IGN:
            is_ctrl_c = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_ctrl_c else signal.SIG_DFL)
    os.umask(request["umask"])
    os.sched_setaffinity(0, request["cores"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environb.update(request["environment"])
    return request


def _exit_code(request: dict[str, Any]) -> int:
    """Run it, and print what the interpreter would of an error that nobody has caught."""
    try:
        _run(request)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """As the interpreter ends, without taking itself down, of which libraries would tell."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        mpi.Finalize()  # mpirun takes a rank that ends without it for a failed one
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _run(request: dict[str, Any]) -> None:
    """As the interpreter would with these arguments and this environment."""
    import torch

    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        descriptor = ("stdin", "stdout", "stderr").index(name)
        try:
            stream = os.fdopen(descriptor, mode, buffering=1, closefd=False)
        except OSError:
            stream = None
        if stream is not None and mode == "w":
            unbuffered = request["unbuffered"] or bool(os.environ.get("PYTHONUNBUFFERED"))
            stream.reconfigure(
                line_buffering=name == "stderr" or stream.isatty() or unbuffered,
                write_through=unbuffered,
                errors="backslashreplace" if name == "stderr" else "strict",
            )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    chosen = [text for text in os.environ.get("PYTHONWARNINGS", "").split(",") if text]
    warnings._processoptions([*chosen, *request["warnings"]])  # type: ignore[attr-defined]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or len(request["cores"])))
    import random

    import numpy

    random.seed()
    numpy.random.seed()
    sys.executable = request["executable"]
    tempfile.tempdir = None  # by TMPDIR of this environment
    first, *rest = request["arguments"]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(":") if path]
    if first in ("-m", "-c"):
        sys.path[0:1] = [str(Path.cwd()) if first == "-m" else "", *paths]
        what, *rest = rest
        sys.argv = [first, *rest]
        if first == "-c":
            # the server's own would be imported again by each process that this one spawns
            main = sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), main.__dict__)
            return
        _forget(what)
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.path[0:1] = [str(Path(first).resolve().parent), *paths]
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _forget(module: str) -> None:
    """runpy warns about a module that is there already."""
    found = sys.modules.get(module)
    if found is not None and not hasattr(found, "__path__"):
        del sys.modules[module]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
