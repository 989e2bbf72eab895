"""Ctrl-C at any moment from the first import on ends a command with one word and code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What a library may make of it, here while `module` is imported.
IMPORT_INTERRUPTED = """
import builtins, runpy, signal, sys
name, module, error = sys.argv[1:]
of_python = builtins.__import__
def interrupted(imported, *others, **more):
    if imported == module:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise getattr(builtins, error)("of a library") from None
    return of_python(imported, *others, **more)
builtins.__import__ = interrupted
runpy.run_module(name, run_name="__main__", alter_sys=True)
"""
COMMAND_INTERRUPTED = """
import signal, sys
from common.exits import exit_code_of, heed_ctrl_c
heed_ctrl_c()
def run():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RecursionError("of a library") from None
    return 7
sys.exit(exit_code_of(run))
"""


def run_alone(*command: str, folder: Path = ROOT, handler: Any = signal.SIG_DFL) -> tuple[int, str]:
    """With the handler of SIGINT that a shell sets."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("error", ["ModuleNotFoundError", "RecursionError", "KeyboardInterrupt"])
@pytest.mark.parametrize("module", ["argparse", "common.verbs"])
@pytest.mark.parametrize("name", ["training", "data_prep", "launch"])
def test_ctrl_c_during_the_imports_of_a_command_is_one_line(name, module, error):
    assert run_alone("-c", IMPORT_INTERRUPTED, name, module, error) == (130, "interrupted\n")


def test_an_error_that_a_library_makes_of_ctrl_c_is_one_line():
    assert run_alone("-c", COMMAND_INTERRUPTED) == (130, "interrupted\n")


def test_ctrl_c_within_an_exec_ends_with_our_code_not_by_the_signal(tmp_path):
    """As Python itself would end a module run by -m, once it has remembered one."""
    program = COMMAND_INTERRUPTED.replace("signal.raise_signal(signal.SIGINT)", "exec(RAISE)")
    program = program.replace('RecursionError("of a library") from None', "")
    (tmp_path / "command.py").write_text(f"RAISE = 'signal.raise_signal(2)'\n{program}")
    assert run_alone("-m", "command", folder=tmp_path) == (130, "interrupted\n")


def test_a_job_in_the_background_goes_on_after_ctrl_c():
    assert run_alone("-c", COMMAND_INTERRUPTED, handler=signal.SIG_IGN) == (7, "")


def test_an_error_without_ctrl_c_keeps_its_traceback():
    program = "from common.exits import heed_ctrl_c; heed_ctrl_c(); raise RecursionError"
    code, said = run_alone("-c", program)
    assert (code, said.splitlines()[0]) == (1, "Traceback (most recent call last):")


def test_a_ctrl_c_that_comes_twice_is_one():
    """From the terminal and passed on by a launcher; a later one is another."""
    program = """
import signal, sys, time
from common.exits import heed_ctrl_c
heed_ctrl_c()
for seconds in (0, 0, 1.1):
    time.sleep(seconds)
    try:
        signal.raise_signal(signal.SIGINT)
        print("again", file=sys.stderr)
    except KeyboardInterrupt:
        pass
"""
    assert run_alone("-c", program) == (0, "again\n")
