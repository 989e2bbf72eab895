"""Google Cloud Storage, gs://, as an emulator on this machine has it: inputs, ranges, mirrors."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from common import remote
from common.mirror import download_folder, upload_folder
from common.remote import (
    RemoteError,
    delete,
    list_files,
    open_remote,
    read_bytes,
    write_bytes,
)
from tests.data_prep.read_back import read_inputs
from tests.object_store import REMOTE

if str(REMOTE) not in sys.path:
    sys.path.append(str(REMOTE))  # last: what is pinned for all comes first
pytestmark = pytest.mark.skipif(
    not (find_spec("gcsfs") and find_spec("gcp_storage_emulator")),
    reason="needs an object store: launch/setup.sh --dev",
)
BUCKET = "gs://bucket"


@pytest.fixture(scope="module")
def store() -> Iterator[None]:
    """An emulator to which the environment leads the client."""
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="bucket")
    server.start()
    port = server._api._httpd.server_address[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        # It would ask Google what kind of bucket this is.
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
        yield
    server.stop()


def test_inputs_are_listed_and_read(store: None) -> None:
    files = {"a.txt": b"words of a text", "deep/b.jsonl": b'{"text": "a line"}\n', "a/c.txt": b"x"}
    for name, content in files.items():
        write_bytes(f"{BUCKET}/in/{name}", content)
    assert [file.url for file in list_files(f"{BUCKET}/in")] == [
        f"{BUCKET}/in/{name}" for name in sorted(files)
    ]
    assert sorted(read_inputs(f"{BUCKET}/in")[0]) == ["a line", "words of a text", "x"]
    before = list_files(f"{BUCKET}/in/a.txt")
    write_bytes(f"{BUCKET}/in/a.txt", b"words of a book")
    assert list_files(f"{BUCKET}/in/a.txt") != before
    assert list_files(f"{BUCKET}/none") == []
    with pytest.raises(ValueError, match="there is no such object, and none below it"):
        read_inputs(f"{BUCKET}/none")


def test_an_object_is_read_from_any_place_and_deleted(store: None) -> None:
    content = os.urandom(1 << 20)
    write_bytes(f"{BUCKET}/ranges", content)
    with open_remote(f"{BUCKET}/ranges") as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == content[-10:]
        file.seek(300_000)
        assert file.read(7) == content[300_000:300_007]
        file.seek(0)
        assert file.read() == content
    delete(f"{BUCKET}/ranges")
    assert read_bytes(f"{BUCKET}/ranges") is None
    with pytest.raises(RemoteError, match="there is no such object"):
        open_remote(f"{BUCKET}/ranges-2")


def test_a_folder_goes_there_and_back(store: None, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    (folder / "inner").mkdir(parents=True)
    (folder / "big").write_bytes(os.urandom(1 << 20))
    (folder / "inner" / "small").write_bytes(b"x")
    (folder / "manifest.json").write_bytes(b"{}")
    assert upload_folder(folder, f"{BUCKET}/mirror", last="manifest.json")
    assert not upload_folder(folder, f"{BUCKET}/mirror", last="manifest.json")
    download_folder(f"{BUCKET}/mirror", tmp_path / "back")
    for name in ("big", "inner/small", "manifest.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
