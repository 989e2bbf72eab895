"""The tokenizer of the corpus against that of the model: the same ids must mean the same."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
_PROBES = (
    "The quick brown fox doesn't jump over 1,234,567 lazy dogs; it's 3.14 o'clock!",
    "def f(x):\n    return {'a': x ** 2}  # ok\n\n\n\tif x != None: pass",
    "Größe, naïve, Ελληνικά, русский, 漢字かな交じり文, العربية, हिन्दी, ﬁ № ½ \uff12",
    "  two spaces, a\u00a0no-break space, a tab\t, \r\n line ends, emoji 👩‍💻🎉 and 650841823",
)


def local_tokenizer(name: str) -> Path | None:
    """The model's `tokenizer.json` in its folder or in the hub's cache; nothing is downloaded."""
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(name, TOKENIZER_FILE, local_files_only=True)
    except OSError:
        return None
    return Path(found) if found else None


def find_other_ids(corpus_file: Path, model_file: Path) -> str | None:
    """An id with another meaning, or a text with other ids, in a sentence; None for neither.

    Ids that the model's tokenizer does not have are no mistake: rows of the embedding that were
    free may have been given to new tokens.
    """
    ours, theirs = Tokenizer.from_file(str(corpus_file)), Tokenizer.from_file(str(model_file))
    known = {number: token for token, number in theirs.get_vocab().items()}
    remedy = "build the corpus with --tokenizer of this model"
    for token, number in sorted(ours.get_vocab().items(), key=lambda item: item[1]):
        if known.get(number, token) != token:
            return (
                "the corpus was tokenised by another tokenizer than the model's: id "
                f"{number} is {token!r} in the corpus and {known[number]!r} in {model_file}; "
                f"{remedy}"
            )
    for tokenizer in (ours, theirs):
        tokenizer.no_padding()
        tokenizer.no_truncation()
    for text in _PROBES:
        here, there = (t.encode(text, add_special_tokens=False).ids for t in (ours, theirs))
        if here != there:
            return (
                f"the corpus's tokenizer gives other ids than the model's {model_file} for "
                f"{text!r} ({len(here)} and {len(there)} tokens); {remedy}"
            )
    return None
