"""Inputs on a hub, hf://, are listed and read as files of a folder are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfFileSystem, constants

from common import remote
from common.remote import RemoteError, list_files, open_remote
from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.reading.changes import refuse_changed
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.sources import find_domains
from tests.training.hub_server import TOKEN, Hub, hub

URL = "hf://datasets/me/data"
FILES = {
    "in/a.txt": b"words of a text",
    "in/deep/b.jsonl": b'{"text": "%s"}\n' % (b"one " * 500) * 100,
    "in/deep/er/c.txt": b"more words",
    "in/d.png": b"\x89PNG",
    "README.md": b"# Data",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as server:
        server.commits["me/data"] = [{}, dict(FILES)]
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
        HfFileSystem.clear_instance_cache()
        yield server
    HfFileSystem.clear_instance_cache()


def test_a_data_set_is_built_as_its_files_are(server: Hub, tmp_path: Path) -> None:
    local = tmp_path / "local"
    for name, content in FILES.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
    options = {"train_tokenizer": "bpe", "train_vocab_size": 300, "val_frac": 0.0}
    for source, out in ((f"{URL}/in/deep", "far"), (str(local / "in" / "deep"), "near")):
        build(BuildOptions((source,), tmp_path / out, num_workers=1, **options))  # type: ignore[arg-type]
    for path in (tmp_path / "near").glob("shard-*.tokens"):
        assert path.read_bytes() == (tmp_path / "far" / path.name).read_bytes()


def test_a_data_set_is_listed_by_folders(server: Hub) -> None:
    names = [file.url.removeprefix(f"{URL}/in/") for file in list_files(f"{URL}/in")]
    assert names == ["a.txt", "d.png", "deep/b.jsonl", "deep/er/c.txt"]
    assert [file.url for file in list_files(f"{URL}/in/a.txt")] == [f"{URL}/in/a.txt"]
    assert list_files(f"{URL}/nothing") == []
    domains = find_domains([f"{URL}/in"], globs=Globs(), fields_of={}, default=Fields(text="text"))
    assert [len(domain.files) for domain in domains] == [3]
    refuse_changed(domains)
    server.files("me/data")["in/a.txt"] = b"words of a book"
    with pytest.raises(ValueError, match=r"a\.txt: changed while being read"):
        refuse_changed(domains)


def test_a_file_of_a_hub_is_read_from_any_place(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = FILES["in/deep/b.jsonl"]
    server.fails_at = "cuts"
    with open_remote(f"{URL}/in/deep/b.jsonl") as file:
        assert file.seek(-10, io.SEEK_END) == len(content) - 10
        assert file.read() == content[-10:]
        file.seek(0)
        assert file.read() == content
    assert not server.fails_at
    monkeypatch.setenv("HF_TOKEN", "wrong")
    HfFileSystem.clear_instance_cache()
    with pytest.raises(RemoteError, match="data/in: not allowed, look at the credentials: "):
        list_files(f"{URL}/in")
