"""complete.json: what is written comes back, and no byte of it can change unnoticed."""

from __future__ import annotations

import json
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from common.checksum import FileRecord, record_file
from training.checkpoints.manifest import (
    MANIFEST,
    find_corruption,
    other_versions,
    parse_manifest,
    read_manifest,
    run_key_of,
    write_manifest,
)

CONTENT: dict[str, Any] = {
    "step": 40,
    "heldout_loss": 6.2139840126037598,
    "threshold": {"value_nats": 0.1 + 0.2, "step": 39},
    "recent_losses": [random.Random(0).uniform(2, 9) for _ in range(50)],
    "identity": {"data.corpus": "Köln", "optimizer.eps": 1e-8, "smallest": 5e-324},
}
FILES = {
    f"zero3/rank_{rank}.pt": FileRecord(100 + rank, sha256(b"%d" % rank).hexdigest())
    for rank in range(9)
}


def flipped(text: bytes, bit: int) -> bytes:
    changed = bytearray(text)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refused(text: bytes) -> bool:
    try:
        parse_manifest(text)
    except ValueError:
        return True
    return False


@pytest.fixture
def text(tmp_path: Path) -> bytes:
    (tmp_path / "zero3").mkdir()
    write_manifest(tmp_path, CONTENT, files=FILES)
    return (tmp_path / MANIFEST).read_bytes()


def test_what_was_written_comes_back_and_is_json_for_everybody(tmp_path, text):
    found = read_manifest(tmp_path)
    assert {name: found[name] for name in CONTENT} == CONTENT
    assert {name: FileRecord(**record) for name, record in found["files"].items()} == FILES
    everything = json.loads(text)
    assert everything.pop("sha256_of_the_rest") == sha256(text.split(b"\n", 2)[2]).hexdigest()
    assert everything == found


def test_no_flipped_bit_goes_unnoticed(text):
    assert not refused(text)
    assert [bit for bit in range(8 * len(text)) if not refused(flipped(text, bit))] == []


def test_a_number_written_otherwise_is_noticed_though_it_is_the_same_number(text):
    assert float("6.21398401260375981") == CONTENT["heldout_loss"]
    assert refused(text.replace(b"6.21398401260376", b"6.21398401260375981"))


def test_no_other_length_is_taken(text):
    assert all(refused(text[:length]) for length in range(len(text)))
    assert all(refused(text + more) for more in (b"\n", b" ", b"\0", b"{}", text))
    assert all(refused(more + text) for more in (b"\n", b" ", b"\xef\xbb\xbf"))


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[]", b"null", b"\xff\xfe{", b'{"format": 3}', "{}".encode("utf-16")]
)
def test_what_is_no_manifest_is_told_and_not_raised(tmp_path, text):
    (tmp_path / MANIFEST).write_bytes(text)
    assert f"{tmp_path / MANIFEST}: damaged: its checksum is" in (find_corruption(tmp_path) or "")


def test_a_manifest_of_a_format_to_come_is_refused_by_its_number(text):
    rest = text.split(b"\n", 2)[2].replace(b'"format": 3', b'"format": 4')
    begin = b'{\n "sha256_of_the_rest": "%s",\n' % sha256(rest).hexdigest().encode()
    with pytest.raises(ValueError, match="expected format 3, found 4"):
        parse_manifest(begin + rest)


def test_a_folder_of_the_format_before_is_still_read(tmp_path):
    """Its hash is the last member, and of what was parsed."""
    (tmp_path / "weights.pt").write_bytes(b"weights")
    file = record_file(tmp_path / "weights.pt")
    files = {"weights.pt": {"num_bytes": file.num_bytes, "sha256": file.sha256}}
    manifest = {"format": 2, **CONTENT, "versions": {}, "files": files}
    own_hash = sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    older = json.dumps(manifest | {"sha256_of_the_rest": own_hash}, indent=1).encode()
    (tmp_path / MANIFEST).write_bytes(older)
    assert read_manifest(tmp_path) == manifest
    assert find_corruption(tmp_path, hashes=True) is None

    accepted = [flipped(older, bit) for bit in range(8 * len(older))]
    accepted = [parse_manifest(text) for text in accepted if not refused(text)]
    assert all(content == manifest for content in accepted)
    write_manifest(tmp_path, read_manifest(tmp_path), files={"weights.pt": file})
    assert read_manifest(tmp_path)["format"] == 3


def test_packages_that_were_others_are_named(tmp_path):
    write_manifest(tmp_path, CONTENT, files={})
    manifest = read_manifest(tmp_path)
    assert other_versions(manifest) == []
    now = manifest["versions"]["torch"]
    manifest["versions"] |= {"torch": "1.0"}
    del manifest["versions"]["deepspeed"]
    first, second = other_versions(manifest)
    assert first == f"torch 1.0, now {now}"
    assert second.startswith("deepspeed None, now ")


@pytest.mark.parametrize("name", ["run_key", "tracked_as"])
def test_trackers_know_a_run_whose_checkpoint_is_of_an_earlier_version(name):
    assert run_key_of({name: "0123456789abcdef"}) == "0123456789abcdef"
    assert run_key_of({}) is None
