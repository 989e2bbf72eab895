"""The report of runs that are going, served on this machine and drawn again when they have news."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from training.metrics.file import METRICS_FILE
from training.ranks.run_state import RUN_STATE_FILE
from training.reports.html_page import page, paragraph, section
from training.reports.report import write_report

_VERSION = "version"
# Keeps what a reader has opened and where they are; says when the server does not answer.
_SCRIPT = """
let shown = "VERSION", refreshed = 0;
const note = document.createElement("p");
note.id = "live";
note.style = "position:fixed;right:10px;bottom:8px;margin:0;padding:2px 10px;border-radius:9px;" +
  "background:var(--card);border:1px solid var(--line);color:var(--soft);font-size:0.8rem";
document.body.append(note);
const say = (text) => { note.textContent = text + " " + new Date().toLocaleTimeString(); };
say("live");
async function look() {
  try {
    const version = await (await fetch("version", {cache: "no-store"})).text();
    if (version !== shown) {
      const text = await (await fetch("./", {cache: "no-store"})).text();
      const fresh = new DOMParser().parseFromString(text, "text/html");
      const open = [...document.querySelectorAll("main details")].map((each) => each.open);
      [...fresh.querySelectorAll("main details")].forEach((each, i) => { each.open = !!open[i]; });
      document.title = fresh.title;
      document.querySelector("main").replaceWith(fresh.querySelector("main"));
      shown = version;
      document.body.dataset.refreshed = ++refreshed;
    }
    say("live");
  } catch { if (!note.textContent.startsWith("no answer")) say("no answer since"); }
  setTimeout(look, MILLISECONDS);
}
setTimeout(look, MILLISECONDS);
"""


class LiveReport:
    """The page of some runs as they are now; drawn once for all readers of a version."""

    def __init__(self, run_dirs: Sequence[Path], *, every_seconds: float) -> None:
        self._run_dirs, self._every_seconds = run_dirs, every_seconds
        self._lock = threading.Lock()
        self._drawn: tuple[str, str] | None = None

    def version(self) -> str:
        """Changes with what the page would show."""
        facts = []
        for run_dir in self._run_dirs:
            for name in (METRICS_FILE, RUN_STATE_FILE):
                for path in sorted((*run_dir.glob(name), *run_dir.glob(f"*/{name}"))):
                    found = path.stat()
                    facts.append(f"{found.st_mtime_ns:x}.{found.st_size:x}")
        return "-".join(facts) or "none"

    def page(self) -> str:
        """As HTML, with the script that keeps it new."""
        with self._lock:
            version = self.version()  # before it is read: a row that comes meanwhile is news
            if self._drawn is None or self._drawn[0] != version:
                self._drawn = version, self._with_script(self._draw(), version)
            return self._drawn[1]

    def _draw(self) -> str:
        with TemporaryDirectory(prefix="entrodrop-watch-") as folder:
            try:
                return write_report(self._run_dirs, Path(folder)).read_text(encoding="utf-8")
            except (ValueError, OSError) as error:  # as before the first step
                names = ", ".join(run_dir.name for run_dir in self._run_dirs)
                return page(names, [section("Nothing to show yet", paragraph(str(error)))])

    def _with_script(self, text: str, version: str) -> str:
        milliseconds = str(round(1000 * self._every_seconds))
        script = _SCRIPT.replace("VERSION", version).replace("MILLISECONDS", milliseconds)
        return text.replace("</body>", f"<script>{script}</script></body>")


def make_server(report: LiveReport, *, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the page and of its version, and of nothing else.

    Raises:
        ValueError: for an address that cannot be used.
    """
    try:
        return ThreadingHTTPServer((host, port), partial(_Handler, report))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--host {host} --port {port}: {reason}; choose another one") from None


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, report: LiveReport, *args: Any) -> None:
        self._report = report
        super().__init__(*args)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/{_VERSION}":
            self._send(self._report.version(), kind="text/plain")
        elif path == "/":
            self._send(self._report.page(), kind="text/html")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, text: str, *, kind: str) -> None:
        content = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Errors alone: a line for each look would hide them."""
        if args and str(args[0]).startswith("code"):
            print(f"{self.address_string()}: {format % args}", file=sys.stderr)
