"""Local texts that need no download: general ones, and two separate domains."""

from __future__ import annotations

import gzip
import random
import re
import shutil
import subprocess
import sysconfig
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

_DICTIONARY = Path("/usr/share/dictd/gcide.dict.dz")
_DOMAIN_PROJECT = "sympy"
_PIECE_CHARS = 4000
_LEAST_CHARS = 400


def general_texts(source: str, *, num_chars: int) -> list[str]:
    """Pieces of one source in a fixed random order, up to a number of characters.

    Raises:
        ValueError: when the source is not on this machine, or too small.
    """
    pieces, count = _shuffled(source, num_chars=num_chars)
    return pieces[:count]


def spare_texts(source: str, *, num_chars: int) -> list[str]:
    """The pieces that `general_texts` leaves: near others in its order, but in no corpus.

    Raises:
        ValueError: as `general_texts` does.
    """
    pieces, count = _shuffled(source, num_chars=num_chars)
    return pieces[count:]


def _shuffled(source: str, *, num_chars: int) -> tuple[list[str], int]:
    """All pieces, and how many of the first ones have that many characters."""
    pieces = [piece for text in _GENERAL[source]() for piece in _pieces(text)]
    random.Random(source).shuffle(pieces)
    totals = [0, *accumulate(len(piece) for piece in pieces)]
    if totals[-1] < num_chars:
        raise ValueError(
            f"texts: {source} has only {totals[-1]:,} characters here, not {num_chars:,}"
        )
    return pieces, bisect_left(totals, num_chars)


def domain_texts(domain: str, *, document_chars: int) -> list[str]:
    """Documents of a domain in a fixed random order, one per file or chapter.

    Args:
        document_chars: how much of each, at most.

    Raises:
        ValueError: when the domain's source is not on this machine.
    """
    excerpts = [_excerpt(text, num_chars=document_chars) for text in _DOMAINS[domain]()]
    documents = [excerpt for excerpt in excerpts if len(excerpt) >= _LEAST_CHARS]
    random.Random(domain).shuffle(documents)
    return documents


def _excerpt(text: str, *, num_chars: int) -> str:
    """Whole lines from a quarter of the text on: the beginnings of files are very similar."""
    start = text.find("\n", len(text) // 4) + 1
    return text[start : start + num_chars].rpartition("\n")[0]


def _pieces(text: str) -> Iterator[str]:
    """Whole lines, up to a number of characters; a short remainder is dropped."""
    lines: list[str] = []
    total = 0
    for line in text.splitlines(keepends=True):
        if lines and total + len(line) > _PIECE_CHARS:
            yield "".join(lines)
            lines, total = [], 0
        lines.append(line)
        total += len(line)
    if total >= _LEAST_CHARS:
        yield "".join(lines)


def _python() -> Iterator[str]:
    """Sources of the standard library and all installed packages but the domain's project."""
    seen: set[Path] = set()
    for name in ("stdlib", "purelib", "platlib"):
        root = Path(sysconfig.get_path(name))
        for path in sorted(root.rglob("*.py")):
            is_new = path.resolve() not in seen
            seen.add(path.resolve())
            if is_new and _DOMAIN_PROJECT not in path.relative_to(root).parts:
                yield from _source(path, root=root)


def _stdlib() -> Iterator[str]:
    """Modules of the standard library that are one file."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.glob("*.py")):
        yield from _source(path, root=root)


def _project() -> Iterator[str]:
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted((root / _DOMAIN_PROJECT).rglob("*.py")):
        yield from _source(path, root=root)


def _source(path: Path, *, root: Path) -> Iterator[str]:
    """A file's text, unless it is a test or unreadable."""
    inside = path.relative_to(root).parts
    if any(part.startswith(("test", "_test", "idle_test")) for part in inside):
        return
    if not path.is_file():
        return
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return


def _dictionary() -> Iterator[str]:
    """Dictionary articles, many per text."""
    if not _DICTIONARY.exists():
        raise ValueError(f"texts: {_DICTIONARY} is missing; run: apt-get install dict-gcide")
    with gzip.open(_DICTIONARY, "rt", encoding="utf-8", errors="replace") as file:
        text = file.read()
    # every sense names its edition: too easy to learn from
    yield re.sub(r"\n *\[1913 Webster\]\n", "\n", text)


def _manual() -> Iterator[str]:
    """Python's documentation as its authors wrote it."""
    found = sorted(Path("/usr/share/doc").glob("python3*/html/_sources/**/*.rst.txt"))
    if not found:
        raise ValueError("texts: Python's manual is missing; run: apt-get install python3-doc")
    for path in found:
        if "changelog" not in path.name:
            yield path.read_text(encoding="utf-8")


def _chapters() -> Iterator[str]:
    """Chapters of the King James Bible, a verse a line."""
    if shutil.which("bible") is None:
        raise ValueError("texts: the Bible is missing; run: apt-get install bible-kjv")
    whole = subprocess.run(
        ["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, check=True
    ).stdout
    chapters: dict[str, list[str]] = {}
    for line in whole.splitlines():
        place, _, verse = line.partition(" ")
        chapters.setdefault(place.partition(":")[0], []).append(verse)
    for verses in chapters.values():
        yield "\n".join(verses) + "\n"


def _licences() -> Iterator[str]:
    """Who may copy each of the installed Debian packages: the same paragraphs again and again."""
    found = sorted(Path("/usr/share/doc").glob("*/copyright"))
    if not found:
        raise ValueError("texts: no package of this machine says how it may be copied")
    for path in found:
        if not path.is_symlink():
            yield path.read_text(encoding="utf-8", errors="replace")


_GENERAL: dict[str, Callable[[], Iterator[str]]] = {
    "dictionary": _dictionary,
    "manual": _manual,
    "python": _python,
    "stdlib": _stdlib,
}
_DOMAINS: dict[str, Callable[[], Iterator[str]]] = {
    "code": _project,
    "prose": _chapters,
    "licences": _licences,
}
