"""A start of `warm_python` is to its caller what a start of Python is."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.warm_python import warm_python


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [warm_python(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_arguments_environment_folder_and_input_arrive(tmp_path: Path) -> None:
    code = (
        "import os, sys; print(sys.argv[1:], os.environ['NAME'], os.getcwd(), sys.stdin.read(), "
        "'HOME' in os.environ)"
    )
    environment = {"NAME": "a b\n=", "PATH": os.environ["PATH"]}
    done = run("-c", code, "x y", "", cwd=tmp_path, env=environment, input="given")
    assert done.stdout == f"['x y', ''] a b\n= {tmp_path} given False\n", done.stderr
    (tmp_path / "script.py").write_text("import sys, beside; sys.exit(beside.CODE)")
    (tmp_path / "beside.py").write_text("CODE = 7")
    assert run("script.py", cwd=tmp_path).returncode == 7
    (tmp_path / "module.py").write_text("print(__name__, __file__)")
    assert run("-m", "module", cwd=tmp_path).stdout == f"__main__ {tmp_path}/module.py\n"


def test_what_it_spawns_does_not_load_what_the_server_has() -> None:
    code = (
        "import multiprocessing; pool = multiprocessing.get_context('spawn').Pool(1); "
        'print(pool.apply(eval, (\'"torch" in __import__("sys").modules\',)))'
    )
    assert run("-c", code).stdout == "False\n"


def test_open_files_arrive_under_their_numbers() -> None:
    reads, writes = os.pipe()
    done = run("-c", f"import os; os.write({writes}, b'through')", pass_fds=[writes])
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        assert (pipe.read(), done.returncode) == (b"through", 0)


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise ValueError('wrong')", 1, "ValueError: wrong\n"),
        ("import sys; sys.exit('told')", 1, "told\n"),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'end')", 0, "end"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_the_end_is_the_same(code: str, status: int, said: str) -> None:
    done = run("-c", code)
    assert done.returncode == status
    assert done.stderr.endswith(said)


def test_a_signal_arrives_and_a_kill_ends_both(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = (
        "import os, pathlib, sys, time; "
        f"path = pathlib.Path({str(tmp_path)!r}, 'new'); path.write_text(str(os.getpid())); "
        f"path.rename({str(pid_file)!r}); time.sleep(60)"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        started = subprocess.Popen([warm_python(), "-c", code])
        wait_for(pid_file.exists)
        process = int(pid_file.read_text())
        pid_file.unlink()
        started.send_signal(number)
        assert started.wait(20) == -number
        wait_for(lambda process=process: not Path(f"/proc/{process}").exists())


def wait_for(holds) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_gpus_are_hidden_from_tests_and_their_processes() -> None:
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    done = run("-c", "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))")
    assert done.stdout == "''\n"
