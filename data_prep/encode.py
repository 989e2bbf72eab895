"""Encodes parts of inputs into documents with the shards' data types, in any process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_prep.reading.documents import BadInput, Document, Messages
from data_prep.reading.fields import Fields
from data_prep.reading.formats import read_part
from data_prep.reading.parts import Item, Part
from data_prep.round_trip import Check, LossyDocument, is_in_sample, loss_if_checked
from data_prep.shard_writer import Documents
from data_prep.split import split_position
from data_prep.tokenizing.spelling import RoundTrip
from data_prep.tokenizing.tokenizer import Tokenizer, load_once

if TYPE_CHECKING:
    from data_prep.tokenizing.chat import ChatEncoder

TASK_BYTES = 1 << 20
TASK_PARTS = 1024


@dataclass(frozen=True)
class EncodeSettings:
    """Everything a worker needs to know; small, since it is sent with every task."""

    tokenizer_folder: Path
    tokenizer_sha256: str  # distinguishes a new tokenizer at the same path
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    val_frac: float
    dtype: np.dtype
    fast: Path | None = None
    """A proven fast path that every worker loads."""
    check: Check = "sample"


@dataclass(frozen=True)
class Task:
    """Consecutive parts of one domain's inputs."""

    settings: EncodeSettings
    fields: Fields
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Encoded:
    """The encoded contents of a task's parts, in order."""

    documents: Documents
    is_val: np.ndarray
    """[documents] bool."""
    num_read: int
    num_empty: int
    num_special_tokens: int
    num_checked: int
    lossy: tuple[LossyDocument, ...]
    bad: tuple[tuple[Part, BadInput], ...]
    members_left_out: Counter[str]
    """Members of archives that are not read, by reason."""
    last: Part
    """The next task begins where this part ends."""
    num_bytes: int


