"""PDF, HTML and Word files: their text, whole or by page or section, with --extract."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import PurePath
from typing import NamedTuple

from data_prep.reading.compressed import open_input
from data_prep.reading.documents import BadInput, text_document
from data_prep.reading.fields import Fields
from data_prep.reading.parts import InputFile, Item, Part

_HEADING = re.compile(r"(?m)^(?=#{1,6} )")
# trafilatura writes the text `a_b <= 1` as `a\_b \<= 1`: it adds a backslash to characters that
# would be Markdown, and doubles those that were there; also where a line would be a heading, a
# quotation or a list. Code and formulas it leaves as they are.
_ESCAPED = re.compile(
    r"""(?msx)
    (?P<verbatim> ^```.*?^``` | ^\$\$$.*?^\$\$$
        | (?<![\\`])(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`) )
    | (?<!\\)(?P<run> (?:\\\\)*\\ )(?=[*_`~\[\]<])
    | (?P<before> ^(?:[ ]*-[ ])?[ ]{0,3} )\\(?=(?:\#{1,6}|[-+])(?:\s|$) | >)
    | (?<=\d)\\(?=[.)](?:\s|$))
    """
)
# PDFium's mark of a hyphen that a line's end has put into a word.
_LINE_END_HYPHEN = "\ufffe"


class Extracted:
    """A file is a document; or each of its pages is one, whose number from 0 is its place."""

    def __init__(self, *, by_page: bool) -> None:
        self._by_page = by_page

    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        if start == 0:
            yield Part(file, 0, 1, num_bytes=file.num_bytes)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        with open_input(part.file.path) as file:
            content = file.read()
        pages = _pages(content, suffix=_suffix(part.file.path))
        if isinstance(pages, BadInput):
            yield pages
        elif not any(page.strip() for page in pages):
            detail = "it holds pictures of text, or none; recognise it first (OCR), or leave it out"
            yield BadInput(0, reason="no text", detail=detail)
        elif self._by_page:
            yield from (text_document(page, place=place) for place, page in enumerate(pages))
        else:
            yield text_document("\n\n".join(pages), place=0)


def is_extracted(name: str) -> bool:
    return _suffix(name) in _EXTRACTORS


@lru_cache
def refuse_missing_extractor(suffix: str) -> None:
    """Raise unless what reads files of this suffix is installed."""
    package = _EXTRACTORS[suffix.lower()].package
    try:
        import_module(package)
    except ImportError as error:  # also one of what it needs
        because = "" if error.name == package else f" ({' '.join(str(error).split())})"
        raise ValueError(
            f"--extract: {suffix} needs {package}{because}: pip install '.[documents]' in the "
            "checkout"
        ) from None


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def _pages(content: bytes, *, suffix: str) -> list[str] | BadInput:
    extractor = _EXTRACTORS[suffix]
    try:
        return extractor.pages_of(content)
    except (MemoryError, ImportError):  # of this machine, not of the file
        raise
    except Exception as error:  # damaged files raise all that the parsers below raise
        detail = " ".join(str(error).split()) or type(error).__name__
        return BadInput(0, reason=f"broken {extractor.kind}", detail=detail)


def _pages_of_pdf(content: bytes) -> list[str]:
    import pypdfium2

    # Not many at once: the library is not safe in threads, and a worker is one.
    with pypdfium2.PdfDocument(content) as document:
        pages = [page.get_textpage().get_text_bounded() for page in document]
    return [page.replace(_LINE_END_HYPHEN, "").replace("\r\n", "\n") for page in pages]


def _sections_of_html(content: bytes) -> list[str]:
    """Without menus, footers and comments."""
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # what is wrong is said once, by us
    text = trafilatura.extract(content, output_format="markdown", include_comments=False)
    # After the cut: what is escaped is no heading.
    return [_ESCAPED.sub(_as_shown, section) for section in _sections(text or "")]


def _as_shown(found: re.Match[str]) -> str:
    if found["verbatim"]:
        return found["verbatim"]
    return (found["before"] or "") + "\\" * (len(found["run"] or "") // 2)


def _sections_of_word(content: bytes) -> list[str]:
    import docx

    document = docx.Document(io.BytesIO(content))
    blocks = []
    for block in document.iter_inner_content():
        if isinstance(block, docx.table.Table):
            rows = [[cell.text.replace("\n", " ") for cell in row.cells] for row in block.rows]
            blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        else:
            level = re.fullmatch(r"Heading ([1-6])", str(block.style and block.style.name))
            blocks.append(f"{'#' * int(level[1])} {block.text}" if level else block.text)
    return _sections("\n\n".join(block for block in blocks if block.strip()))


def _sections(text: str) -> list[str]:
    """Cut before each heading."""
    return [section.strip() for section in _HEADING.split(text) if section.strip()]


class _Extractor(NamedTuple):
    package: str
    kind: str  # as a message names the file
    pages_of: Callable[[bytes], list[str]]  # the texts of its pages or sections


_EXTRACTORS = {
    ".pdf": _Extractor("pypdfium2", "PDF", _pages_of_pdf),
    ".html": _Extractor("trafilatura", "HTML file", _sections_of_html),
    ".htm": _Extractor("trafilatura", "HTML file", _sections_of_html),
    ".docx": _Extractor("docx", "Word file", _sections_of_word),
}
EXTRACTED_SUFFIXES = tuple(_EXTRACTORS)
