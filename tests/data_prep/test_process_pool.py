"""Results come back from worker processes whole, whatever their size, and so do errors."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data_prep import process_pool
from data_prep.executor import WorkerPool, open_pool

Arrays = dict[str, np.ndarray]
INTERRUPT = 1 << (signal.SIGINT - 1)


def squares(count: int) -> Arrays:
    """Two arrays, one of them a view, and one that no buffer holds."""
    whole = np.arange(count, dtype=np.int64) ** 2
    return {"whole": whole, "odd": whole[1::2], "names": np.array(["a", None], dtype=object)}


def refuse(count: int) -> Arrays:
    if count == 3:
        raise ValueError(f"{count} is refused")
    return squares(count)


def die(count: int) -> Arrays:
    os._exit(1)


def leave_a_thread() -> int:
    """One that does not block Ctrl-C, as libraries start them."""
    threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    return os.getpid()


def signals_blocked_by_server(count: int) -> int:
    status = Path(f"/proc/{os.getppid()}/status").read_text()
    return int(re.findall(r"SigBlk:\s*(\w+)", status)[0], 16)


def _in_foreground(work: str) -> tuple[str, str]:
    """What a program prints that takes Ctrl-C, which a job in the background ignores."""
    process = subprocess.Popen(
        [sys.executable, "-c", work],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with open_pool(2) as opened:
        opened.warm_up(os.getpid)
        yield opened


def test_arrays_of_any_size_come_back_in_order_and_are_kept(pool: WorkerPool) -> None:
    """Places in shared memory are taken again; what has come out of them must not change."""
    largest = process_pool._PLACE_BYTES // 8
    counts = [0, 1, 1000, largest // 2, largest, 2 * largest, *range(2, 40)]
    with closing(pool.map_in_order(squares, iter(counts))) as results:
        found = list(results)
    for count, result in zip(counts, found, strict=True):
        expected = squares(count)
        for name, array in expected.items():
            assert result[name].dtype == array.dtype
            np.testing.assert_array_equal(result[name], array)
        result["whole"] += 1  # ours to change, as any array is


def test_an_error_of_a_task_is_raised_in_its_place(pool: WorkerPool) -> None:
    results = pool.map_in_order(refuse, iter(range(6)))
    assert [len(next(results)["whole"]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="3 is refused"):
        next(results)


def test_a_worker_that_dies_is_named_as_such() -> None:
    with open_pool(2) as opened, pytest.raises(ValueError, match="a worker process died"):
        list(opened.map_in_order(die, iter([1])))


def test_all_processes_start_before_one_is_watched() -> None:
    """Where one dies while others start, Python would wait for the others forever."""
    before = len(multiprocessing.active_children())
    with process_pool.open_processes(3, num_tasks=6) as executor:
        executor.submit(os.getpid)
        assert len(multiprocessing.active_children()) == before + 3


def test_ctrl_c_between_tasks_waits_for_the_next_one() -> None:
    """Elsewhere it would leave half a message and a build that waits."""
    work = (
        "import os, signal, time\n"
        "from data_prep.process_pool import open_processes\n"
        "from tests.data_prep.test_process_pool import leave_a_thread\n"
        "with open_processes(1, num_tasks=1) as executor:\n"
        "    worker = executor.submit(leave_a_thread).result()\n"
        "    os.kill(worker, signal.SIGINT)\n"
        "    time.sleep(0.3)\n"
        "    print(type(executor.submit(os.getpid).exception()).__name__)\n"
        "    print(executor.submit(os.getpid).result() == worker)"
    )
    assert _in_foreground(work) == ("KeyboardInterrupt\nTrue\n", "")


def test_a_second_ctrl_c_while_workers_end_does_not_leave_them_waiting() -> None:
    work = (
        "import os, signal, threading, time\n"
        "from data_prep.process_pool import open_processes\n"
        "def interrupt_twice():\n"
        "    for _ in range(2):\n"
        "        time.sleep(0.5)\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        "    with open_processes(2, num_tasks=2) as executor:\n"
        "        executor.submit(os.getpid).result()\n"
        "        threading.Thread(target=interrupt_twice).start()\n"
        "        executor.submit(time.sleep, 2).result()\n"
        "except KeyboardInterrupt:\n"
        "    print('stopped')"
    )
    assert _in_foreground(work) == ("stopped\n", "")


def test_the_server_of_processes_does_not_take_ctrl_c() -> None:
    """It would print where it was. Here another test may have started one."""
    work = (
        "from data_prep.executor import open_pool\n"
        "from tests.data_prep.test_process_pool import signals_blocked_by_server as blocked\n"
        "with open_pool(2) as pool: print(*pool.map_in_order(blocked, iter([0])))"
    )
    command = [sys.executable, "-c", work]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(found.stdout) & INTERRUPT


def test_a_temporary_folder_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    work = "from data_prep.executor import open_pool\nwith open_pool(2): pass"
    environment = os.environ | {"TMPDIR": str(folder)}
    command = [sys.executable, "-c", work]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert f"ValueError: TMPDIR={folder}: too long" in found.stderr
