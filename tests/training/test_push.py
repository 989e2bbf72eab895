"""A push makes a repository hold an export and nothing else, or says why it did not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.checksum import record_file
from tests.training.hub_server import TOKEN, Hub, hub
from tests.warm_python import warm_python
from training.checkpoints.hub import find_export, push_export
from training.checkpoints.manifest import find_corruption, write_manifest
from training.checkpoints.public_names import drop_notes, find_place

ROOT = Path(__file__).resolve().parents[2]
# Commands one after the other, in one process. What the library reads from its variables when it is
# loaded is set again: tests are offline, and Xet's storage is a protocol of its own beside Git LFS.
EACH = """
import contextlib, io, json, sys
from huggingface_hub import constants, utils
utils.disable_progress_bars()
constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = False, True
from training.__main__ import main
for line in sys.stdin:
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        code = main(json.loads(line))
    print(json.dumps([code, said.getvalue()]), flush=True)
"""


class Pusher:
    """A process that pushes on demand."""

    def __init__(self, server: Hub, home: Path) -> None:
        environment = os.environ | {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
        environment |= {"HF_HOME": str(home), "DS_ACCELERATOR": "cpu"}
        self.process = subprocess.Popen(
            ["timeout", "120", warm_python(), "-c", EACH],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def push(self, *arguments: object) -> tuple[int, str]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(["push", *map(str, arguments)]) + "\n")
        self.process.stdin.flush()
        code, said = json.loads(self.process.stdout.readline())
        assert code == 0 or (said.startswith("error: ") and said.count("\n") == 1), said
        return code, said


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub() as server:
        yield server


@pytest.fixture(scope="module")
def pusher(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pusher]:
    pusher = Pusher(server, tmp_path_factory.mktemp("hf_home"))
    yield pusher
    pusher.process.kill()
    pusher.process.wait()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_repository_holds_the_export_with_its_card_and_nothing_else(
    exported: Path, pusher: Pusher, server: Hub
) -> None:
    code, said = pusher.push(exported.parent, "--to", "chats")
    assert code == 0 and f"at {server.url}/me/chats" in said
    assert server.files("me/chats") == contents(exported)
    assert b"optimizer steps" in server.files("me/chats")["README.md"]
    # texts of the corpus, which the run keeps
    assert (exported.parent / "model" / "corpus_samples.json").is_file()
    assert "corpus_samples.json" not in server.files("me/chats")
    place = str(exported.parents[1]).encode()  # of the run, its corpus and its tokenizer
    assert not [name for name, content in contents(exported).items() if place in content]
    # what an older export of ours had
    server.commits["me/chats"].append({**contents(exported), "model-2.safetensors": b"old"})
    assert pusher.push(exported, "--to", "me/chats")[0] == 0
    assert server.files("me/chats") == contents(exported)


def test_what_is_no_export_of_ours_is_replaced_only_on_demand(
    exported: Path, pusher: Pusher, server: Hub
) -> None:
    server.commits["me/other"] = [{"config.json": b"{}", ".gitattributes": b"x"}]
    code, said = pusher.push(exported, "--to", "me/other")
    assert code == 2 and "me/other holds config.json and is not an export of ours" in said
    assert len(server.commits["me/other"]) == 1
    code, said = pusher.push(exported, "--to", "me/other", "--private")
    assert code == 2 and "exists and is public" in said
    assert pusher.push(exported, "--to", "me/other", "--replace")[0] == 0
    assert server.files("me/other") == {**contents(exported), ".gitattributes": b"x"}


@pytest.mark.parametrize(
    ("fails_at", "said", "num_commits"),
    [
        ("repos", "nothing was pushed", 0),
        ("blobs", "no file of me/failing was changed", 1),
        ("commit", "no file of me/failing was changed", 1),
        ("loses", "model.safetensors is not there as it is in", 2),
    ],
)
def test_a_push_that_fails_publishes_nothing_or_says_what(
    fails_at: str, said: str, num_commits: int, exported: Path, pusher: Pusher, server: Hub
) -> None:
    server.commits.pop("me/failing", None)
    server.fails_at = fails_at
    try:
        code, told = pusher.push(exported, "--to", "me/failing")
    finally:
        server.fails_at = ""
    assert code == 2 and said in told
    assert len(server.commits.get("me/failing", [])) == num_commits


def test_what_cannot_be_pushed_is_refused_in_a_sentence(
    exported: Path, pusher: Pusher, server: Hub, tmp_path: Path
) -> None:
    code, said = pusher.push(exported, "--to", "others/chats")
    assert code == 2 and "this token may not write there" in said
    assert "--to a b" in pusher.push(exported, "--to", "a b")[1]
    num_requests = len(server.requests)
    assert "no export; run: python -m training export" in pusher.push(tmp_path, "--to", "x")[1]
    damaged = Path(shutil.copytree(exported, tmp_path / "damaged"))
    (damaged / "config.json").write_text("{}")
    assert "damaged: " in pusher.push(damaged, "--to", "x")[1]
    assert len(server.requests) == num_requests


def test_a_checkpoint_is_no_export(exported: Path) -> None:
    checkpoint = sorted((exported.parent / "checkpoints").glob("step-*"))[-1]
    assert (checkpoint / "complete.json").is_file()
    with pytest.raises(ValueError, match="no export, as a checkpoint is none: it has neither"):
        find_export(checkpoint)


def test_what_the_export_did_not_write_is_refused_by_name(
    exported: Path, pusher: Pusher, server: Hub, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    num_requests = len(server.requests)
    (folder / ".env").write_text("PASSWORD=secret")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes.txt").write_text("mine")
    code, said = pusher.push(folder, "--to", "me/notes")
    assert code == 2 and ".cache/notes.txt, .env: not of the export; move it out" in said
    (folder / ".env").unlink()
    (folder / ".env").symlink_to(exported / "config.json")
    (folder / "private").symlink_to(tmp_path, target_is_directory=True)
    code, said = pusher.push(folder, "--to", "me/notes")
    assert code == 2 and ".env, private: a symbolic link, whose target would be pub" in said
    assert len(server.requests) == num_requests


def test_what_the_library_notes_of_downloads_is_not_pushed(
    exported: Path, pusher: Pusher, server: Hub, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "export"))
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "config.json.metadata").write_text("x")
    assert pusher.push(folder, "--to", "me/downloaded")[0] == 0
    assert server.files("me/downloaded") == contents(exported)


def write_adapter_export(folder: Path, *, base: str, began_from: str) -> Path:
    folder.mkdir()
    config = {"base_model_name_or_path": base, "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    table = f"| | |\n|---|---|\n| began from | {began_from} |\n| optimizer steps | 6 |\n"
    (folder / "README.md").write_text(f"---\nlibrary_name: peft\n---\n# lora\n\n{table}")
    files = {path.name: record_file(path) for path in folder.iterdir()}
    write_manifest(folder, {"step": 6, "base_weights": "678f"}, files=files)
    return folder


def test_an_adapter_is_pushed_beside_a_base_that_others_have(
    pusher: Pusher, server: Hub, tmp_path: Path
) -> None:
    base = tmp_path / "alice" / "base"
    folder = write_adapter_export(tmp_path / "export", base=str(base), began_from="base")
    before, num_requests = contents(folder), len(server.requests)
    code, said = pusher.push(folder, "--to", "me/lora")
    assert code == 2 and f"names the base {base}, a folder that nobody else has: add --base" in said
    assert "--base a b" in pusher.push(folder, "--to", "me/lora", "--base", "a b")[1]
    assert len(server.requests) == num_requests
    code, said = pusher.push(folder, "--to", "me/lora", "--base", "me/base")
    assert code == 2 and "--base me/base: the hub has no such model" in said
    assert "nothing was pushed" in said and "me/lora" not in server.commits
    server.commits["me/base"] = [{}]
    assert pusher.push(folder, "--to", "me/lora", "--base", "me/base")[0] == 0
    pushed = server.files("me/lora")
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    card = pushed["README.md"].decode()
    assert card.startswith("---\nlibrary_name: peft\nbase_model: me/base\n---\n# lora\n")
    assert "| began from | me/base |\n| optimizer steps | 6 |" in card
    assert not [name for name, content in pushed.items() if b"alice" in content]
    assert contents(folder) == before
    for name, content in pushed.items():  # whole for who downloads it
        (tmp_path / "again").mkdir(exist_ok=True)
        (tmp_path / "again" / name).write_bytes(content)
    assert find_corruption(tmp_path / "again", hashes=True) is None
    again = find_export(tmp_path / "again")
    assert pusher.push(again, "--to", "me/again")[0] == 0  # it has a public name now
    assert server.files("me/again") == contents(again)


def test_a_base_is_not_given_to_random_weights(exported: Path, pusher: Pusher, server: Hub) -> None:
    num_requests = len(server.requests)
    code, said = pusher.push(exported, "--to", "me/chats", "--base", "me/base")
    assert code == 2 and "it began from random weights" in said
    assert len(server.requests) == num_requests


@pytest.mark.parametrize(
    "place",
    ["/home/alice/base", "~/base", "~alice/my base/x", "C:\\alice\\base", "file:///a/b", r"\\a\b"],
)
def test_places_of_this_machine_are_found_in_settings(tmp_path: Path, place: str) -> None:
    harmless = {"chat_template": "/home/{{ x }}/y", "auto_map": "me/code--module.Class"}
    tokens = {"0": {"content": "/"}, "1": {"content": "</think>"}, "2": {"content": "//"}}
    settings = {
        "url": "https://a.b/c",
        "pattern": r"\s\S+",
        "added_tokens_decoder": tokens,
        **harmless,
    }
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(settings | {"name_or_path": place, "a": [{"tokenizer_file": "x"}]}))
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {place: 1}}}))
    drop_notes(tmp_path)
    assert json.loads(path.read_text()) == settings | {"a": [{}]}
    assert find_place(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"parts": [{"decoder": place}]}))
    found = find_place(tmp_path)
    assert found is not None and found.startswith("config.json: decoder names a place of this")


def test_an_export_that_names_a_place_is_not_pushed(
    pusher: Pusher, server: Hub, tmp_path: Path
) -> None:
    folder = write_adapter_export(tmp_path / "export", base="me/base", began_from="me/base")
    path = folder / "processor_config.json"
    path.write_text(json.dumps({"files": ["/home/alice/pictures.json"]}))
    (folder / "complete.json").unlink()
    files = {each.name: record_file(each) for each in folder.iterdir()}
    write_manifest(folder, {"step": 6}, files=files)
    code, said = pusher.push(folder, "--to", "me/places")
    assert code == 2 and "processor_config.json: files names a place of this machine" in said
    assert "me/places" not in server.commits


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://localhost:abc", "is not the address of a hub"),
        ("http://user:abc", "is not the address of a hub"),
        ("localhost:8000", "is not the address of a hub"),
        ("", "is not the address of a hub"),
        ("http://a..b", "nothing was pushed"),
        ("https://user:abc@localhost", "holds a user or a password"),
    ],
)
def test_a_mistyped_endpoint_is_refused_and_not_shown(
    address: str, said: str, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=said) as caught:
        push_export(exported, to="me/chats")
    assert "abc" not in str(caught.value)
