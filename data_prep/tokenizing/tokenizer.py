"""One interface to Hugging Face fast and sentencepiece tokenizers, loaded from a folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import sentencepiece
import tiktoken
import tokenizers

from data_prep.manifest import SpecialIds
from data_prep.tokenizing.long_text import is_safe_to_cut, pieces_of_long_text
from data_prep.tokenizing.split_check import first_difference
from data_prep.tokenizing.tiktoken_path import NotTheSame, TiktokenPath

HF_NAME = "tokenizer.json"
SENTENCEPIECE_NAME = "tokenizer.model"
# Versions of tokenizers and tiktoken, the pinned and the oldest pair: tests compare the character
# tables of the installed pair. Any other pair is compared on first use.
VERIFIED_VERSIONS = frozenset({("0.23.3", "0.14.0"), ("0.23.1", "0.12.0")})
_NUM_FIRST = 4
_CONVERT = (
    "convert the tokenizer with transformers: "
    "AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
)


Kind = Literal["huggingface", "sentencepiece"]


class Tokenizer(Protocol):
    """What a build needs from a tokenizer: ids of untrusted text, text of ids, special ids."""

    vocab_size: int
    special_ids: SpecialIds  # without the suffix, which the build decides on
    cuts_long_text: bool  # else a document of many MB needs 150 times its size in memory
    how: str  # which library encodes, and why, in one readable line

    @property
    def kind(self) -> Kind: ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


def load_tokenizer(folder: Path, *, fast: bool = True) -> Tokenizer:
    """The tokenizer in a folder: `tokenizer.json` if there is one, else `tokenizer.model`.

    Args:
        fast: let tiktoken encode where it is provably equivalent.
    """
    if kind_of(folder) == "huggingface":
        return HuggingFaceTokenizer(folder, fast=fast)
    return SentencePieceTokenizer(folder)


def kind_of(folder: Path) -> Kind:
    """Which library reads the tokenizer of a folder."""
    if (folder / HF_NAME).is_file():
        return "huggingface"
    if (folder / SENTENCEPIECE_NAME).is_file():
        return "sentencepiece"
    raise ValueError(f"{folder}: no {HF_NAME} and no {SENTENCEPIECE_NAME}; {_CONVERT}")


@lru_cache(maxsize=1)
def load_once(folder: Path, sha256: str, *, fast: bool) -> Tokenizer:
    """The tokenizer of this process, cached across tasks while its files are unchanged."""
    return load_tokenizer(folder, fast=fast)


class HuggingFaceTokenizer:
    """`tokenizer.json` through its own library, set to treat special tokens as text."""

    kind: Kind = "huggingface"

    def __init__(self, folder: Path, *, fast: bool = True) -> None:
        path = folder / HF_NAME
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{path}: not a tokenizer: {error}") from None
        # Saved settings may truncate every text at 512 tokens, or pad it.
        self._backend.no_truncation()
        self._backend.no_padding()
        # A literal "<eos>" in a document is five characters of text, not its end.
        self._backend.encode_special_tokens = True
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self.special_ids = _special_ids(self._backend, folder=folder)
        settings = json.loads(self._backend.to_str())
        self.cuts_long_text = is_safe_to_cut(settings)
        self._path, self.how = _fast_path(settings) if fast else (None, "the Hugging Face library")
        self._num_checked = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, with no special token added."""
        return [
            # Piece by piece: a text of 200 MB at once would take 30 GB.
            np.concatenate([self._encode_piece(piece) for piece in self._pieces(text)])
            for text in texts
        ]

    def _pieces(self, text: str) -> list[str]:
        return pieces_of_long_text(text) if self.cuts_long_text else [text]

    def _encode_piece(self, text: str) -> np.ndarray:
        ids = None if self._path is None else self._path.encode(text)
        if ids is None:
            return self._encode_by_reference(text)
        if self._is_in_sample(text) and not np.array_equal(ids, self._encode_by_reference(text)):
            raise ValueError(
                f"tiktoken and tokenizers disagree on the text that begins {text[:80]!r}; build "
                "with --no-fast-path, and please report it"
            )
        return ids

    def _is_in_sample(self, text: str) -> bool:
        """The first few texts, then one in 256: backs up the proof at a cost of 2%."""
        self._num_checked += 1
        return self._num_checked <= _NUM_FIRST or zlib.crc32(text[:256].encode()) % 256 == 0

    def _encode_by_reference(self, text: str) -> np.ndarray:
        # The fast form keeps no character offsets; for one worker a batch gains nothing more.
        encoding = self._backend.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(encoding.ids, dtype=np.uint32)

    def decode(self, ids: Sequence[int]) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=False)


