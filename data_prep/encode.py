"""Batches of documents to packed ids with lengths and sides, in whichever process they land."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep.reading.documents import Document
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer

BATCH_BYTES = 1 << 19
BATCH_DOCUMENTS = 2048
SPLIT_HASH = "blake2b-64 of the text after NFKC, case folding and removal of ASCII white space"
_ASCII_SPACE = b" \t\n\r\x0b\x0c"


@dataclass(frozen=True)
class EncodeSettings:
    """All that a worker needs to know; small, since it travels with every batch."""

    tokenizer_folder: Path
    tokenizer_sha256: str  # tells a new tokenizer in the same place from the old one
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    val_frac: float
    dtype: np.dtype


@dataclass(frozen=True)
class EncodedBatch:
    """Documents back to back in the type that the shards have."""

    tokens: np.ndarray  # [N]
    lengths: np.ndarray  # [documents] int64, specials included
    is_val: np.ndarray  # [documents] bool
    num_special_tokens: int
    num_empty: int  # text of which the tokenizer left nothing
    num_bytes: int


Batch = tuple[EncodeSettings, list[str | np.ndarray], int]


def batches(documents: Iterable[Document], *, settings: EncodeSettings) -> Iterator[Batch]:
    """Documents in groups of limited size; where the borders fall changes no output byte."""
    contents: list[str | np.ndarray] = []
    num_bytes = 0
    for document in documents:
        contents.append(document.content)
        num_bytes += document.num_bytes
        if num_bytes >= BATCH_BYTES or len(contents) >= BATCH_DOCUMENTS:
            yield settings, contents, num_bytes
            contents, num_bytes = [], 0
    if contents:
        yield settings, contents, num_bytes


def encode_batch(batch: Batch) -> EncodedBatch:
    """Encode, put the special tokens around each document and say on which side it lies."""
    settings, contents, num_bytes = batch
    tokenizer = _tokenizer(settings.tokenizer_folder, settings.tokenizer_sha256)
    texts = [content for content in contents if isinstance(content, str)]
    encoded = iter(tokenizer.encode(texts))
    prefix = np.array(settings.prefix, dtype=np.uint32)
    suffix = np.array(settings.suffix, dtype=np.uint32)
    parts: list[np.ndarray] = []
    lengths: list[int] = []
    is_val: list[bool] = []
    num_special = 0
    for content in contents:
        # Ids that the user made are kept as they are: they have their specials already.
        ids = next(encoded) if isinstance(content, str) else content
        if len(ids) == 0:
            continue
        whole = [prefix, ids, suffix] if isinstance(content, str) else [ids]
        parts += whole
        lengths.append(sum(map(len, whole)))
        is_val.append(split_position(content) < settings.val_frac)
        num_special += lengths[-1] - len(ids)
    tokens = np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
    # uint16 would wrap an id above 65,535 without a word.
    if len(tokens) and int(tokens.max()) >= tokenizer.vocab_size:
        raise ValueError(f"tokenizer gave id {tokens.max()}, vocabulary {tokenizer.vocab_size}")
    return EncodedBatch(
        tokens=tokens.astype(settings.dtype),
        lengths=np.array(lengths, dtype=np.int64),
        is_val=np.array(is_val, dtype=bool),
        num_special_tokens=num_special,
        num_empty=len(contents) - len(lengths),
        num_bytes=num_bytes,
    )


def split_position(content: str | np.ndarray) -> float:
    """A number in [0, 1) that depends on the document alone, the same for near-equal texts.

    Case, width and white space do not count: a tokenizer that drops them would otherwise give
    the same ids on both sides. The tokenizer itself plays no part, so a held-out document
    stays held out when the corpus is built for another model.
    """
    if isinstance(content, str):
        text = unicodedata.normalize("NFKC", content).casefold()
        key = text.encode("utf-8").translate(None, _ASCII_SPACE)
    else:
        key = content.astype("<u4").tobytes()
    digest = hashlib.blake2b(key, digest_size=8).digest()
    # 53 bits, so that the quotient is exact and never rounds up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


@lru_cache(maxsize=1)
def _tokenizer(folder: Path, sha256: str) -> Tokenizer:
    return load_tokenizer(folder)
