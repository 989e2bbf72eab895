"""Check: host names that resolve, the route between hosts, and the placement of processes."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

from launch.preflight.finding import Finding, first_of_hosts
from launch.preflight.formatting import count
from launch.preflight.setting import Context, Setting

_SIOCGIFADDR = 0x8915


def measure(_: Context) -> dict[str, Any]:
    """What this host's name resolves to, and the interface that reaches the first host."""
    try:
        found = socket.getaddrinfo(socket.gethostname(), None, family=socket.AF_INET)
        addresses = sorted({str(entry[4][0]) for entry in found})
    except OSError:
        addresses = []
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    address = _address_towards(master)
    return {
        "addresses": addresses,
        "master": master,
        "address": address,
        "interface": interface_addresses().get(address, "?"),
        "chosen": os.environ.get("GLOO_SOCKET_IFNAME"),
    }


def _address_towards(host: str) -> str:
    """The local address that packets to `host` would leave from; none is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
        except OSError as error:
            return f"none ({error.strerror})"


def interface_addresses() -> dict[str, str]:
    """Names of interfaces by their IPv4 addresses."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                reply = fcntl.ioctl(asks.fileno(), _SIOCGIFADDR, request)
            except OSError:  # an interface without an address
                continue
            found[socket.inet_ntoa(reply[20:24])] = name
    return found


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Names of several hosts resolve to addresses that other hosts can reach."""
    findings = []
    for rank, found in first_of_hosts(measures, setting.hosts).items():
        host = setting.hosts[rank]
        if found["chosen"]:
            continue
        loops = all(address.startswith("127.") for address in found["addresses"])
        if not found["addresses"] or (loops and setting.num_hosts > 1):
            how = (
                f"is {', '.join(found['addresses'])}" if found["addresses"] else "does not resolve"
            )
            findings.append(
                Finding(
                    "warn",
                    f"the name {host} {how} on the host itself, and gloo listens there",
                    "give it its network address in /etc/hosts or DNS, or set GLOO_SOCKET_IFNAME "
                    f"({found['interface']} leads to {found['master']})",
                    (rank,),
                )
            )
    findings += _of_placement(setting)
    if findings:
        return findings
    interfaces = sorted({found["interface"] for found in measures.values()})
    return [
        Finding(
            "pass",
            f"{count(setting.num_hosts, 'host')}, {setting.hosts[0]} first; "
            f"{', '.join(interfaces)} leads to {measures[min(measures)]['master']}",
        )
    ]


def _of_placement(setting: Setting) -> list[Finding]:
    """Equally many processes on each host, and those that share a sequence on the same one."""
    findings = []
    counts = {host: len(ranks) for host, ranks in setting.ranks_of_host.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{host} {count}" for host, count in counts.items())
        findings.append(
            Finding("warn", f"unequal numbers of processes: {shown}", "start equally many per host")
        )
    apart = [
        group
        for first in range(0, setting.world_size, setting.sp_size)
        if len(set(group := setting.hosts[first : first + setting.sp_size])) > 1
    ]
    if apart:
        findings.append(
            Finding(
                "warn",
                f"{len(apart)} of {setting.world_size // setting.sp_size} groups that share "
                f"sequences span hosts ({', '.join(dict.fromkeys(apart[0]))}): each layer "
                "exchanges heads among them",
                "choose train.sequence_parallel_size so that it divides the processes per host",
            )
        )
    return findings
