"""A hub on this machine, as far as pushing a model or reading files needs one, over HTTP.

Repositories with commits, `preupload`, Git LFS's batch API with basic transfers (not Xet), commits
as lines of JSON with the parent that they expect, information on a revision, the tree of a folder
and ranges of a file, as huggingface_hub asks for them; all in memory.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
TOKEN = "hf_tests"
OWNER = "me"


class Hub(ThreadingHTTPServer):
    """What it holds, and what it does wrong on purpose."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[Files]] = {}
        """Of each repository; the first has no file."""
        self.blobs: dict[str, bytes] = {}
        self.fails_at = ""
        """Part of paths that are answered with 507, which no client repeats; `loses`: a byte."""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def files(self, repo: str) -> Files:
        return self.commits[repo][-1]


@contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_PUT = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        self.server.requests.append(f"{self.command} {self.path}")

    def _answer(self, body: bytes) -> None:
        parts = urlsplit(unquote(self.path)).path.strip("/").split("/")
        fails_at = self.server.fails_at
        if fails_at and fails_at in parts:
            return self._send(507, {"error": "a disk is full"})
        if parts[0] == "blobs":
            self.server.blobs[parts[1]] = body[: -1 if fails_at == "loses" else None]
            return self._send(200, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        if parts[:2] == ["api", "repos"]:
            return self._create(json.loads(body))
        if parts[:2] == ["api", "validate-yaml"]:
            return self._send(200, {"errors": [], "warnings": []})
        if parts[0] == "datasets":
            return self._resolve("/".join(parts[1:3]), "/".join(parts[5:]))
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        if repo not in self.server.commits:
            return self._send(404, {"error": "no"}, code="RepoNotFound")
        if parts[-1] == "batch":
            return self._send(200, self._batch(json.loads(body)))
        if parts[4:5] == ["preupload"]:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return self._send(200, {"files": files})
        if parts[4:5] == ["commit"]:
            return self._commit(repo, [json.loads(line) for line in body.splitlines()])
        if parts[4:5] == ["tree"]:
            return self._list(repo, "/".join(parts[6:]))
        return self._tell(repo, parts[5] if len(parts) > 5 else "main")

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked["organization"] or OWNER
        repo = f"{owner}/{asked['name']}"
        if owner != OWNER:
            return self._send(403, {"error": "You don't have the rights"})
        is_there = repo in self.server.commits
        self.server.commits.setdefault(repo, [{}])
        self._send(409 if is_there else 200, {"url": f"{self.server.url}/{repo}"})

    def _batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.server.url}/blobs/{each['oid']}"}}}
            for each in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        commits = self.server.commits[repo]
        files = dict(commits[-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") != _oid(len(commits) - 1):
                return self._send(412, {"error": "A commit has happened since."})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            if line["key"] == "deletedFile":
                del files[value["path"]]
        commits.append(files)
        oid = _oid(len(commits) - 1)
        url = f"{self.server.url}/{repo}/commit/{oid}"
        self._send(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def _tell(self, repo: str, revision: str) -> None:
        commits = self.server.commits[repo]
        number = len(commits) - 1 if revision == "main" else int(revision, 16)
        siblings = []
        for name, content in commits[number].items():
            told: dict[str, Any] = {"rfilename": name, "size": len(content)}
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                told["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
            else:
                header = f"blob {len(content)}\0".encode()
                told["blobId"] = hashlib.sha1(header + content).hexdigest()
            siblings.append(told)
        told = {"id": repo, "sha": _oid(number), "private": False, "siblings": siblings}
        self._send(200, told)

    def _list(self, repo: str, folder: str) -> None:
        """What is right below a folder; of a file, and of what is not there, the hub says 404."""
        found: dict[str, dict[str, Any]] = {}
        prefix = f"{folder}/" if folder else ""
        for name, content in self.server.files(repo).items():
            if name.startswith(prefix):
                first, *rest = name.removeprefix(prefix).split("/")
                oid = hashlib.sha1(content).hexdigest()
                told: dict[str, Any] = {"type": "directory"} if rest else {"type": "file"}
                size = 0 if rest else len(content)
                found[first] = {**told, "oid": oid, "size": size, "path": prefix + first}
        if not found and folder:
            return self._send(404, {"error": "no"}, code="EntryNotFound")
        self._send(200, list(found.values()))

    def _resolve(self, repo: str, name: str) -> None:
        """A file, or the range of it that is asked for."""
        content = self.server.files(repo)[name]
        asked = self.headers.get("Range")
        if asked:
            begin, end = asked.removeprefix("bytes=").split("-")
            content = content[int(begin) : int(end) + 1]
        fails_at = self.server.fails_at
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: -1 if fails_at == "cuts" else None])
        if fails_at == "cuts":
            self.server.fails_at, self.close_connection = "", True

    def _send(self, status: int, content: Any, *, code: str | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)


def _oid(number: int) -> str:
    """Of a commit, as long as git's."""
    return f"{number:040x}"
