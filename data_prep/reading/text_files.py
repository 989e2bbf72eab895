"""Text, Markdown and source code: a file is a document."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from data_prep.reading.compressed import BROKEN_COMPRESSION, decompressed, format_hint
from data_prep.reading.documents import BadInput, text_document
from data_prep.reading.fields import Fields
from data_prep.reading.lines import broken_compression
from data_prep.reading.parts import InputFile, Item, Part


class TextFiles:
    def cut(self, file: InputFile, *, start: int, fields: Fields) -> Iterator[Part]:
        if start == 0:
            yield Part(file, 0, 1, num_bytes=file.num_bytes)

    def read(self, part: Part, *, fields: Fields) -> Iterator[Item]:
        path = Path(part.file.path)
        with path.open("rb") as raw:
            try:
                content = decompressed(path, raw).read()
            except BROKEN_COMPRESSION as error:
                yield broken_compression(error, place=0)
                return
        document = text_document(content.removeprefix(codecs.BOM_UTF8), place=0)
        if isinstance(document, BadInput):
            document = document.with_hint(format_hint(content))
        yield document
