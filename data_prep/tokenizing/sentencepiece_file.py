"""A sentencepiece `.model`, with the special tokens that the settings next to it add."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from data_prep.manifest import SpecialIds
from data_prep.tokenizing.settings import (
    ADDED_NAME,
    SENTENCEPIECE_NAME,
    SETTINGS_NAME,
    read_json,
    special_names,
)
from data_prep.tokenizing.spelling import Loss, both_losses, loss_of, rewritten

_CONVERT = (
    "convert the tokenizer with transformers: "
    "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes a tokenizer.json"
)


class SentencePieceTokenizer:
    """A sentencepiece `.model` through its own library."""

    how = "sentencepiece"
    kind: Literal["sentencepiece"] = "sentencepiece"
    cuts_long_text = False

    def __init__(self, folder: Path) -> None:
        path = folder / SENTENCEPIECE_NAME
        try:
            self._backend = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path}: not a sentencepiece model: {error}") from None
        names = special_names(folder)
        self._added = _added_tokens(folder, names=names, backend=self._backend)
        self.vocab_size = self._backend.vocab_size() + len(self._added)
        ids = {
            role: self._id_of(role, own=own, names=names, folder=folder)
            for role, own in (
                ("bos", self._backend.bos_id()),
                ("eos", self._backend.eos_id()),
                ("pad", self._backend.pad_id()),
            )
        }
        adds_bos = read_json(folder / SETTINGS_NAME).get("add_bos_token") is True
        bos = ids["bos"]
        prefix = (bos,) if adds_bos and bos is not None else ()
        self.special_ids = SpecialIds(
            bos=bos, eos=ids["eos"], pad=ids["pad"], document_prefix=prefix
        )
        self.round_trip = SentencePieceRoundTrip(self._backend)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, with no special token added."""
        encoded = self._backend.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.uint32) for ids in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of ids; control tokens appear by name, where the library drops them."""
        names = {token: name for name, token in self._added.items()}
        parts: list[str] = []
        run: list[int] = []
        for token in np.asarray(ids).tolist():
            if token in names or self._backend.is_control(token):
                name = names.get(token) or self._backend.id_to_piece(token)
                parts += [self._backend.decode(run), name]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._backend.decode(run)])

    def spelling(self) -> None:
        """None: its library drops a blank at the beginning."""

    def _id_of(self, role: str, *, own: int, names: dict[str, str], folder: Path) -> int | None:
        """The id of the token that the settings name for a role, else the model's own."""
        name = names.get(f"{role}_token")
        if name is None:
            return own if own >= 0 else None  # sentencepiece returns -1 for a missing token
        if name in self._added:
            return self._added[name]
        token = int(self._backend.piece_to_id(name))
        if self._backend.id_to_piece(token) == name:
            return token
        if role != "eos":
            return own if own >= 0 else None
        raise ValueError(
            f"{folder}: names the EOS {name!r}, but neither {SENTENCEPIECE_NAME} nor {ADDED_NAME} "
            f"has it; {_CONVERT}"
        )


class SentencePieceRoundTrip:
    """Its pieces spell the text that its normaliser gives, but for unknown characters."""

    eats_blanks: tuple[str, ...] = ()

    def __init__(self, backend: sentencepiece.SentencePieceProcessor) -> None:
        self._backend = backend
        self._unknown_id: int = backend.unk_id()

    def prepared(self, text: str) -> bytes:
        """The text after the model's normaliser, blanks as its mark for them."""
        normalised: str = self._backend.normalize(text)
        return normalised.encode()

    def is_suspect(self, text: str, ids: np.ndarray) -> bool:
        """Whether an id stands for unknown characters."""
        return bool((ids == self._unknown_id).any())

    def loss(self, text: str, ids: np.ndarray) -> Loss | None:
        """What the ids [n] of a text lose of it, and its normaliser; None if nothing."""
        prepared = self.prepared(text)
        spelt = b"".join(map(self._spelling.__getitem__, ids.tolist()))
        by_normaliser = rewritten(text, normalised=prepared.decode())
        return both_losses(by_normaliser, loss_of([(prepared, spelt)], text=text))

    @cached_property
    def _spelling(self) -> list[bytes]:
        spelling = []
        for token in range(self._backend.vocab_size()):
            name = self._backend.id_to_piece(token)
            if self._backend.is_byte(token):
                spelling.append(bytes.fromhex(name[3:5]))  # <0xE6>
            else:
                spelling.append(b"" if self._backend.is_unknown(token) else name.encode())
        return spelling


def _added_tokens(
    folder: Path, *, names: dict[str, str], backend: sentencepiece.SentencePieceProcessor
) -> dict[str, int]:
    """Special tokens behind the model's own, as transformers adds them; their ids by name.

    Raises:
        ValueError: for tokens that transformers would also find within a text.
    """
    settings = read_json(folder / SETTINGS_NAME)
    added = {name: int(token) for name, token in read_json(folder / ADDED_NAME).items()}
    specials = {*names.values()}
    for token, entry in (settings.get("added_tokens_decoder") or {}).items():
        added[entry["content"]] = int(token)
        if entry.get("special"):
            specials.add(entry["content"])
    for key in ("additional_special_tokens", "extra_special_tokens"):
        listed = settings.get(key) or []
        specials |= {name["content"] if isinstance(name, dict) else name for name in listed}
    first = backend.vocab_size()
    added = {name: token for name, token in added.items() if token >= first}
    found_in_text = [name for name in added if name not in specials]
    if found_in_text:
        raise ValueError(
            f"{folder}: adds {found_in_text[0]!r} to {SENTENCEPIECE_NAME} as a token that is found "
            f"within texts, which sentencepiece cannot do; {_CONVERT}"
        )
    if sorted(added.values()) != list(range(first, first + len(added))):
        raise ValueError(
            f"{folder}: adds tokens with the ids {sorted(added.values())}, expected {first} and on "
            f"without a gap; {_CONVERT}"
        )
    return added
