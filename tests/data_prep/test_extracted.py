"""PDF, HTML and Word files: their text, by file or by page, and what becomes of those without."""

from __future__ import annotations

import html
import io
import sys
import zipfile
import zlib
from pathlib import Path

import docx
import pytest

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.reading.extracted import refuse_missing_extractor
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.shards import open_corpus
from tests.data_prep.read_back import read_inputs

HTML = b"""<html><body><nav><a href="/">Menu</a></nav><article>
<h1>First</h1><p>A paragraph that is long enough to be taken for what the page is about.</p>
<h2>Second</h2><p>Caf\xc3\xa9 &amp; more words, also long enough to be taken for its content.</p>
</article><footer>All rights reserved</footer></body></html>"""
SECTIONS = [
    "# First\n\nA paragraph that is long enough to be taken for what the page is about.",
    "## Second\n\nCaf\u00e9 & more words, also long enough to be taken for its content.",
]


def pdf(*pages: str) -> bytes:
    """A PDF of one line a page."""
    streams = [zlib.compress(f"BT /F 12 Tf 9 99 Td ({page}) Tj ET".encode()) for page in pages]
    kids = " ".join(f"{3 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
    ]
    for number, stream in enumerate(streams):
        font = "<< /Font << /F << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 200] /Resources {font} "
            f"/Contents {4 + 2 * number} 0 R >>".encode(),
            b"<< /Filter /FlateDecode /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream),
        ]
    body, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return body + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n" % (size, table, size, len(body))
    )


def word() -> bytes:
    document, content = docx.Document(), io.BytesIO()
    document.add_paragraph("Before any heading")
    document.add_heading("Part", level=2)
    document.add_paragraph("Its words")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "one", "two"
    document.save(content)
    return content.getvalue()


def word_of(changed: dict[str, bytes]) -> bytes:
    """A Word file with other bytes in some of its parts."""
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(word())) as before, zipfile.ZipFile(content, "w") as after:
        for name in before.namelist():
            after.writestr(name, changed.get(name, before.read(name)))
    return content.getvalue()


def torn_word() -> bytes:
    """A Word file in whose compressed bytes some are others."""
    content = bytearray(word())
    place = content.index(b"word/document.xml") + len(b"word/document.xml")
    content[place : place + 9] = b"\xff" * 9
    return bytes(content)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "papers"
    made.mkdir()
    (made / "a.pdf").write_bytes(pdf("The first page", "", "The third page"))
    (made / "b.html").write_bytes(HTML)
    (made / "c.DOCX").write_bytes(word())
    (made / "d.txt").write_text("plain")
    return made


WORD = ["Before any heading", "## Part\n\nIts words\n\n| one | two |"]


def test_a_file_is_a_document_or_each_of_its_pages_is(folder: Path) -> None:
    whole = ["The first page\n\n\n\nThe third page", "\n\n".join(SECTIONS), "\n\n".join(WORD)]
    assert read_inputs(folder, globs=Globs(extract="file"))[0] == [*whole, "plain"]
    pages = ["The first page", "", "The third page", *SECTIONS, *WORD, "plain"]
    assert read_inputs(folder, globs=Globs(extract="page"))[0] == pages
    assert read_inputs(folder / "b.html", globs=Globs(extract="page"))[0] == SECTIONS
    texts, source = read_inputs(folder)
    assert texts == [HTML.decode(), "plain"]
    assert source.files_left_out == {
        ".docx (not text; --extract file reads it)": 1,
        ".pdf (not text; --extract file reads it)": 1,
    }
    with pytest.raises(ValueError, match="To read its text add --extract file"):
        read_inputs(folder / "a.pdf")
    with pytest.raises(ValueError, match="holds text, not records"):
        read_inputs(folder / "a.pdf", globs=Globs(extract="file"), fields=Fields(ids="ids"))


SHOWN = r"""# An a_b title

Prose of a_b[0] <= 2 * c, ~3, `tick`, C:\dir\_x and \\*, with `x[0] \_ y` as code, long enough.

# no heading, but a line

- no list

2. One of a kind, 10. as well

```
if a_b[0] < c * 2: \
    print("\_ \* `")
```"""


def test_html_is_read_as_it_is_shown_without_escapes_of_markdown(tmp_path: Path) -> None:
    title, prose, *lines, code = SHOWN.split("\n\n")
    prose = html.escape(prose).replace("`x[0] \\_ y`", "<code>x[0] \\_ y</code>")
    (tmp_path / "a.html").write_text(
        f"<html><body><article><h1>{title[2:]}</h1><p>{prose}</p>"
        + "".join(f"<p>{html.escape(line)}</p>" for line in lines)
        + f"<pre>{html.escape(code.strip('`').strip())}</pre></article></body></html>"
    )
    (text,) = read_inputs(tmp_path / "a.html", globs=Globs(extract="file"))[0]
    assert text == SHOWN
    assert len(read_inputs(tmp_path / "a.html", globs=Globs(extract="page"))[0]) == 1


def test_a_package_that_does_not_import_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_missing_extractor.cache_clear()
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(
        ValueError, match=r"\.html needs trafilatura: pip install '\.\[documents\]'"
    ):
        refuse_missing_extractor(".html")

    def fail(package: str) -> None:
        raise ImportError("lxml.html.clean is now\na project of its own", name=None)

    monkeypatch.setattr("data_prep.reading.extracted.import_module", fail)
    with pytest.raises(ValueError, match=r"trafilatura \(lxml\.html\.clean is now a project of"):
        refuse_missing_extractor(".html")


def test_a_corpus_knows_the_page_of_each_document(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    manifest = build(
        BuildOptions(
            (str(folder),),
            out,
            train_tokenizer="bpe",
            train_vocab_size=300,
            val_frac=0.0,
            num_workers=1,
            globs=Globs(extract="page"),
        )
    )
    assert (manifest.ledger.num_documents_in, manifest.ledger.num_documents_empty) == (8, 1)
    origins = [str(open_corpus(out).origin(i)).rpartition("/")[2] for i in range(7)]
    expected = ["a.pdf@0", "a.pdf@2", "b.html@0", "b.html@1", "c.DOCX@0", "c.DOCX@1", "d.txt@0"]
    assert origins == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.pdf", b"%PDF-1.4 rubbish", "broken PDF: Failed to load document"),
        ("a.pdf", pdf("", ""), "no text: it holds pictures of text, or none"),
        ("a.docx", b"words", "broken Word file: File is not a zip file"),
        ("a.docx", word_of({"word/document.xml": b"<w:document"}), "broken Word file: "),
        ("a.docx", word_of({"word/document.xml": b"<a/>"}), "broken Word file: "),
        ("a.docx", torn_word(), "broken Word file: "),
        ("a.htm", b"<html></html>", "no text"),
        ("a.html", b"\x00\xff\xfe", "no text"),
    ],
)
def test_a_file_without_text_is_told_by_its_name(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for extract in ("file", "page"):
        (found,) = read_inputs(tmp_path, globs=Globs(extract=extract))[0]  # type: ignore[arg-type]
        assert name in found and words in found
