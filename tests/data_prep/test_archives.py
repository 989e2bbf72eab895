"""Archives of text: a member is a document, whatever its format, however the file is cut."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.reading import streamed
from data_prep.reading.documents import Document
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, read_part
from data_prep.reading.sources import find_domains
from data_prep.shards import open_corpus
from data_prep.viewing.summary import build_summary
from tests.data_prep.read_back import PACK, TEXT, read_inputs

Members = dict[str, bytes]
TEXTS: Members = {
    "./notes/one.txt": b"\xef\xbb\xbffirst",
    "notes/two.md": "zw\u00f6lf".encode(),
    "notes/.hidden.txt": b"unseen",
    "notes/picture.png": b"\x89PNG",
    "rows.jsonl": b'{"text": "a record"}',
    "packed.txt.gz": PACK[".gz"](b"compressed"),
    "code/three.py": b"print(3)\n",
}
READ = ["first", "zw\u00f6lf", "print(3)\n"]


def _pairs(members: Members | list[tuple[str, bytes]]) -> Iterable[tuple[str, bytes]]:
    return members.items() if isinstance(members, dict) else members


def tarred(members: Members | list[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        folder = tarfile.TarInfo("notes")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, text in _pairs(members):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    return content.getvalue()


def zipped(members: Members | list[tuple[str, bytes]]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("notes")
        for name, text in _pairs(members):
            archive.writestr(name, text)
    return content.getvalue()


FORMS: dict[str, Callable[[Members], bytes]] = {
    ".zip": zipped,
    ".tar": tarred,
    ".tgz": lambda members: PACK[".gz"](tarred(members)),
    **{f".tar{s}": lambda members, s=s: PACK[s](tarred(members)) for s in PACK},  # type: ignore[misc]
}


@pytest.mark.parametrize("suffix", FORMS)
def test_members_that_are_text_are_documents(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"all{suffix}"
    path.write_bytes(FORMS[suffix](TEXTS))
    assert read_inputs(path)[0] == READ
    # in a folder only if it is named, and then its members need not be
    with pytest.raises(ValueError, match=r"contains no file to read; left out: .*an archive"):
        read_inputs(tmp_path)
    assert read_inputs(tmp_path, globs=Globs(include=(f"*{suffix}",)))[0] == READ
    assert read_inputs(path, globs=Globs(include=("*.py",)))[0] == READ[-1:]
    assert read_inputs(path, globs=Globs(exclude=("notes",)))[0] == READ[-1:]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.zst"])
def test_of_members_of_one_name_the_last_is_read_and_the_others_are_counted(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"all{suffix}"
    members = [("a.txt", b"old"), ("b.txt", b"other"), ("./a.txt", b"newer"), ("a.png", b"")]
    members += [("/a.txt", b"newest"), ("a.png", b"")]
    path.write_bytes(FORMS[suffix](members))  # type: ignore[arg-type]
    assert read_inputs(path)[0] == ["other", "newest"]
    (domain,) = find_domains([path], globs=Globs(), fields_of={}, default=TEXT)
    (part,) = cut_files(domain.files, fields=TEXT)
    assert part.left_out["replaced by a later member of its name"] == 2
    assert part.left_out[".png (not text)"] == 2


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
def test_an_archive_is_resumed_after_any_member(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamed, "PART_BYTES", 1)
    path = tmp_path / f"all{suffix}"
    path.write_bytes(FORMS[suffix](TEXTS))
    (domain,) = find_domains([path], globs=Globs(), fields_of={}, default=TEXT)
    parts = list(cut_files(domain.files, fields=TEXT))
    assert len(parts) > 2
    for done in range(len(parts)):
        left = cut_files(domain.files, fields=TEXT, start_in_first=parts[done].end)
        both = [*parts[: done + 1], *left]
        items = [item for part in both for item in read_part(part, fields=TEXT)]
        assert [item.content for item in items if isinstance(item, Document)] == READ
        assert sum(sum(part.left_out.values()) for part in both) == 4


def test_a_corpus_counts_and_places_its_members(tmp_path: Path) -> None:
    path, again = tmp_path / "all.tar.gz", tmp_path / "again"
    many = {f"{number:03}.txt": b"words %d" % number * 20 for number in range(50)}
    path.write_bytes(FORMS[".tar.gz"]({**TEXTS, **many}))
    options = {"train_tokenizer": "bpe", "train_vocab_size": 300, "val_frac": 0.0}
    out = tmp_path / "corpus"
    manifest = build(BuildOptions((str(path),), out, num_workers=1, **options))  # type: ignore[arg-type]
    assert manifest.ledger.num_documents_in == 53
    assert sum(manifest.ledger.members_left_out.values()) == 4
    assert "left out   1 members of archives: hidden" in build_summary(manifest, folder=out)
    # the folder is member 0
    origins = [str(open_corpus(out).origin(i)) for i in range(3)]
    assert origins == [f"{path}@{place}" for place in (1, 2, 7)]
    build(BuildOptions((str(path),), again, num_workers=2, **options))  # type: ignore[arg-type]
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert all((out / f).read_bytes() == (again / f).read_bytes() for f in files)


def _with(content: bytes, place: int, damage: bytes) -> bytes:
    return content[:place] + damage + content[place + len(damage) :]


def _torn(archive: bytes, name: bytes) -> bytes:
    """The first bytes of a member of a .zip overwritten."""
    return _with(archive, archive.index(name) + len(name) + 1, bytes(2))


def _lzma_zipped(members: Members) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for name, text in _pairs(members):
            archive.writestr(name, text)
    return content.getvalue()


def _sparse(header: dict[str, str]) -> bytes:
    """A .tar of a member whose PAX header says where its holes are."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.txt")
        info.pax_headers = header
        archive.addfile(info)
    return content.getvalue()


