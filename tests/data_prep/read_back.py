"""What a build reads of its inputs, and what a corpus says again."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

from data_prep.manifest import Source
from data_prep.reading.documents import Document
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.formats import cut_files, describe_fault, read_part
from data_prep.reading.sources import find_domains
from data_prep.shards import open_corpus
from data_prep.tokenizing.tokenizer import load_tokenizer

TEXT = Fields(text="text")
PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".zst": lambda content: zstandard.ZstdCompressor().compress(content),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def contents(*inputs: str | Path, fields: Fields = TEXT) -> list[Any]:
    """Of all documents; faults as they are."""
    (domain,) = find_domains(inputs, globs=Globs(), fields_of={}, default=fields)
    parts = cut_files(domain.files, fields=fields)
    items = [item for part in parts for item in read_part(part, fields=fields)]
    return [item.content if isinstance(item, Document) else item for item in items]


def read_inputs(
    *inputs: str | Path, globs: Globs | None = None, fields: Fields = TEXT
) -> tuple[list[Any], Source]:
    """Contents of all documents, or the sentences of faults, and what the first input records."""
    (domain,) = find_domains(inputs, globs=globs or Globs(), fields_of={}, default=fields)
    items = [
        item.content if isinstance(item, Document) else describe_fault(part.file, item)
        for part in cut_files(domain.files, fields=fields)
        for item in read_part(part, fields=fields)
    ]
    return items, domain.sources[0]


def decoded(folder: Path) -> list[str]:
    """The documents of a corpus to train on."""
    corpus = open_corpus(folder)
    tokenizer = load_tokenizer(corpus.tokenizer_dir)
    documents = (corpus.document(i) for i in range(corpus.num_documents()))
    return [tokenizer.decode(ids.tolist()) for ids in documents]
