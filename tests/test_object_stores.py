"""Inputs, corpora and checkpoints on an object store that fails now and then, and is S3 to us."""

from __future__ import annotations

import io
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from common import remote
from common.mirror import complete_mirrors, download_folder, upload_folder
from common.remote import RemoteError, delete, list_files, open_remote, write_bytes
from data_prep.__main__ import main
from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.reading.changes import refuse_changed
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.sources import find_domains
from tests.data_prep.read_back import PACK, decoded, read_inputs
from tests.data_prep.test_archives import tarred
from tests.distributed import run_ranks
from tests.object_store import REMOTE, Store, object_store
from tests.training.short_runs import metrics, saving_recipe

pytestmark = pytest.mark.skipif(
    not REMOTE.is_dir(), reason="needs an object store: launch/setup.sh --dev"
)
BUCKET = "s3://bucket"


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "_WAITS", (0.0, 0.0, 0.0))
        yield opened


def parquet(texts: list[str]) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), content)
    return content.getvalue()


FILES = {
    "a.txt": b"words of a text",
    "deep/b.jsonl": (b'{"text": "%s"}\n' % (b"one " * 500)) * 600,  # of two parts
    "c.jsonl.gz": PACK[".gz"](b'{"text": "packed"}\n'),
    "d.json": b'[{"text": "listed"}]',
    "e.parquet": parquet(["a row", "another"]),
    "f.tar.gz": PACK[".gz"](tarred({"x/y.txt": b"a member"})),
    "g.png": b"\x89PNG",
    "h.npy": b"",
    ".hidden/i.txt": b"unseen",
}


def test_a_corpus_of_a_store_is_that_of_a_folder(store: Store, tmp_path: Path) -> None:
    local = tmp_path / "input"
    for name, content in FILES.items():
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(content)
        write_bytes(f"{BUCKET}/input/{name}", content)
    globs = Globs(include=("*.t*", "*.json*", "*.parquet", "*.npy"))
    texts, source = read_inputs(f"{BUCKET}/input", globs=globs)
    assert sorted(texts) == sorted(read_inputs(local, globs=globs)[0])
    assert source.num_files == 6
    assert ".npy (memory-mapped; copy it here first)" in source.files_left_out
    for how in ("cut", "503"):
        store.fail("GET", "b.jsonl", how)
        store.fail("GET", "a.txt", how)
        store.fail("GET", "e.parquet", how)
    options = {"train_tokenizer": "bpe", "train_vocab_size": 300, "val_frac": 0.0}
    inputs = tuple(f"{BUCKET}/input/{name}" for name in ("a.txt", "deep", "e.parquet"))
    build(BuildOptions(inputs, tmp_path / "far", num_workers=1, **options))  # type: ignore[arg-type]
    assert not store.faults
    inputs = tuple(str(local / name) for name in ("a.txt", "deep", "e.parquet"))
    build(BuildOptions(inputs, tmp_path / "near", num_workers=1, **options))  # type: ignore[arg-type]
    assert decoded(tmp_path / "far")[:2] == ["words of a text<eos>", "one " * 500 + "<eos>"]
    for path in (tmp_path / "near").glob("shard-*"):
        assert path.read_bytes() == (tmp_path / "far" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"{BUCKET}/nothing", "there is no such object, and none below it"),
        (f"{BUCKET}/h.npy", "is read through a memory map; copy it here first"),
        (f"{BUCKET}/both.txt", "both.txt: is an object, and others are below it, as s3.*/b.txt;"),
        ("s5://bucket/a.txt", "Protocol not known: s5; known are s3://"),
    ],
)
def test_what_cannot_be_read_is_refused(store: Store, url: str, words: str) -> None:
    write_bytes(f"{BUCKET}/h.npy", b"x")
    for name in ("both.txt", "both.txt/b.txt"):
        write_bytes(f"{BUCKET}/{name}", name.encode())
    with pytest.raises((ValueError, RemoteError), match=words):
        read_inputs(url)
    assert read_inputs(f"{BUCKET}/both.txt/")[0] == ["both.txt/b.txt"]


def test_a_listing_is_sorted_by_whole_names_and_keeps_nothing(store: Store) -> None:
    import fsspec

    rng = random.Random(0)
    url = f"{BUCKET}/listed"
    parts = ("a", "a-b", "a.txt", "b", "a b", "\u00e9", "Z", "")
    names = {"/".join(rng.choices(parts, k=rng.randint(1, 4))) for _ in range(24)}
    names = {name for name in names if name.strip("/") and not name.endswith("/")} | {"only"}
    for name in names:
        write_bytes(f"{url}/{name}", b"x" * len(name))
    client = fsspec.filesystem("s3")
    client.call_s3("put_object", Bucket="bucket", Key="listed/marked/", Body=b"")
    found = list_files(url)
    assert [file.url.removeprefix(f"{url}/") for file in found] == sorted(names)
    assert all(file.num_bytes == len(file.url.removeprefix(f"{url}/")) for file in found)
    assert list(client.dircache) == []
    assert [file.url for file in list_files(f"{url}/only")] == [f"{url}/only"]
    assert list_files(f"{url}/none") == []


