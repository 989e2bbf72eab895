"""Text, Markdown and source code: a file is a document."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from data_prep.reading.compressed import BROKEN_COMPRESSION, decompressed, format_hint, open_input
from data_prep.reading.documents import BadInput, text_document
from data_prep.reading.fields import Fields
from data_prep.reading.parts import InputFile, Item, Part
from data_prep.reading.streamed import broken_compression


class TextFiles:
    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        if start == 0:
            yield Part(file, 0, 1, num_bytes=file.num_bytes)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        with open_input(part.file.path) as raw:
            try:
                content = decompressed(part.file.path, raw).read()
            except BROKEN_COMPRESSION as error:
                yield broken_compression(error, place=0)
                return
        yield document_of_text(content, place=0)


def document_of_text(content: bytes, *, place: int) -> Item:
    """The document that is the whole content of a file."""
    document = text_document(content.removeprefix(codecs.BOM_UTF8), place=place)
    if isinstance(document, BadInput):
        return document.with_hint(format_hint(content))
    return document
