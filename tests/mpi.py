"""Where tests and benchmarks find an mpirun, and how they take MPI away from this process."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

# What mpi4py says where there is no library; it goes on with every file that it has tried.
NO_LIBRARY = "cannot load MPI library\nlibmpi.so.40: cannot open shared object file"

# Between hosts of tests.launch.hosts, which share /tmp: Open MPI 5 names folders there by process
# ids, and those of hosts are the same.
MPI_OF_HOSTS = {
    "OMPI_MCA_btl": "tcp,self",
    "OMPI_MCA_btl_tcp_if_include": "eth0",
    "OMPI_MCA_oob_tcp_if_include": "eth0",
    "PRTE_MCA_prte_tmpdir_base": "/var/tmp/node",
}


def find_mpirun() -> str | None:
    """That of this Python, whose library mpi4py loads before any other; else the first of PATH."""
    beside = Path(sys.executable).parent / "mpirun"
    is_ours = beside.is_file() and str(beside.parent) not in ("/usr/bin", "/bin")
    return str(beside) if is_ours else shutil.which("mpirun")


def hide_mpi(monkeypatch: pytest.MonkeyPatch, *, lacks: str = "library") -> None:
    """As on a machine without an MPI library, or, `lacks="mpi4py"`, without mpi4py."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mpi4py"]:
        monkeypatch.delitem(sys.modules, name)
    if lacks == "mpi4py":
        monkeypatch.setitem(sys.modules, "mpi4py", None)
        return

    def load(name: str) -> None:
        if name == "MPI":
            raise RuntimeError(NO_LIBRARY)
        raise AttributeError(name)

    stand_in = ModuleType("mpi4py")
    stand_in.__getattr__ = load  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "mpi4py", stand_in)
