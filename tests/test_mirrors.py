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
from training.checkpoints.manifest import MANIFEST, write_manifest
from training.checkpoints.mirror import CheckpointMirror
from training.checkpoints.mirror_owner import key_of_copies, new_owner, read_owner
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


IDENTITY = {"recipe": {"seed": 1, "shape": (2, 3)}, "pack": "a"}


def sender_to(url: str, *, run: str = "one") -> CheckpointMirror:
    """A start of a run."""
    sender = CheckpointMirror(url, LAYOUT)
    sender._claim(new_owner(run, Path("runs") / run, IDENTITY))
    return sender


def send_checkpoints(url: str, *folders: Path, run: str = "one") -> CheckpointMirror:
    sender = sender_to(url, run=run)
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


def test_a_run_at_the_url_of_another_is_refused_before_anything_is_deleted(
    url: str, tmp_path: Path
) -> None:
    earlier = send_checkpoints(url, checkpoint(tmp_path / "a", 60))
    held = names_at(url)
    # one that has checkpoints of its own, and one that would be the first to send
    write_manifest(checkpoint(tmp_path / "b", 40), {"run_key": "two"}, files={})
    theirs = rf"checkpoint\.mirror {url}: holds step-00000060 of another run \(.*/runs/one on "
    with pytest.raises(ValueError, match=f"{theirs}.*; choose another URL"):
        key_of_copies(url, tmp_path / "b", identity=IDENTITY, accepted=())
    with pytest.raises(ValueError, match=theirs):
        sender_to(url, run="two")
    others = IDENTITY | {"recipe": {"seed": 2, "shape": (2, 3)}}
    with pytest.raises(ValueError, match=r"of a run with other settings \(.*\): recipe\.seed; ch"):
        key_of_copies(url, tmp_path, identity=others, accepted=())
    # what may go on: an empty disk with these settings, or with the change accepted; the run itself
    assert key_of_copies(url, tmp_path, identity=IDENTITY, accepted=()) == "one"
    assert key_of_copies(url, tmp_path, identity=others, accepted=["recipe.seed"]) == "one"
    write_manifest(checkpoint(tmp_path / "c", 60), {"run_key": "one"}, files={})
    assert key_of_copies(url, tmp_path / "c", identity=others, accepted=()) == "one"
    assert names_at(url) == held
    # the same run started once more: the earlier start sends no more, and says why
    send_checkpoints(url, checkpoint(tmp_path / "a", 70))
    earlier.add(checkpoint(tmp_path / "a", 65))
    with pytest.raises(ValueError, match=r"taken over by a later start of this run \(.*end one"):
        earlier._join()
    assert complete_mirrors(url) == ["step-00000060", "step-00000070"]


def test_a_run_that_had_no_mirror_before_takes_over_no_copies_but_its_own(
    url: str, tmp_path: Path
) -> None:
    """Its checkpoints have no key, and the settings of two runs may be the same."""
    write_manifest(checkpoint(tmp_path / "b", 40), {"step": 40}, files={})
    send_checkpoints(url, checkpoint(tmp_path / "a", 40), checkpoint(tmp_path / "a", 60))
    with pytest.raises(ValueError, match="holds step-00000060 of another run"):
        key_of_copies(url, tmp_path / "b", identity=IDENTITY, accepted=())
    send_checkpoints(f"{url}/b", tmp_path / "b" / "step-00000040")  # all that it sent yet
    assert key_of_copies(f"{url}/b", tmp_path / "b", identity=IDENTITY, accepted=()) == "one"


def test_copies_of_an_earlier_version_are_refused_with_the_way_to_go_on(
    url: str, tmp_path: Path
) -> None:
    upload_folder(checkpoint(tmp_path / "a", 40), f"{url}/step-00000040", last=MANIFEST)
    with pytest.raises(ValueError, match=r"of a run that no run\.json there names") as refused:
        key_of_copies(url, tmp_path / "b", identity=IDENTITY, accepted=())
    words = str(refused.value).rpartition("data_prep ")[2].split()
    assert main(words) == 0
    assert (tmp_path / "b" / "step-00000040" / MANIFEST).is_file()


def test_two_runs_that_begin_at_one_url_at_once_delete_nothing(url: str, tmp_path: Path) -> None:
    first, second = sender_to(url, run="one"), sender_to(url, run="two")
    second.add(checkpoint(tmp_path / "b", 10))
    second._join()
    first.add(checkpoint(tmp_path / "a", 5))
    with pytest.raises(ValueError, match="taken over by a later start of another run"):
        first._join()
    assert complete_mirrors(url) == ["step-00000010"]
    # a run that has sent nothing leaves the place to the next
    assert key_of_copies(f"{url}/x", tmp_path, identity=IDENTITY, accepted=()) is None
    sender_to(f"{url}/x", run="three")
    assert key_of_copies(f"{url}/x", tmp_path, identity={}, accepted=()) is None
    owner = read_owner(sender_to(f"{url}/x", run="four")._url)
    assert owner and owner.run_key == "four"


def test_the_copy_of_another_corpus_is_replaced_only_if_told_so(
    folder: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = made(tmp_path / "other", "manifest.json", "theirs")
    ledger = '{"domains": [{"ledger": {"num_documents_kept": 1234}}]}'
    (other / "manifest.json").write_text(ledger)
    assert main(["mirror", str(other), url]) == 0
    assert main(["mirror", str(folder), url]) == 2
    message = capsys.readouterr().err
    assert f"{url}: holds a copy of another corpus, of 1,234 documents, not of {folder}" in message
    assert names_at(url) == ["manifest.json", "mirror.json", "theirs"]
    made(other, "pack-16/pack.json")  # comes later, and is of the same corpus
    assert main(["mirror", str(other), url]) == 0
    export = made(tmp_path / "export", "complete.json")
    assert main(["mirror", str(export), url]) == 2
    assert main(["mirror", str(folder), url, "--overwrite"]) == 0
    assert "theirs" not in names_at(url)


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
    sender = sender_to(url)
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

    sender = sender_to(url)
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "upload_folder", die)
        sender.add(checkpoint(tmp_path, 1))
        sender._thread.join()
    sender.add(checkpoint(tmp_path, 2))
    sender._join()
    assert complete_mirrors(url) == ["step-00000002"]
