"""The way from text to ids and back for a `tokenizer.json`, checked through its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from data_prep.tokenizing.gigatoken_path import byte_of_character
from data_prep.tokenizing.long_text import splitting_patterns
from data_prep.tokenizing.spelling import SPACE_MARK, Loss, both_losses, loss_of, rewritten

_BYTE_OF = byte_of_character()
_BYTE_OF_LETTER = {ord(letter): byte for letter, byte in _BYTE_OF.items()}
_BYTE_NAMES = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
_BLANKS = f" {SPACE_MARK}"


class _Word(NamedTuple):
    """A word as the model gets it, or what the split into words drops, which is not blank."""

    text: str
    """"" for what is dropped."""
    content: bytes


class _Computed(dict[int, bytes]):
    """Values computed when first asked for: a sample of texts has few of a vocabulary's tokens."""

    def __init__(self, compute: Callable[[int], bytes]) -> None:
        self._compute = compute

    def __missing__(self, key: int) -> bytes:
        value = self[key] = self._compute(key)
        return value


class HuggingFaceRoundTrip:
    """Every model of tokenizers only cuts up the words that it gets, so its tokens spell them."""

    def __init__(self, backend: tokenizers.Tokenizer, *, settings: dict[str, Any]) -> None:
        self._backend = backend
        self._added = {i: t.content for i, t in backend.get_added_tokens_decoder().items()}
        model, split = settings["model"], settings.get("pre_tokenizer") or {}
        self._normalises_to_bytes = _has_bytes(settings.get("normalizer") or {})
        self._is_byte_level = self._normalises_to_bytes or _has_bytes(split)
        self.eats_blanks = tuple(
            token["content"]
            for token in settings.get("added_tokens") or []
            if not token["special"] and (token["lstrip"] or token["rstrip"])
        )
        self._drops_nothing = splitting_patterns(split) is not None
        self._has_byte_names = bool(model.get("byte_fallback"))
        self._prefix: str = model.get("continuing_subword_prefix") or ""
        self._suffix: str = model.get("end_of_word_suffix") or ""
        self.unknown_id = _unknown_id(model, backend=backend)
        self._spelling = _Computed(self._spelling_of_token)
        # Other decoders change blanks, and this one reads the letters of an added token as bytes.
        self.decodes_as_spelt = (
            (settings.get("decoder") or {}).get("type") == "ByteLevel"
            and self._is_byte_level
            and not (self._prefix or self._suffix or self.unknown_id is not None)
            and all(content.isascii() for content in self._added.values())
        )
        self._may_remove = any(map(_removes, _steps(split)))
        self.loses_silently = self._may_remove or (
            self.unknown_id is None and not self._has_all_bytes(model)
        )

    def prepared(self, text: str) -> bytes:
        """The text as the model gets it: after the normaliser and the split into words."""
        split = self._backend.pre_tokenizer
        if self._may_remove:
            return b"".join(word.content for word in self._words(text))
        if self._drops_nothing:
            return self._normalised(text).encode()
        if split is None:
            return self._bytes_of(self._normalised(text))
        words = split.pre_tokenize_str(self._normalised(text))
        return self._bytes_of("".join([word for word, _ in words]))

    def is_suspect(self, text: str, ids: np.ndarray) -> bool:
        """Whether the ids [n] of a text may lose some of it."""
        if self.unknown_id is not None and bool((ids == self.unknown_id).any()):
            return True
        if not self.loses_silently:
            return False
        return self._may_remove or not self._alphabet.issuperset(self._normalised(text))

    def loss(self, text: str, ids: np.ndarray) -> Loss | None:
        """What the ids [n] of a text lose of it, and its normaliser; None if nothing."""
        normalised = self._normalised(text)
        if self._normalises_to_bytes:
            normalised = self._bytes_of(normalised).decode("utf-8", "replace")
        by_normaliser = rewritten(text, normalised=normalised)
        return both_losses(by_normaliser, self._loss_of_tokens(text, ids))

    def _loss_of_tokens(self, text: str, ids: np.ndarray) -> Loss | None:
        spelt = self._spelt(ids.tolist())
        if spelt == self.prepared(text):
            return None
        encoding = self._backend.encode(text, add_special_tokens=False)
        if encoding.ids != ids.tolist():
            return loss_of([(self.prepared(text), spelt)], text=text)
        return loss_of(self._pairs(text, encoding), text=text)

    def _pairs(self, text: str, encoding: tokenizers.Encoding) -> Iterator[tuple[bytes, bytes]]:
        """What is expected and what is spelt, between the tokens that are cut out of the text."""
        begin, ids = 0, []
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            name = self._added.get(token)
            if name is None or (token == self.unknown_id and text[start:end].strip() != name):
                ids.append(token)
                continue
            yield from self._pairs_between(text[begin:start], ids=ids)
            begin, ids = end, []
        yield from self._pairs_between(text[begin:], ids=ids)

    def _pairs_between(self, text: str, *, ids: list[int]) -> Iterator[tuple[bytes, bytes]]:
        words = self._words(text)
        tokenize = self._backend.model.tokenize
        tokens = [tokenize(word.text) if word.text else [] for word in words]
        if [token.id for of_word in tokens for token in of_word] == ids:
            for word, of_word in zip(words, tokens, strict=True):
                yield word.content, self._spelt_word([token.id for token in of_word])
        else:
            # Next to a token that is cut out, blanks may be put in or taken away.
            content = b"".join(word.content for word in words)
            yield _stripped(content), _stripped(self._spelt(ids))

    def _words(self, text: str) -> list[_Word]:
        text = self._normalised(text)
        if self._backend.pre_tokenizer is None:
            return [_Word(text, self._bytes_of(text))] if text else []
        words, place = [], 0
        for word, (start, end) in self._backend.pre_tokenizer.pre_tokenize_str(text):
            words += _dropped(text[place:start])
            words.append(_Word(word, self._bytes_of(word)))
            place = end
        return words + _dropped(text[place:])

    def _normalised(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return normalizer.normalize_str(text) if normalizer else text

    def _bytes_of(self, letters: str) -> bytes:
        if not self._is_byte_level:
            return letters.encode()
        try:
            return letters.translate(_BYTE_OF_LETTER).encode("latin-1")
        except UnicodeEncodeError:  # not made of bytes
            return letters.encode()

    def decoded(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids [n], where `decodes_as_spelt`."""
        ids = np.asarray(ids, dtype=np.int64)
        pieces = self.spelling_of_ids[ids[ids < len(self.spelling_of_ids)]]
        return b"".join(pieces.tolist()).decode("utf-8", "replace")

    @cached_property
    def spelling_of_ids(self) -> np.ndarray:
        """[ids] bytes objects, by id; those that no token has spell nothing, as in the library."""
        known = {*self._backend.get_vocab(with_added_tokens=False).values(), *self._added}
        pieces = np.full(max(known) + 1, b"", dtype=object)
        for token in known:
            pieces[token] = self._spelling[token]
        return pieces

    def _spelt(self, ids: Sequence[int]) -> bytes:
        return b"".join(map(self._spelling.__getitem__, ids))

    def _spelling_of_token(self, token: int) -> bytes:
        if token == self.unknown_id:
            return b""
        if token in self._added:
            return self._added[token].encode()
        name = self._backend.id_to_token(token)
        if name is None:
            raise KeyError(token)
        return self._spelling_of(name)

    def _spelt_word(self, ids: Sequence[int]) -> bytes:
        """Marks of a word's parts are none where they are letters: "##" at its beginning is."""
        whole = self._spelt(ids)
        if not ids or not self._prefix:
            return whole
        first = self._backend.id_to_token(ids[0]) or ""
        is_marked = first.startswith(self._prefix) and ids[0] != self.unknown_id
        return self._prefix.encode() * is_marked + whole

    @cached_property
    def _alphabet(self) -> frozenset[str]:
        """Characters that a BPE without unknown token and without all bytes never drops.

        It begins with the single characters of a word and only ever merges them. With marks at
        the parts of a word these are other tokens, and no character is safe.
        """
        if self._prefix or self._suffix:
            return frozenset()
        tokens = self._backend.get_vocab(with_added_tokens=False)
        spelt = {self._spelling_of(token) for token in tokens if len(token) == 1}
        letters = {content.decode() for content in spelt if content.isascii() or len(content) > 1}
        # The split into words may drop blanks, or put another character in their place.
        blanks = [blank for blank in map(chr, range(0x3001)) if blank.isspace()]
        safe = {
            blank
            for blank in blanks
            if letters.issuperset(self.prepared(2 * blank).decode("utf-8", "replace"))
        }
        return frozenset(letters.difference(blanks) | safe)

    def _spelling_of(self, name: str) -> bytes:
        if self._has_byte_names and name in _BYTE_NAMES:
            return _BYTE_NAMES[name]
        return self._bytes_of(name.removeprefix(self._prefix).removesuffix(self._suffix))

    def _has_all_bytes(self, model: dict[str, Any]) -> bool:
        """Whether its vocabulary can spell any text; only BPE may drop what it cannot."""
        needed = _BYTE_OF if self._is_byte_level else _BYTE_NAMES
        is_used = self._is_byte_level or self._has_byte_names
        return model["type"] != "BPE" or (is_used and needed.keys() <= model["vocab"].keys())


def _steps(part: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a normaliser or of a split into words."""
    inner = part.get("normalizers") or part.get("pretokenizers")
    return [part] if inner is None else [step for one in inner for step in _steps(one)]


def _has_bytes(part: dict[str, Any]) -> bool:
    return any(step.get("type") == "ByteLevel" for step in _steps(part))


def _removes(step: dict[str, Any]) -> bool:
    return step.get("type") == "CharDelimiterSplit" or step.get("behavior") == "Removed"


def _unknown_id(model: dict[str, Any], *, backend: tokenizers.Tokenizer) -> int | None:
    if model.get("type") == "Unigram":
        unknown: int | None = model.get("unk_id")
        return unknown
    name = model.get("unk_token")
    return None if name is None else backend.token_to_id(name)


def _dropped(text: str) -> list[_Word]:
    letters = "".join(text.split())
    return [_Word("", letters.encode())] if letters else []


def _stripped(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").strip(_BLANKS).encode()