def _concatenated(members: Members) -> bytes:
    return tarred(members) + tarred(members)


ALL = {f"{number}.txt": bytes([65 + number]) * 700 for number in range(6)}
BROKEN: dict[str, tuple[str, bytes, str]] = {
    "cut within a member": (".tar", tarred(ALL)[:2000], "unexpected end of data"),
    "cut between members": (".tar", tarred(ALL)[: 512 * 7], "damaged or truncated"),
    "a header": (".tar", _with(tarred(ALL), 512 * 4 + 150, b"xx"), "damaged or truncated"),
    "two archives": (".tar", _concatenated(ALL), "goes on behind its end"),
    "cut while compressed": (".tgz", PACK[".gz"](tarred(ALL))[:-20], "broken compression"),
    "no zip": (".zip", b"words", "not a zip file"),
    "cut zip": (".zip", zipped(ALL)[:-30], "not a zip file"),
    "a member's bytes": (
        ".zip",
        _torn(zipped(ALL), b"0.txt"),
        "broken archive",
    ),
    "a member's LZMA": (
        ".zip",
        # behind 4 bytes of the compression's version: its properties
        _with(_lzma_zipped({"0.txt": b"words" * 99}), 30 + len("0.txt") + 4, b"\xff" * 9),
        "broken archive",
    ),
    "a sparse header": (
        ".tar",
        _sparse({"GNU.sparse.map": "0,many", "GNU.sparse.size": "9"}),
        "broken archive: invalid literal",
    ),
    "no tar": (".tar", b"words" * 300, "damaged or truncated"),
    "empty": (".tar", b"", "empty header"),
    "not UTF-8": (".tar", tarred({"a.txt": b"ab\xe9"}), "invalid UTF-8.*in its member a.txt"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_archive_ends_in_a_sentence(tmp_path: Path, case: str) -> None:
    suffix, content, words = BROKEN[case]
    path = tmp_path / f"all{suffix}"
    path.write_bytes(content)
    texts, _ = read_inputs(path)
    found = [text for text in texts if str(path) in str(text)]
    assert len(found) == 1 and re.search(words, str(found[0])), texts


def test_records_are_not_read_from_archives(tmp_path: Path) -> None:
    path = tmp_path / "all.zip"
    path.write_bytes(zipped(ALL))
    with pytest.raises(ValueError, match="holds files, of which only text is read"):
        read_inputs(path, fields=type(TEXT)(ids="ids"))
    (tmp_path / "all.7z").write_bytes(b"")
    with pytest.raises(ValueError, match=r"\.7z is not supported; unpack it with `7z x "):
        read_inputs(tmp_path / "all.7z")
