"""The train-tokenizer verb: trains on the inputs and checks the result on their texts."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.durable import refuse_existing, staged_folder
from data_prep.reading.compressed import COMPRESSION_SUFFIXES
from data_prep.reading.documents import OnError
from data_prep.reading.sources import DomainInput
from data_prep.reading.texts import iter_texts
from data_prep.tokenizing.settings import HF_NAME, SENTENCEPIECE_NAME, SETTINGS_NAME
from data_prep.tokenizing.tokenizer import Tokenizer, load_tokenizer
from data_prep.tokenizing.training import Algorithm, train_tokenizer

_NUM_TRIED = 256
_TRIED_CHARS = 10_000


@dataclass(frozen=True)
class Trained:
    """The result of training."""

    tokenizer: Tokenizer
    num_texts: int
    num_bytes: int
    """UTF-8 size of the training texts."""
    share: float
    """Fraction of the text bytes read that were used, chosen by a hash of each text."""
    bytes_per_token: float
    """On texts spread over the inputs, all seen in training."""
    seconds: float
    skipped: dict[str, int]
    """Bad documents that were skipped, by reason."""


def train_on_inputs(
    domains: Sequence[DomainInput],
    *,
    algorithm: Algorithm,
    vocab_size: int,
    out: Path,
    max_bytes: int,
    on_error: OnError = "fail",
    overwrite: bool = False,
) -> Trained:
    """Train on texts spread evenly over the inputs; the same inputs give the same bytes.

    Args:
        max_bytes: approximate limit on the text to train on.

    Raises:
        ValueError: for inputs without text, a vocabulary size they do not support, or a
        tokenizer that does not reproduce its own texts.
    """
    marker = HF_NAME if algorithm == "bpe" else SENTENCEPIECE_NAME
    refuse_existing(out, marker=marker, overwrite=overwrite)
    for domain in domains:
        if domain.fields.kind != "text":
            raise ValueError(
                f"{domain.name}: a tokenizer is trained on text, not {domain.fields.kind}"
            )
    began = time.monotonic()
    skipped: Counter[str] = Counter()
    texts = iter_texts(domains, on_error=on_error, skipped=skipped)
    sample = _Sample(texts, max_bytes=max_bytes, total_bytes=_bytes_of_text(domains))
    with staged_folder(out) as staging:
        folder = staging / "made"
        train_tokenizer(sample, algorithm=algorithm, vocab_size=vocab_size, to=folder)
        if not sample.num_texts:
            raise ValueError("the inputs have no text to train a tokenizer on")
        tokenizer = load_tokenizer(folder)
        bytes_per_token = _check_decoding(tokenizer, texts=sample.to_check)
        for name in (HF_NAME, SENTENCEPIECE_NAME, SETTINGS_NAME):
            if (folder / name).is_file():
                (folder / name).rename(staging / name)
        folder.rmdir()
    return Trained(
        tokenizer=tokenizer,
        num_texts=sample.num_texts,
        num_bytes=sample.num_bytes,
        share=sample.num_bytes / sample.num_bytes_read,
        bytes_per_token=bytes_per_token,
        seconds=time.monotonic() - began,
        skipped=dict(sorted(skipped.items())),
    )


def _bytes_of_text(domains: Sequence[DomainInput]) -> int | None:
    """Approximate amount of text in the inputs; None where sizes on disk do not tell."""
    if any(
        file.kind not in ("lines", "text") or file.path.endswith(COMPRESSION_SUFFIXES)
        for domain in domains
        for file in domain.files
    ):
        return None
    return sum(domain.num_bytes for domain in domains)


class _Sample:
    """The texts whose hash falls below a share, and a few of them kept for checking.

    If the inputs' size is known, so is the share, and texts are streamed; otherwise the texts with
    the lowest hashes are held in memory, up to the limit.
    """

    def __init__(self, texts: Iterator[str], *, max_bytes: int, total_bytes: int | None) -> None:
        self._texts = texts
        self._max_bytes = max_bytes
        self._total_bytes = total_bytes
        self._kept: list[tuple[int, str]] = []  # a heap of the largest hashes
        self.num_texts = 0
        self.num_bytes = 0
        self.num_bytes_read = 0

    def __iter__(self) -> Iterator[str]:
        chosen = self._held() if self._total_bytes is None else self._passing(self._total_bytes)
        for place, content in chosen:
            text = content.decode()
            self.num_texts += 1
            self.num_bytes += len(content)
            heapq.heappush(self._kept, (place, text[:_TRIED_CHARS]))
            if len(self._kept) > _NUM_TRIED:
                heapq.heappop(self._kept)
            yield text

    def _placed(self) -> Iterator[tuple[int, bytes]]:
        for text in filter(None, self._texts):
            content = text.encode()
            self.num_bytes_read += len(content)
            digest = hashlib.blake2b(content, digest_size=8).digest()
            yield int.from_bytes(digest, "big"), content

    def _passing(self, total_bytes: int) -> Iterator[tuple[int, bytes]]:
        share = min(1.0, self._max_bytes / max(total_bytes, 1))
        return (item for item in self._placed() if item[0] < share * 2**64)

    def _held(self) -> Iterator[tuple[int, bytes]]:
        held: list[tuple[int, bytes]] = []  # a heap; negative, so that the largest is popped first
        num_bytes = 0
        for place, content in self._placed():
            heapq.heappush(held, (-place, content))
            num_bytes += len(content)
            while num_bytes > self._max_bytes and len(held) > 1:
                num_bytes -= len(heapq.heappop(held)[1])
        held.sort(reverse=True)
        return ((-place, content) for place, content in held)

    @property
    def to_check(self) -> list[str]:
        return [text for _, text in sorted(self._kept)]


def _check_decoding(tokenizer: Tokenizer, *, texts: Sequence[str]) -> float:
    """Bytes per token over the texts, each of which must decode exactly."""
    num_bytes = num_tokens = 0
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        # sentencepiece writes a space as U+2581, so that character itself cannot be decoded.
        expected = text.replace("\u2581", " ") if tokenizer.kind == "sentencepiece" else text
        if tokenizer.decode(ids.tolist()) != expected:
            raise ValueError(f"the tokenizer does not reproduce the text {text[:80]!r}")
        num_bytes += len(text.encode("utf-8", "surrogatepass"))
        num_tokens += len(ids)
    return num_bytes / max(num_tokens, 1)
