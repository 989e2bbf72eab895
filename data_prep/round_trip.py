"""Which documents of a build are compared with what their ids spell, and what is lost."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_prep.reading.formats import name_place
from data_prep.reading.parts import InputFile
from data_prep.tokenizing.spelling import Loss, RoundTrip

Check = Literal["sample", "all"]
# The beginnings of the first files, then one in 64. All of it depends on the document alone, so
# that any number of workers, and a build that resumes, checks the same ones.
_NUM_FILES = 16
_FIRST_BYTES = 1 << 16
_FIRST_ROWS = 64
_ONE_IN = 64


@dataclass(frozen=True)
class LossyDocument:
    """A document that its ids do not give back."""

    file: InputFile
    place: int
    loss: Loss

    def sentence(self) -> str:
        return f"{name_place(self.file, self.place)}: the tokenizer loses {self.loss}"


def loss_if_checked(
    text: str, ids: np.ndarray, *, round_trip: RoundTrip, is_in_sample: bool
) -> tuple[bool, Loss | None]:
    """Whether a document is checked, and what its ids [n] lose.

    One with an unknown token, or with characters that may be dropped without a trace, always is.
    For the others a sample backs up what the vocabulary promises.
    """
    if not (is_in_sample or round_trip.is_suspect(text, ids)):
        return False, None
    return True, round_trip.loss(text, ids)


def is_in_sample(text: str, *, file: InputFile, place: int, check: Check) -> bool:
    if check == "all":
        return True
    first = _FIRST_BYTES if file.kind in ("lines", "stream") else _FIRST_ROWS
    if file.number < _NUM_FILES and place < first:
        return True
    return zlib.crc32(text[:256].encode()) % _ONE_IN == 0