@dataclass
class _Collected:
    """Documents of a task while they are collected."""

    contents: list[str | np.ndarray] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What the ids of each encode; "" of a document given as ids."""
    masks: list[np.ndarray | None] = field(default_factory=list)
    origins: list[tuple[int, int]] = field(default_factory=list)
    positions: list[float] = field(default_factory=list)
    bad: list[tuple[Part, BadInput]] = field(default_factory=list)
    num_read: int = 0
    num_empty: int = 0


def tasks_of(parts: Iterable[Part], *, settings: EncodeSettings, fields: Fields) -> Iterator[Task]:
    """Group parts up to a size limit; the grouping does not affect the output."""
    group: list[Part] = []
    num_bytes = 0
    for part in parts:
        group.append(part)
        num_bytes += part.num_bytes
        if num_bytes >= TASK_BYTES or len(group) >= TASK_PARTS:
            yield Task(settings, fields, tuple(group))
            group, num_bytes = [], 0
    if group:
        yield Task(settings, fields, tuple(group))


def encode_task(task: Task) -> Encoded:
    """Read and encode documents, add the special tokens to each and assign its split."""
    settings = task.settings
    tokenizer = _tokenizer(settings)
    found = _collect(task, vocab_size=tokenizer.vocab_size)
    is_text = [isinstance(content, str) for content in found.contents]
    encoded = iter(tokenizer.encode([c for c in found.contents if isinstance(c, str)]))
    prefix = np.array(settings.prefix, dtype=np.uint32)
    suffix = np.array(settings.suffix, dtype=np.uint32)
    bodies = [next(encoded) if isinstance(c, str) else c for c in found.contents]
    num_checked, lossy = _losses(found, bodies=bodies, task=task)
    kept = [row for row, body in enumerate(bodies) if len(body)]
    pieces: list[np.ndarray] = []
    lengths = np.zeros(len(kept), dtype=np.int64)
    for i, row in enumerate(kept):
        # The user's own ids are kept as they are: they already have their special tokens.
        whole = [prefix, bodies[row], suffix] if is_text[row] else [bodies[row]]
        pieces += whole
        lengths[i] = sum(map(len, whole))
    # uint16 would silently wrap an id above 65,535.
    highest = max((int(piece.max()) for piece in pieces if len(piece)), default=0)
    if highest >= tokenizer.vocab_size:
        raise ValueError(f"tokenizer gave id {highest}, expected ids below {tokenizer.vocab_size}")
    empty = np.zeros(0, dtype=settings.dtype)
    tokens = np.concatenate([empty, *pieces], dtype=settings.dtype, casting="same_kind")
    documents = Documents(
        tokens=tokens,
        lengths=lengths,
        origins=np.array([found.origins[row] for row in kept], dtype=np.int64).reshape(-1, 2),
        mask=_mask(found, kept=kept, lengths=lengths) if task.fields.has_mask else None,
    )
    num_from_documents = sum(len(bodies[row]) for row in kept)
    return Encoded(
        documents=documents,
        is_val=np.array([found.positions[r] < settings.val_frac for r in kept], dtype=bool),
        num_read=found.num_read,
        num_empty=found.num_empty + len(bodies) - len(kept),
        num_special_tokens=len(tokens) - num_from_documents,
        num_checked=num_checked,
        lossy=lossy,
        bad=tuple(found.bad),
        members_left_out=sum((Counter(part.left_out) for part in task.parts), Counter()),
        last=_without_data(task.parts[-1]),
        num_bytes=sum(part.num_bytes for part in task.parts),
    )


def _losses(
    found: _Collected, *, bodies: Sequence[np.ndarray], task: Task
) -> tuple[int, tuple[LossyDocument, ...]]:
    """How many documents are compared with what their ids spell, and those that lose something."""
    files = {part.file.number: part.file for part in task.parts}
    num_checked, lossy = 0, []
    round_trip = _round_trip(task) if any(found.texts) else None
    for text, ids, (number, place) in zip(found.texts, bodies, found.origins, strict=True):
        if not text or round_trip is None:
            continue
        is_checked, loss = loss_if_checked(
            text,
            ids,
            round_trip=round_trip,
            is_in_sample=is_in_sample(
                text, file=files[number], place=place, check=task.settings.check
            ),
        )
        num_checked += is_checked
        if loss:
            lossy.append(LossyDocument(files[number], place, loss))
    return num_checked, tuple(lossy)


def _round_trip(task: Task) -> RoundTrip:
    if task.fields.kind == "text":
        return _tokenizer(task.settings).round_trip
    folder, sha256 = task.settings.tokenizer_folder, task.settings.tokenizer_sha256
    return _chat_encoder(folder, sha256).round_trip


def _tokenizer(settings: EncodeSettings) -> Tokenizer:
    return load_once(
        settings.tokenizer_folder,
        settings.tokenizer_sha256,
        fast=settings.fast,
        checks_all=settings.check == "all",
    )


def _collect(task: Task, *, vocab_size: int) -> _Collected:
    found = _Collected()
    for part in task.parts:
        for item in read_part(part, fields=task.fields):
            found.num_read += 1
            checked = _checked(item, settings=task.settings, vocab_size=vocab_size)
            if isinstance(checked, BadInput):
                found.bad.append((_without_data(part), checked))
            elif _is_empty(checked):
                found.num_empty += 1
            else:
                content = checked.content
                assert not isinstance(content, list)
                # A conversation's words decide its split, whatever the template.
                key = item.content if isinstance(item, Document) else content
                found.contents.append(content)
                found.texts.append(content if isinstance(content, str) else checked.rendered)
                found.masks.append(checked.mask)
                found.origins.append((part.file.number, checked.place))
                found.positions.append(split_position(key))
    return found


def _checked(item: Item, *, settings: EncodeSettings, vocab_size: int) -> Item:
    """Check that ids are within the vocabulary; encode conversations as ids with a mask."""
    if isinstance(item, BadInput) or isinstance(item.content, str):
        return item
    if isinstance(item.content, list):
        return _encoded_conversation(item, messages=item.content, settings=settings)
    ids = item.content
    if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        index = int(np.argmax((ids < 0) | (ids >= vocab_size)))
        detail = f"{ids[index]} at index {index}, vocabulary has {vocab_size}"
        reason = "id outside the vocabulary"
        return BadInput(item.place, reason=reason, detail=detail, num_tokens=len(ids))
    return Document(ids.astype(np.uint32), place=item.place, mask=item.mask)


def _encoded_conversation(item: Document, *, messages: Messages, settings: EncodeSettings) -> Item:
    encoder = _chat_encoder(settings.tokenizer_folder, settings.tokenizer_sha256)
    if not messages:
        return Document("", place=item.place)
    try:
        ids, mask, text = encoder.encode_with_text(messages)
    except ValueError as error:
        return BadInput(item.place, reason="not a conversation", detail=str(error))
    return Document(ids, place=item.place, mask=mask, rendered=text)


def _mask(found: _Collected, *, kept: list[int], lengths: np.ndarray) -> np.ndarray:
    masks = []
    for row, length in zip(kept, lengths.tolist(), strict=True):
        mask = found.masks[row]
        masks.append(np.ones(length, dtype=np.uint8) if mask is None else mask)
    return np.concatenate([np.zeros(0, dtype=np.uint8), *masks])


def _is_empty(document: Document) -> bool:
    content = document.content
    return not content.strip() if isinstance(content, str) else len(content) == 0


def _without_data(part: Part) -> Part:
    return Part(part.file, part.start, part.end, num_bytes=part.num_bytes)


@lru_cache(maxsize=1)
def _chat_encoder(folder: Path, sha256: str) -> ChatEncoder:
    # Imported only for conversations: it loads transformers.
    from data_prep.tokenizing.chat import ChatEncoder

    return ChatEncoder(folder)
