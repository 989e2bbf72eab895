"""Real text for benchmarks: the Python sources on this machine, and a BPE trained on them."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_prep.tokenizing.training import train_tokenizer

_TOKENIZER_TEXTS = 2000


def python_sources() -> Iterator[str]:
    """Every readable .py file of the standard library and the installed packages, each once."""
    seen: set[Path] = set()
    for name in ("stdlib", "platstdlib", "purelib", "platlib"):
        for path in sorted(Path(sysconfig.get_path(name)).rglob("*.py")):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue
            if text.strip():
                yield text


def write_corpus(path: Path, *, num_bytes: int) -> int:
    """JSON lines of sources until `num_bytes` of text are written; documents written.

    Raises:
        ValueError: when the machine has less text than that.
    """
    written = num_documents = 0
    with path.open("w", encoding="utf-8") as file:
        for text in python_sources():
            file.write(json.dumps({"text": text}) + "\n")
            written += len(text.encode())
            num_documents += 1
            if written >= num_bytes:
                return num_documents
    raise ValueError(f"--mb: only {written / 1e6:.0f} MB of Python sources are on this machine")


def read_texts(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def train_bpe(corpus: Path, *, vocab_size: int, to: Path) -> None:
    """Train on enough texts, spread over the corpus, for a good vocabulary within seconds."""
    texts = read_texts(corpus)
    step = max(1, len(texts) // _TOKENIZER_TEXTS)
    train_tokenizer(texts[::step], algorithm="bpe", vocab_size=vocab_size, to=to)
