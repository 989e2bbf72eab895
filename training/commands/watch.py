"""The verb `watch`: the report of a run that is going, in a browser."""

from __future__ import annotations

import argparse
import socket
from pathlib import Path

SUMMARY = "serve the report of a run that is going, for a browser or a phone"
DESCRIPTION = """\
Serve the report of runs on this machine, and draw it again whenever they have news; Ctrl-C ends it.
Nothing is written into the run folder. Only this machine can read it, unless --host says otherwise:
then whoever reaches the port can, without a password.

  python -m training watch runs/quickstart
  python -m training watch runs/plain runs/entrodrop --port 8080
  python -m training watch runs/quickstart --host 0.0.0.0      # for a phone in the same network
"""


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder of runs"
    )
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    verb.add_argument("--port", type=int, default=6010, help="0 takes a free one (%(default)s)")
    verb.add_argument(
        "--every",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="how often a page looks for news (%(default)g)",
    )


def run(options: argparse.Namespace) -> int:
    if not 0.1 <= options.every < float("inf"):
        raise ValueError(f"--every {options.every:g} is not a number of seconds above 0.1")
    for run_dir in options.runs:
        if not run_dir.is_dir():
            raise ValueError(f"{run_dir} is not a folder; a start of the run creates it")
    from training.reports.live import LiveReport, make_server

    report = LiveReport(options.runs, every_seconds=options.every)
    with make_server(report, host=options.host, port=options.port) as server:
        host, port = server.server_address[:2]
        urls = [f"http://{each}:{port}/" for each in _names_of(str(host))]
        print(f"{' or '.join(urls)}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _names_of(host: str) -> list[str]:
    """How others reach the address that is listened on; all addresses at once are none."""
    if host != "0.0.0.0":
        return [host]
    names = [socket.gethostname()]  # which a phone may not know
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it chooses this machine's address
            names.append(str(probe.getsockname()[0]))
        except OSError:  # without a network
            pass
    return names
