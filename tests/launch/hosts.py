"""Hosts on one machine: namespaces of network, processes and mounts on a bridge, with real sshd.

They share this machine's disk, as nodes of a cluster share a file system, and nothing else: each
has a name, an address, processes and /dev/shm of its own, a power switch and a network cable. They
have no GPUs.
Needs root, iproute2, util-linux and openssh-server.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

_MOST_CLUSTERS = 8
_INIT = """
set -e; name=$1 folder=$2
mount -t proc proc /proc; hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mkdir -p /root/.ssh /run/sshd /var/tmp/node
mount --bind "$folder/ssh" /root/.ssh
mount -t tmpfs -o size=512m tmpfs /dev/shm
mount -t tmpfs tmpfs /run/sshd; chmod 755 /run/sshd
mount -t tmpfs -o mode=1777 tmpfs /var/tmp/node
for device in /dev/nvidia*; do [[ ! -c $device ]] || mount --bind /dev/null "$device"; done
/usr/sbin/sshd -f "$folder/sshd_config" -E "$folder/sshd.$name.log"
touch "$folder/$name.ready"
trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done
"""
_SSH_CONFIG = """Host *
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
  BatchMode yes
  ConnectTimeout 5
"""
_SSHD_CONFIG = """Port 22
HostKey {folder}/hostkey
PidFile none
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
AuthorizedKeysFile {folder}/ssh/authorized_keys
StrictModes no
MaxStartups 100
"""


def why_not() -> str | None:
    """What this machine lacks for hosts, if anything."""
    if os.geteuid() != 0:
        return "needs root, to make hosts of namespaces"
    missing = [
        name for name in ("ip", "unshare", "nsenter", "ssh-keygen") if not shutil.which(name)
    ]
    missing += [] if Path("/usr/sbin/sshd").exists() else ["sshd"]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True)
    return None if tried.returncode == 0 else "may not make namespaces"


needs_hosts = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Hosts:
    """`h1`, `h2`, ... up while this is open as a context; `headnode` is the machine itself."""

    def __init__(self, folder: Path, number: int = 2) -> None:
        """Keep keys and logs in `folder`, which every host sees."""
        self.names = [f"h{index}" for index in range(1, number + 1)]
        self.cluster_number = -1
        """Of those that are up on this machine at a time; ports of the head node go by it."""
        self._folder = folder
        self._inits: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def _bridge(self) -> str:
        return f"br-{self._space('')}"

    @property
    def head_address(self) -> str:
        return f"10.77.{self.cluster_number}.254"

    def address(self, name: str) -> str:
        return f"10.77.{self.cluster_number}.{name[1:]}"

    def __enter__(self) -> Self:
        self._take_number()
        self._tear_down()  # what a killed test left
        self._write_files()
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.head_address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for name in self.names:
            space, cable = self._space(name), self._cable(name)
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self._bridge, "up")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            self.boot(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in self.names:
            self.power_off(name)
        self._tear_down()
        self._lock.close()

    def _take_number(self) -> None:
        """Names and addresses exist once on a machine: each cluster has some of its own."""
        for self.cluster_number in range(_MOST_CLUSTERS):
            # of this machine, and not of one run of the tests
            path = Path("/run", f"entrodrop-test-hosts-{self.cluster_number}.lock")
            self._lock = path.open("w")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
            else:
                return
        raise AssertionError(f"{_MOST_CLUSTERS} clusters are up on this machine already")

    def boot(self, name: str) -> None:
        self.mend_cable(name)
        ready = self._folder / f"{name}.ready"
        ready.unlink(missing_ok=True)
        namespaces = ["--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child"]
        namespaces += ["--propagation", "private"]
        init = ["bash", "-c", _INIT, "init", name, str(self._folder)]
        with (self._folder / f"init.{name}.log").open("ab") as log:
            self._inits[name] = subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), "unshare", *namespaces, *init],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 10
        while not ready.exists():
            assert time.monotonic() < deadline, (self._folder / f"init.{name}.log").read_text()
            time.sleep(0.02)

    def power_off(self, name: str) -> None:
        """As pulling the plug: every process is gone at once, and says goodbye to nobody."""
        init = self._inits.pop(name, None)
        if init is None:
            return
        # cable first: the kernel, which goes on living, would send farewells for the dead processes
        self.cut_cable(name)
        os.kill(self._pid_one(init), signal.SIGKILL)
        init.wait(timeout=10)

    def is_up(self, name: str) -> bool:
        return name in self._inits

    def cut_cable(self, name: str) -> None:
        _ip("link", "set", self._cable(name), "down")

    def mend_cable(self, name: str) -> None:
        _ip("link", "set", self._cable(name), "up")

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """What runs `command` on the host, in the folder it is started from."""
        target = str(self._pid_one(self._inits[name]))
        spaces = ["--net", "--uts", "--ipc", "--mount", "--pid"]
        return ["nsenter", "--target", target, *spaces, f"--wdns={Path.cwd()}", "--", *command]

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], **options: Any
    ) -> subprocess.Popen[str]:
        """Start a command on a host; its stderr goes to its stdout, in a session of its own."""
        return subprocess.Popen(
            self.command(name, command),
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            **options,
        )

    def signal(self, started: subprocess.Popen[str], number: int) -> None:
        """To a command of `start` itself: `nsenter`, which waits for it, passes nothing on."""
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), number)

    def processes(self, name: str, pattern: str) -> list[str]:
        """Command lines on the host that hold the pattern."""
        found = subprocess.run(
            self.command(name, ["pgrep", "-f", "-a", pattern]), capture_output=True, text=True
        )
        return [line for line in found.stdout.splitlines() if "pgrep" not in line]

    def _pid_one(self, init: subprocess.Popen[bytes]) -> int:
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        assert len(children) == 1, children
        return int(children[0])

    def _cable(self, name: str) -> str:
        return f"v-{self._space(name)}"  # 15 characters are the most

    def _space(self, name: str) -> str:
        return f"entrodrop{self.cluster_number}-{name}"

    def _write_files(self) -> None:
        ssh = self._folder / "ssh"
        ssh.mkdir(parents=True, mode=0o700)
        for key in (ssh / "id_ed25519", self._folder / "hostkey"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
        (ssh / "config").write_text(_SSH_CONFIG)
        for path in ssh.iterdir():
            path.chmod(0o600)
        (self._folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=self._folder))
        lines = ["127.0.0.1 localhost", f"{self.head_address} headnode"]
        lines += [f"{self.address(name)} {name}" for name in self.names]
        (self._folder / "hosts").write_text("\n".join(lines) + "\n")

    def _tear_down(self) -> None:
        """Also hosts that a killed test with more of them has left."""
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
        spaces = [line.split()[0] for line in listed.stdout.splitlines()]
        for space in spaces:
            if space.startswith(self._space("")):
                subprocess.run(["ip", "netns", "del", space], capture_output=True)
                cable = self._cable(space.removeprefix(self._space("")))
                subprocess.run(["ip", "link", "del", cable], capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
