"""What a mirror deletes, what it refuses, and what it sends again; the store is in memory."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch

from common.mirror import complete_mirrors, delete_mirror, download_folder, upload_folder
from common.remote import delete, list_files, read_bytes, write_bytes
from data_prep.__main__ import main
from training.checkpoints import mirror
from training.checkpoints.manifest import MANIFEST
from training.checkpoints.mirror import CheckpointMirror
from training.ranks.dist import Layout

LAYOUT = Layout(0, 1, 1, torch.device("cpu"))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"memory://{tmp_path.name}/one"  # all tests of a process share the memory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "corpus", "manifest.json", "inner/small", "big")


def made(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{folder.name} {name}")
    return folder


def names_at(url: str) -> list[str]:
    return [file.url.removeprefix(f"{url}/") for file in list_files(url)]


def send(folder: Path, url: str) -> bool:
    return upload_folder(folder, url, last="manifest.json")


@pytest.mark.parametrize("held", ["thesis.txt", "other/mirror.json", "big"])
def test_a_place_that_is_no_mirror_is_refused_and_kept(
    folder: Path, url: str, held: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bytes(f"{url}/{held}", b"theirs")
    assert main(["mirror", str(folder), url]) == 2
    assert f"{url}: is no mirror, but holds {held}; choose" in capsys.readouterr().err
    assert main(["mirror", str(folder), f"{url}/{held}"]) == 2  # the object itself
    delete_mirror(url)
    assert names_at(url) == [held]
    assert read_bytes(f"{url}/{held}") == b"theirs"


def test_only_what_the_mirror_listed_is_deleted_or_replaced(folder: Path, url: str) -> None:
    send(folder, url)
    write_bytes(f"{url}/thesis.txt", b"theirs")
    (folder / "big").unlink()
    made(folder, "new")
    send(folder, url)
    kept = ["inner/small", "manifest.json", "mirror.json", "new", "thesis.txt"]
    assert names_at(url) == kept
    made(folder, "thesis.txt")
    with pytest.raises(ValueError, match=r"thesis\.txt: is in the way, and not of the mirror"):
        send(folder, url)
    assert names_at(url) == kept
    delete_mirror(url)
    assert read_bytes(f"{url}/thesis.txt") == b"theirs"
    assert names_at(url) == ["thesis.txt"]


def test_a_damaged_listing_is_refused(folder: Path, url: str) -> None:
    write_bytes(f"{url}/mirror.json", b'{"files": ["a list of something else"]}')
    write_bytes(f"{url}/theirs", b"")
    assert main(["mirror", str(folder), url]) == 2
    assert names_at(url) == ["mirror.json", "theirs"]


def test_a_replacement_that_is_killed_forgets_no_object(
    folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(folder, url)
    above = url.removesuffix("/one")
    assert complete_mirrors(above) == ["one"]
    (folder / "big").unlink()
    (folder / "inner" / "small").write_text("changed")

    def kill(url: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("common.mirror.delete", kill)
        send(folder, url)
    assert complete_mirrors(above) == []
    send(folder, url)
    assert names_at(url) == ["inner/small", "manifest.json", "mirror.json"]
    assert read_bytes(f"{url}/inner/small") == b"changed"


def test_what_is_gone_or_of_another_size_is_sent_again(
    folder: Path, url: str, tmp_path: Path
) -> None:
    assert send(folder, url)
    assert not send(folder, url)
    delete(f"{url}/big")
    write_bytes(f"{url}/inner/small", b"overwritten with another size")
    assert send(folder, url)
    download_folder(url, tmp_path / "back")
    assert (tmp_path / "back" / "big").read_text() == "corpus big"
    assert (tmp_path / "back" / "inner" / "small").read_text() == "corpus inner/small"


def test_a_disk_is_a_store_too_and_a_mirror_may_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    url = f"file://{tmp_path}/store/empty"
    send(tmp_path / "empty", url)
    download_folder(url, tmp_path / "deep" / "back")
    assert list((tmp_path / "deep" / "back").iterdir()) == []


@pytest.mark.parametrize("place", ["file://", "s3://", "s3:///"])
def test_a_url_of_no_place_is_refused(
    folder: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mirror", str(folder), place]) == 2
    assert f"{place}: names no folder; expected a URL, such as" in capsys.readouterr().err


def checkpoint(root: Path, step: int) -> Path:
    return made(root / f"step-{step:08d}", MANIFEST, "weights")


def send_checkpoints(url: str, *folders: Path) -> CheckpointMirror:
    sender = CheckpointMirror(url, LAYOUT)
    for folder in folders:
        sender.add(folder)
        sender._join()
    return sender


def test_copies_of_steps_that_the_run_went_back_over_are_deleted(url: str, tmp_path: Path) -> None:
    send_checkpoints(url, checkpoint(tmp_path, 40), checkpoint(tmp_path, 60))
    write_bytes(f"{url}/step-00000070/theirs", b"")
    # what a start sends once more has not gone back yet: it may be an older disk
    send_checkpoints(url, tmp_path / "step-00000040")
    assert complete_mirrors(url) == ["step-00000040", "step-00000060"]
    send_checkpoints(url, checkpoint(tmp_path, 50))
    assert complete_mirrors(url) == ["step-00000040", "step-00000050"]
    assert "step-00000070/theirs" in names_at(url)
    with pytest.raises(ValueError, match=r"step-00000070: is no mirror, but holds theirs"):
        send_checkpoints(url, checkpoint(tmp_path, 70))


def test_a_checkpoint_added_as_the_thread_ends_is_sent(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends, may_end = threading.Event(), threading.Event()
    take = CheckpointMirror._next

    def slow_end(self: CheckpointMirror) -> Path | None:
        folder = take(self)
        if folder is None and not ends.is_set():  # it has seen that nothing waits, and is alive
            ends.set()
            assert may_end.wait(60)
        return folder

    monkeypatch.setattr(CheckpointMirror, "_next", slow_end)
    sender = CheckpointMirror(url, LAYOUT)
    sender.add(checkpoint(tmp_path, 1))
    assert ends.wait(60)
    sender.add(checkpoint(tmp_path, 2))
    may_end.set()
    sender._join()
    assert complete_mirrors(url) == ["step-00000001", "step-00000002"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_end_sends_what_a_dead_thread_left(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> bool:
        raise SystemExit

    sender = CheckpointMirror(url, LAYOUT)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "upload_folder", die)
        sender.add(checkpoint(tmp_path, 1))
        sender._thread.join()
    sender.add(checkpoint(tmp_path, 2))
    sender._join()
    assert complete_mirrors(url) == ["step-00000002"]
