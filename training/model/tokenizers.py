"""The tokenizer of the corpus against that of the model: the same ids must mean the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
PROBES = (
    "The quick brown fox doesn't jump over 1,234,567 lazy dogs; it's 3.14 o'clock!",
    "def f(x):\n    return {'a': x ** 2}  # ok\n\n\n\tif x != None: pass",
    "Größe, naïve, Ελληνικά, русский, 漢字かな交じり文, العربية, हिन्दी, ﬁ № ½ \uff12",
    "  two spaces, a\u00a0no-break space, a tab\t, \r\n line ends, emoji 👩‍💻🎉 and 650841823",
)


def find_pair(corpus_folder: Path, pretrained: str) -> tuple[Path, Path] | None:
    """The corpus's and the model's tokenizer in files of one kind, if both have such a file."""
    for name in (TOKENIZER_FILE, SENTENCEPIECE_FILE):
        kept, own = corpus_folder / name, local_tokenizer(pretrained, name)
        if own is not None and kept.is_file():
            return kept, own
    return None


def local_tokenizer(pretrained: str, name: str = TOKENIZER_FILE) -> Path | None:
    """A file of the model in its folder or in the hub's cache; nothing is downloaded."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(pretrained, name, local_files_only=True)
    except OSError:
        return None
    return Path(found) if found else None


def find_other_ids(
    corpus_file: Path,
    model_file: Path,
    *,
    remedy: str = "build the corpus with --tokenizer of this model",
) -> str | None:
    """An id with another meaning, or a text with other ids, in a sentence; None for neither.

    Ids that the model's tokenizer does not have are no mistake: rows of the embedding that were
    free may have been given to new tokens.

    Args:
        corpus_file: a `tokenizer.json` or a sentencepiece model.
        model_file: of the same kind.
        remedy: ends the sentence.
    """
    ours, theirs = _read(corpus_file), _read(model_file)
    for number, token in sorted(ours.tokens.items()):
        if theirs.tokens.get(number, token) != token:
            return (
                "the corpus was tokenised by another tokenizer than the model's: id "
                f"{number} is {token!r} in the corpus and {theirs.tokens[number]!r} in "
                f"{model_file}; {remedy}"
            )
    for text in PROBES:
        here, there = ours.encode(text), theirs.encode(text)
        if here != there:
            return (
                f"the corpus's tokenizer gives other ids than the model's {model_file} for "
                f"{text!r} ({len(here)} and {len(there)} tokens); {remedy}"
            )
    return None


@dataclass(frozen=True)
class _Tokenizer:
    tokens: dict[int, str]
    """By id."""
    encode: Callable[[str], list[int]]


def _read(path: Path) -> _Tokenizer:
    """Raises: ValueError, for a file that is neither of the two kinds."""
    try:
        return _read_json(path) if path.suffix == ".json" else _read_sentencepiece(path)
    except Exception as error:  # tokenizers raises a bare Exception
        raise ValueError(f"{path}: not a tokenizer: {error}") from None


def _read_json(path: Path) -> _Tokenizer:
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return _Tokenizer(
        {number: token for token, number in tokenizer.get_vocab().items()},
        lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids),
    )


def _read_sentencepiece(path: Path) -> _Tokenizer:
    processor = SentencePieceProcessor(model_file=str(path))
    numbers = range(processor.vocab_size())
    return _Tokenizer({n: processor.id_to_piece(n) for n in numbers}, processor.encode)
