"""launch/setup.sh leaves nothing running when it is stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/usr/bin/env bash
[[ $1 == -m ]] || exit 0
echo $$ >pip.pid
exec sleep 60
"""


def test_ctrl_c_ends_the_installation_too(tmp_path: Path) -> None:
    """Else pip goes on unseen, into a .venv that the next start works on as well."""
    for folder in ("launch", ".venv/bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(REPO_ROOT / "launch" / "setup.sh", tmp_path / "launch")
    (tmp_path / "requirements.txt").write_text("torch==2.0\n")
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    # a run of the tests in the background may have been told to ignore it
    command = ["env", "--default-signal=INT", "launch/setup.sh"]
    setup = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    pid_file = tmp_path / "pip.pid"
    deadline = time.monotonic() + 30
    while not (pid_file.exists() and pid_file.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pip = Path("/proc", pid_file.read_text().strip())
    os.killpg(setup.pid, signal.SIGINT)
    assert setup.wait(timeout=30) != 0
    deadline = time.monotonic() + 10
    while pip.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
