"""Commands of the pages on launching run as they stand; two addresses stand for hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.markdown import REPO_ROOT, code_blocks

PAGES = ("launching.md", "planning.md")


def commands(page: str) -> list[str]:
    blocks = code_blocks(REPO_ROOT / "docs" / page, "bash")
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [line for page in PAGES for line in commands(page)])
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    for name in ("launch", "training", "data_prep", "ds_configs"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    (tmp_path / "hosts.txt").write_text("127.0.0.2 slots=4\n127.0.0.3 slots=4\n")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=tmp_path,
        env=os.environ
        | {
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHON": sys.executable,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shows = "GiB of a GPU, at the peak of" if "launch plan" in command else "training train "
    assert shows in done.stdout