def test_objects_that_change_during_a_build_are_named(store: Store) -> None:
    url = f"{BUCKET}/changing"
    for name in ("a.txt", "b/c.txt", "d.txt"):
        write_bytes(f"{url}/{name}", b"before")
    domains = find_domains([url], globs=Globs(), fields_of={}, default=Fields(text="text"))
    write_bytes(f"{url}/b/a.txt", b"new, so not of this build")
    refuse_changed(domains)
    write_bytes(f"{url}/d.txt", b"after")
    with pytest.raises(ValueError, match=r"changing/d\.txt: changed while being read"):
        refuse_changed(domains)
    delete(f"{url}/b/c.txt")
    with pytest.raises(ValueError, match=r"b/c\.txt: changed while being read"):
        refuse_changed(domains)


def test_an_object_is_read_from_any_place(store: Store) -> None:
    content = bytes(range(256)) * 6000
    write_bytes(f"{BUCKET}/ranges", content)
    with open_remote(f"{BUCKET}/ranges") as file:
        assert file.seek(-10, io.SEEK_END) == len(content) - 10
        assert file.read() == content[-10:]
        assert file.seek(300_000) == 300_000
        assert file.read(7) == content[300_000:300_007]
        file.seek(0)
        assert b"".join(iter(lambda: file.read(99_999), b"")) == content
    store.fail("GET", "ranges", "503", times=99)
    with (
        open_remote(f"{BUCKET}/ranges") as file,
        pytest.raises(RemoteError, match="failed 4 times"),
    ):
        file.read()
    store.faults.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "corpus"
    (made / "inner").mkdir(parents=True)
    (made / "big").write_bytes(os.urandom(1 << 20))
    (made / "inner" / "small").write_bytes(b"x")
    (made / "manifest.json").write_bytes(b"{}")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_an_upload_that_ends_early_is_resumed_and_counts_for_nothing(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    url = f"{BUCKET}/mirrors/{folder.parent.name}"
    store.fail("PUT", "manifest.json", "503", times=99)
    with pytest.raises(RemoteError, match=r"manifest\.json: failed 4 times"):
        upload_folder(folder, url, last="manifest.json")
    store.faults.clear()
    names = [file.url.removeprefix(f"{url}/") for file in list_files(url)]
    assert names == ["big", "inner/small", "mirror.json"]  # the manifest comes last
    assert complete_mirrors(f"{BUCKET}/mirrors") == []
    with pytest.raises(RemoteError, match="holds no complete mirror"):
        download_folder(url, tmp_path / "back")
    store.fail("PUT", "big", "503", times=99)  # nothing asks for it again
    upload_folder(folder, url, last="manifest.json")
    store.faults.clear()
    store.fail("GET", "big", "cut")
    download_folder(url, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    # other content of the same size, and a file less
    (folder / "big").write_bytes(os.urandom(1 << 20))
    (folder / "inner" / "small").unlink()
    upload_folder(folder, url, last="manifest.json")
    download_folder(url, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    write_bytes(f"{url}/big", bytes(1 << 20))
    with pytest.raises(RemoteError, match=r"big: damaged: expected 1048576 bytes"):
        download_folder(url, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_the_verb_copies_both_ways_and_says_what_it_may_not(
    store: Store,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{BUCKET}/verb/{folder.parent.name}"
    assert main(["mirror", str(folder), url]) == 0
    assert main(["mirror", f"{url}/", str(tmp_path / "back")]) == 0
    assert contents(tmp_path / "back") == contents(folder)
    refused = {
        (url, str(folder)): "exists; choose another folder",
        (str(folder), str(tmp_path)): "one of them must be a URL",
        (str(folder / "inner"), url): "is no finished folder: it has no manifest.json",
    }
    for arguments, words in refused.items():
        assert main(["mirror", *arguments]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    import fsspec

    fsspec.filesystem("s3").clear_instance_cache()
    assert main(["mirror", url, str(tmp_path / "other")]) == 2
    assert main(["mirror", str(folder), url]) == 2
    assert capsys.readouterr().err.count("not allowed, look at the credentials") == 2
    fsspec.filesystem("s3").clear_instance_cache()


def train_beside(recipe: object, variables: dict[str, str]) -> None:
    """On a rank, which has another environment."""
    os.environ.update(variables)
    sys.path.append(str(REMOTE))
    from training.run.run import train

    train(recipe)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_start_on_an_empty_disk_resumes_from_the_newest_copy(
    store: Store, small_corpus: Path, tmp_path: Path
) -> None:
    url = f"{BUCKET}/runs/one"
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    keys = {"checkpoint__mirror": url, "checkpoint__keep_last": 1, "checkpoint__keep_best": 0}
    first = saving_recipe(small_corpus, tmp_path / "a", train__stop_after_steps=3, **keys)
    run_ranks(train_beside, first, variables, world_size=2)
    assert complete_mirrors(url) == ["step-00000003"]
    other = saving_recipe(small_corpus, tmp_path / "b", train__stop_after_steps=6, **keys)
    run_ranks(train_beside, other, variables, world_size=2)
    assert [row["step"] for row in metrics(tmp_path / "b", "step")] == [4, 5, 6]
    assert complete_mirrors(url) == ["step-00000006"]  # 3 has gone here as it has there
