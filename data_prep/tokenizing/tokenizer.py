"""One interface to Hugging Face fast and sentencepiece tokenizers, loaded from a folder."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import orjson
import tokenizers

from data_prep.manifest import SpecialIds
from data_prep.tokenizing.gigatoken_path import GigatokenPath, NotTheSame
from data_prep.tokenizing.long_text import SAFE_CUT, is_safe_to_cut
from data_prep.tokenizing.reference import Reference
from data_prep.tokenizing.round_trip import HuggingFaceRoundTrip
from data_prep.tokenizing.settings import HF_NAME, SENTENCEPIECE_NAME, special_names
from data_prep.tokenizing.spelling import RoundTrip
from data_prep.tokenizing.split_check import first_difference

# Versions of tokenizers and gigatoken, the pinned pair: tests compare the character tables of the
# installed one. Any other pair is compared on first use.
VERIFIED_VERSIONS = frozenset({("0.23.3", "0.10.0")})
_NUM_FIRST = 4
_ONE_IN = 512
_CHECKED_CHARS = 1 << 12
_REFERENCE = "the Hugging Face library"
_NAMES_PREFIX = re.compile(rb'"continuing_subword_prefix"\s*:\s*"[^"]')


Kind = Literal["huggingface", "sentencepiece"]


class Tokenizer(Protocol):
    """What a build needs from a tokenizer: ids of untrusted text, text of ids, special ids."""

    vocab_size: int
    special_ids: SpecialIds  # without the suffix, which the build decides on
    cuts_long_text: bool  # else a document of many MB needs 150 times its size in memory
    how: str  # which library encodes, and why, in one readable line

    @property
    def kind(self) -> Kind: ...

    @property
    def round_trip(self) -> RoundTrip: ...

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]: ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...

    def spelling(self) -> np.ndarray | None:
        """[ids] bytes objects, by id, if these one after another are the text of any ids."""


def load_tokenizer(folder: Path, *, fast: bool = True) -> Tokenizer:
    """The tokenizer in a folder: `tokenizer.json` if there is one, else `tokenizer.model`.

    Args:
        fast: let gigatoken encode where it is provably equivalent.
    """
    if kind_of(folder) == "sentencepiece":
        from data_prep.tokenizing.sentencepiece_file import SentencePieceTokenizer

        return SentencePieceTokenizer(folder)
    tokenizer = HuggingFaceTokenizer(folder)
    if fast:
        path, how = prove_fast_path(tokenizer)
        tokenizer.use(path, how=how)
    return tokenizer


def kind_of(folder: Path) -> Kind:
    """Which library reads the tokenizer of a folder."""
    if (folder / HF_NAME).is_file():
        return "huggingface"
    if (folder / SENTENCEPIECE_NAME).is_file():
        return "sentencepiece"
    raise ValueError(
        f"{folder}: no {HF_NAME} and no {SENTENCEPIECE_NAME}; convert the tokenizer with "
        "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
    )


def load_once(
    folder: Path, sha256: str, *, fast: Path | None = None, checks_all: bool = False
) -> Tokenizer:
    """The tokenizer of this process, cached across tasks while its files are unchanged.

    Args:
        fast: a fast path that is proven for it, as `GigatokenPath.save` has written it.
        checks_all: compare every text with the reference, not a sample.
    """
    tokenizer = _load_once(folder, sha256)
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.use(_load_path_once(fast, sha256) if fast else None, checks_all=checks_all)
    return tokenizer


@lru_cache(maxsize=1)
def _load_once(folder: Path, sha256: str) -> Tokenizer:
    return load_tokenizer(folder, fast=False)


@lru_cache(maxsize=1)
def _load_path_once(path: Path, sha256: str) -> GigatokenPath:
    return GigatokenPath.load(path)


class HuggingFaceTokenizer:
    """`tokenizer.json` through its own library, set to treat special tokens as text."""

    kind: Kind = "huggingface"

    def __init__(self, folder: Path) -> None:
        path = folder / HF_NAME
        self._backend, self.vocab_size = _loaded(path)
        # Saved settings may truncate every text at 512 tokens, or pad it.
        self._backend.no_truncation()
        self._backend.no_padding()
        # A literal "<eos>" in a document is five characters of text, not its end.
        self._backend.encode_special_tokens = True
        if getattr(self._backend.model, "dropout", None):
            self._backend.model.dropout = None  # else the same text has other ids each time
        try:
            self._backend.encode("\U0010fffd")  # no vocabulary has it
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(
                f"{path}: cannot encode every text ({error}): its unknown token must be in its "
                "vocabulary"
            ) from None
        self.special_ids = _special_ids(self._backend, folder=folder)
        settings = orjson.loads(self._backend.to_str())
        self.cuts_long_text = is_safe_to_cut(settings)
        self._reference = Reference(self._backend, cuts_long_text=self.cuts_long_text)
        self.use(None)
        self._num_checked = 0
        self.round_trip = HuggingFaceRoundTrip(self._backend, settings=settings)

    def use(
        self, path: GigatokenPath | None, *, how: str = _REFERENCE, checks_all: bool = False
    ) -> None:
        """Encode by a path that is proven for this tokenizer, or by the reference alone."""
        self._path, self.how, self._checks_all = path, how, checks_all

    def find_fast_path(self) -> GigatokenPath:
        """Prove gigatoken equivalent, or raise `NotTheSame`."""
        settings = orjson.loads(self._backend.to_str())
        return GigatokenPath.of(settings, backend=self._backend)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, with no special token added."""
        if self._path is None:
            return self._reference.encode(texts)
        return [self._encode(text, path=self._path) for text in texts]

    def _encode(self, text: str, *, path: GigatokenPath) -> np.ndarray:
        ids = path.encode(text)
        if ids is None:
            return self._reference.encode([text])[0]
        if self._differs(text, ids):
            raise ValueError(
                f"gigatoken and tokenizers disagree on the text that begins {text[:80]!r}; build "
                "with --no-fast-path, and please report it"
            )
        return ids

    def _differs(self, text: str, ids: np.ndarray) -> bool:
        """Whether the reference has other ids: for a sample that backs up the proof, or for all.

        The sample is the beginnings of the first few texts, then of one in 512.
        """
        if self._checks_all:
            return not np.array_equal(ids, self._reference.encode([text])[0])
        self._num_checked += 1
        if self._num_checked > _NUM_FIRST and zlib.crc32(text[:256].encode()) % _ONE_IN:
            return False
        begin = _beginning(text) if self.cuts_long_text else text
        expected = self._reference.encode([begin])[0]
        return not np.array_equal(ids[: len(expected)] if begin != text else ids, expected)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        if self.round_trip.decodes_as_spelt:  # the same, ten times as fast
            return self.round_trip.decoded(ids)
        return self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def spelling(self) -> np.ndarray | None:
        """[ids] bytes objects, by id, if these one after another are the text of any ids."""
        way = self.round_trip
        return way.spelling_of_ids if way.decodes_as_spelt else None


