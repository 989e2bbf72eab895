"""An object store on this machine: moto's server speaks S3, and can be told to fail."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

REMOTE = Path(__file__).resolve().parents[1] / ".venv" / "remote"
_DENIED = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"


class Store:
    """The server's address, and how its next answers fail."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.faults: list[tuple[str, str, str]] = []
        """Method, part of the path, and what befalls the next such request: 503, cut."""

    def fail(self, method: str, path: str, how: str, *, times: int = 1) -> None:
        self.faults += [(method, path, how)] * times


@contextmanager
def object_store(bucket: str = "bucket") -> Iterator[Store]:
    """A server with an empty bucket, to which the environment leads every client."""
    if str(REMOTE) not in sys.path:
        sys.path.append(str(REMOTE))  # last: what is pinned for all comes first
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    app = DomainDispatcherApplication(create_backend_app)
    store = Store("")
    server = make_server("127.0.0.1", 0, _failing(app, store), threaded=True, request_handler=Quiet)
    store.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    paths = os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(REMOTE)]).lstrip(os.pathsep)
    variables = {
        "AWS_ENDPOINT_URL": store.address,
        "AWS_ACCESS_KEY_ID": "right",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "1",  # the client tries again by itself, ever more slowly
        "PYTHONPATH": paths,
    }
    try:
        with patch.dict(os.environ, variables):
            import fsspec

            fsspec.filesystem("s3", skip_instance_cache=True).mkdir(bucket)
            fsspec.filesystem("s3").clear_instance_cache()
            yield store
    finally:
        server.shutdown()


def _failing(app: Callable[..., Iterable[bytes]], store: Store) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "Credential=wrong/" in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 Forbidden", [("Content-Length", str(len(_DENIED)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [_DENIED]
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        for fault in store.faults:
            if fault[0] == request[0] and fault[1] in request[1]:
                store.faults.remove(fault)
                if fault[2] == "503":
                    start_response("503 Slow Down", [("Content-Length", "0")])
                    return []
                return _cut(app(environ, start_response))
        return app(environ, start_response)

    return answer


def _cut(content: Iterable[bytes]) -> Iterator[bytes]:
    whole = b"".join(content)
    yield whole[: len(whole) // 2]
    raise ConnectionResetError("as when a cable is pulled")