def _fast_path(settings: dict[str, Any]) -> tuple[TiktokenPath | None, str]:
    try:
        path = TiktokenPath(settings)
    except NotTheSame as reason:
        return None, f"the Hugging Face library; tiktoken would be faster, but {reason}"
    versions = (tokenizers.__version__, tiktoken.__version__)
    if versions not in VERIFIED_VERSIONS and first_difference(path.pattern) is not None:
        return None, "the Hugging Face library; its Unicode tables differ from tiktoken's"
    return path, "tiktoken, proven equivalent to the Hugging Face library and checked on a sample"


class SentencePieceTokenizer:
    """A sentencepiece `.model` through its own library."""

    how = "sentencepiece"
    kind: Kind = "sentencepiece"
    cuts_long_text = False

    def __init__(self, folder: Path) -> None:
        path = folder / SENTENCEPIECE_NAME
        try:
            self._backend = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path}: not a sentencepiece model: {error}") from None
        self.vocab_size = self._backend.vocab_size()
        settings = _settings(folder)
        self._refuse_added_tokens(folder, settings=settings)
        bos, eos, pad = (
            self._special_id(settings.get(f"{role}_token"), own=own(), folder=folder)
            for role, own in (
                ("bos", self._backend.bos_id),
                ("eos", self._backend.eos_id),
                ("pad", self._backend.pad_id),
            )
        )
        adds_bos = settings.get("add_bos_token") is True
        prefix = (bos,) if adds_bos and bos is not None else ()
        self.special_ids = SpecialIds(bos=bos, eos=eos, pad=pad, document_prefix=prefix)

    def _refuse_added_tokens(self, folder: Path, *, settings: dict[str, Any]) -> None:
        """transformers would give ids that this library does not have."""
        added = _read_json(folder / "added_tokens.json")
        for number, entry in settings.get("added_tokens_decoder", {}).items():
            added.setdefault(entry["content"], int(number))
        for token, number in added.items():
            if self._piece_id(token) != number:
                raise ValueError(
                    f"{folder}: adds the token {token!r} with the id {number}, which "
                    f"{SENTENCEPIECE_NAME} does not have; {_CONVERT}"
                )

    def _special_id(self, name: Any, *, own: int, folder: Path) -> int | None:
        """As transformers has it: the settings' token, else the model's own."""
        content = name.get("content") if isinstance(name, dict) else name
        if not isinstance(content, str):
            return own if own >= 0 else None  # sentencepiece returns -1 for a missing token
        found = self._piece_id(content)
        if found is None:
            raise ValueError(
                f"{folder}: its settings name the token {content!r}, which {SENTENCEPIECE_NAME} "
                f"does not have; {_CONVERT}"
            )
        return found

    def _piece_id(self, token: str) -> int | None:
        """sentencepiece itself returns the id of <unk> for an unknown piece."""
        found = int(self._backend.piece_to_id(token))
        return found if self._backend.id_to_piece(found) == token else None

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, with no special token added."""
        encoded = self._backend.encode(list(texts), out_type=int, num_threads=1)
        return [np.array(ids, dtype=np.uint32) for ids in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens appear by name, where the library drops them."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if self._backend.is_control(token):
                parts += [self._backend.decode(run), self._backend.id_to_piece(token)]
                run = []
            else:
                run.append(token)
        return "".join([*parts, self._backend.decode(run)])


def _special_ids(backend: tokenizers.Tokenizer, *, folder: Path) -> SpecialIds:
    """BOS, EOS and padding as the folder's settings name them, and the prefix of a text."""
    names = _settings(folder)
    ids = {role: _token_id(backend, names.get(f"{role}_token")) for role in ("bos", "eos", "pad")}
    return SpecialIds(
        bos=ids["bos"],
        eos=ids["eos"],
        pad=ids["pad"],
        document_prefix=_template_prefix(backend),
    )


def _settings(folder: Path) -> dict[str, Any]:
    older = _read_json(folder / "special_tokens_map.json")
    return {**older, **_read_json(folder / "tokenizer_config.json")}


def _template_prefix(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """What the tokenizer's own template puts before a text.

    transformers 5 uses nothing else: with a tokenizer.json it ignores `add_bos_token`.
    """
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(full) - len(plain) + 1):
        if plain and full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


def _token_id(backend: tokenizers.Tokenizer, name: Any) -> int | None:
    content = name.get("content") if isinstance(name, dict) else name
    return backend.token_to_id(content) if isinstance(content, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object, found {type(content).__name__}")
    return content