def _beginning(text: str) -> str:
    """As much of a text as the sampled check compares; its ids are the first of the whole."""
    cut = SAFE_CUT.search(text, _CHECKED_CHARS)
    return text[: cut.end()] if cut else text


def _loaded(path: Path) -> tuple[tokenizers.Tokenizer, int]:
    """The library's tokenizer of a file, and the size of its vocabulary with added tokens."""
    _check_prefix(path)
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except BaseException as error:
        # The library raises a bare Exception, and where it panics something that is not even one.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{path}: not a tokenizer: {error}") from None
    vocab = backend.get_vocab(with_added_tokens=False)
    if len(set(vocab.values())) < len(vocab):
        number = next(number for number, times in Counter(vocab.values()).items() if times > 1)
        other, token, *_ = sorted(token for token in vocab if vocab[token] == number)
        raise ValueError(
            f"{path}: the tokens {other!r} and {token!r} both have the id {number}; each needs "
            "its own"
        )
    return backend, max([*vocab.values(), *backend.get_added_tokens_decoder()]) + 1


def _check_prefix(path: Path) -> None:
    """Refuse merges without the prefix of a word's later parts: the library panics at them."""
    content = path.read_bytes()
    if not _NAMES_PREFIX.search(content):
        return  # as for almost all, which are not parsed twice
    try:
        model = orjson.loads(content)["model"]
        prefix = model["continuing_subword_prefix"]
        merges = [m.split(" ") if isinstance(m, str) else m for m in model.get("merges") or []]
        without = [merge for merge in merges if not merge[-1].startswith(prefix)]
    except (ValueError, TypeError, LookupError, AttributeError):
        return  # the library says what is wrong
    if without:
        raise ValueError(
            f"{path}: continuing_subword_prefix is {prefix!r}, but the second part of the merge "
            f"{without[0]} does not begin with it"
        )


def prove_fast_path(tokenizer: Tokenizer) -> tuple[GigatokenPath | None, str]:
    """The fast path of a tokenizer, if it is proven, and which library encodes and why."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return None, tokenizer.how
    from importlib.metadata import version

    try:
        path = tokenizer.find_fast_path()
    except NotTheSame as reason:
        return None, f"{_REFERENCE}; gigatoken would be faster, but {reason}"
    versions = (tokenizers.__version__, version("gigatoken"))
    if versions not in VERIFIED_VERSIONS and first_difference(path.pattern) is not None:
        return None, f"{_REFERENCE}; its Unicode tables differ from gigatoken's"
    return path, f"gigatoken, proven equivalent to {_REFERENCE}"


def _special_ids(backend: tokenizers.Tokenizer, *, folder: Path) -> SpecialIds:
    """BOS, EOS and padding as the folder's settings name them, and the prefix of a text."""
    names = special_names(folder)
    ids = {
        role: backend.token_to_id(names[f"{role}_token"]) if f"{role}_token" in names else None
        for role in ("bos", "eos", "pad")
    }
    if ids["eos"] is None and "eos_token" in names:
        raise ValueError(
            f"{folder}: names the EOS {names['eos_token']!r}, which {HF_NAME} does not have; save "
            "the tokenizer with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    prefix = _template_prefix(backend)
    return SpecialIds(bos=ids["bos"], eos=ids["eos"], pad=ids["pad"], document_prefix=prefix)


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
