"""A real Slurm on hosts of this machine: munged, slurmctld, and one slurmd with fake GPUs a host.

Key, sockets, configuration and logs are in one folder; nothing of the machine's own is touched.
The machine itself is the head node, from which jobs are submitted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.launch import hosts as namespaces
from tests.launch.hosts import Hosts
from tests.launch.shared_runs import REPO_ROOT, cluster_environment

GRACE_SECONDS = 60
SLURMD_TIMEOUT_SECONDS = 20
_PORT = 16817
_GPUS_A_NODE = 2
# cred_expire is also how long a job that is queued again waits: 120 s by default, 5 at the least
_CONFIG = """\
ClusterName=entrodrop
SlurmctldHost={head}({head_address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=200000,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
SlurmdTimeout={slurmd_timeout}
KillWait={kill_wait}
MinJobAge=3600
JobRequeue=1
MailProg=/bin/true
GresTypes=gpu
NodeName=DEFAULT CPUs=2 RealMemory=2000 Gres=gpu:{gpus} Port={node_port} State=UNKNOWN
{nodes}
PartitionName=DEFAULT Nodes=ALL MaxTime=INFINITE State=UP
PartitionName=main Default=YES PriorityTier=1 GraceTime={grace}
PartitionName=spot PriorityTier=1 GraceTime=0
PartitionName=urgent PriorityTier=2 PreemptMode=OFF
"""
KILL_WAIT_SECONDS = 20
_DAEMONS = ("munged", "slurmctld", "slurmd")


def why_not() -> str | None:
    """What this machine lacks for a Slurm of its own, if anything."""
    missing = [name for name in (*_DAEMONS, "sbatch", "setpriv") if not _which(name)]
    return namespaces.why_not() or (f"needs {', '.join(missing)}" if missing else None)


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


needs_slurm = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class SlurmCluster:
    """Nodes `h1` and `h2`, idle and ready for jobs while this is open as a context.

    Jobs of the partition urgent preempt those of main, after a grace time, and of spot, at once.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.hosts = Hosts(folder / "hosts")
        self.environment = cluster_environment(SLURM_CONF=str(folder / "slurm.conf"))

    def __enter__(self) -> Self:
        with ExitStack() as stack:  # undone here, too, when the start fails half-way
            stack.enter_context(self.hosts)
            self._write_files()
            socket_path = self._folder / "munge.socket"
            self._start_daemon(stack, "munged", *self._munge_options(socket_path))
            wait_until(socket_path.exists, seconds=10, what="munged")
            self._start_daemon(stack, "slurmctld", "-D")
            for name in self.hosts.names:
                self._start_slurmd(name)
            self.wait_for_nodes()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """What a command on the head node prints; `environment` comes on top of the user's.

        Raises:
            AssertionError: when it fails.
        """
        done = subprocess.run(
            command,
            env=self.environment | dict(environment or {}),
            capture_output=True,
            text=True,
            cwd=REPO_ROOT,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def submit(
        self,
        script: str,
        options: Sequence[str],
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Submit a script of launch/slurm from the repository; the number of the job."""
        path = str(REPO_ROOT / "launch" / "slurm" / script)
        command = ("sbatch", "--parsable", *options, path, *arguments)
        return self.run(*command, environment=environment)

    def job(self, job_id: str) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode, Reason, ..."""
        fields = self.run("scontrol", "-o", "show", "job", job_id).split()
        return dict(field.split("=", 1) for field in fields if "=" in field)

    def wait_for(self, job_id: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """The job once it is in one of the states."""
        wait_until(
            lambda: self.job(job_id)["JobState"] in states,
            seconds=seconds,
            what=f"job {job_id} in {states}",
            told=lambda: f"{self.job(job_id)}\n{self._log_tail()}",
        )
        return self.job(job_id)

    def node_states(self) -> dict[str, str]:
        lines = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").splitlines()
        return dict(line.split() for line in lines)

    def wait_for_nodes(self, *, seconds: float = 60) -> None:
        """Until all nodes are idle."""
        wait_until(
            lambda: set(self.node_states().values()) == {"idle"},
            seconds=seconds,
            what="idle nodes",
            told=self._log_tail,
        )

    def processes(self, pattern: str) -> list[int]:
        """Numbers, as this machine counts them, of processes on all nodes; no shells or srun."""
        found = subprocess.run(["pgrep", "-f", f"^[^ ]*python.* {pattern}"], capture_output=True)
        return [int(pid) for pid in found.stdout.split()]

    def power_off(self, name: str) -> None:
        self.hosts.power_off(name)

    def boot(self, name: str) -> None:
        self.hosts.boot(name)
        self._start_slurmd(name)

    def _start_slurmd(self, name: str) -> None:
        done = subprocess.run(
            self.hosts.command(name, [str(_which("slurmd")), "-N", name]),
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"slurmd: {done.stderr}"

    def _start_daemon(self, stack: ExitStack, name: str, *options: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as log:
            daemon = subprocess.Popen(
                # it must not outlive a test process that is killed
                ["setpriv", "--pdeathsig", "KILL", str(_which(name)), *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        stack.callback(_end, daemon)

    def _munge_options(self, socket_path: Path) -> list[str]:
        files = {"key-file": "munge.key", "pid-file": "munged.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self._folder / name}" for option, name in files.items()]
        # by force: it dislikes folders that others may enter, as /tmp
        return ["--foreground", "--force", f"--socket={socket_path}", *options]

    def _write_files(self) -> None:
        for name in ("state", "spool", "gpus"):
            (self._folder / name).mkdir()
        key = self._folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        hosts = self.hosts
        nodes = [f"NodeName={name} NodeAddr={hosts.address(name)}" for name in hosts.names]
        config = _CONFIG.format(
            folder=self._folder,
            head=socket.gethostname().split(".")[0],
            head_address=hosts.head_address,
            port=_PORT + hosts.cluster_number,
            node_port=_PORT - 1,
            gpus=_GPUS_A_NODE,
            grace=GRACE_SECONDS,
            slurmd_timeout=SLURMD_TIMEOUT_SECONDS,
            kill_wait=KILL_WAIT_SECONDS,
            nodes="\n".join(nodes),
        )
        (self._folder / "slurm.conf").write_text(config)
        (self._folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # Slurm counts a GPU by its device; any character device will do, here that of /dev/null
        for index in range(_GPUS_A_NODE):
            os.mknod(self._folder / f"gpus/gpu{index}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        gpus = f"Name=gpu File={self._folder}/gpus/gpu[0-{_GPUS_A_NODE - 1}]\n"
        (self._folder / "gres.conf").write_text(gpus)

    def _log_tail(self) -> str:
        lines = [
            line
            for path in sorted(self._folder.glob("slurm*.log"))
            for line in [f"{path.name}:", *path.read_text().splitlines()[-15:]]
        ]
        return "\n".join(lines)


def wait_until(
    holds: Callable[[], bool],
    *,
    seconds: float,
    what: str,
    told: Callable[[], str] = str,
) -> None:
    """Look again and again.

    Raises:
        AssertionError: after so many seconds, with what `told` gives.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"no {what} in {seconds} s\n{told()}"
        time.sleep(0.1)


def _end(daemon: subprocess.Popen[bytes]) -> None:
    daemon.send_signal(signal.SIGTERM)
    try:
        daemon.wait(timeout=5)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
