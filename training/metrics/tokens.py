"""What TensorBoard shows of a step's tokens: their entropies, and which of a sample dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

# 0, and 47 edges from 0.001 to 16 nats in equal ratios: many tokens are near 0.
# ln of a vocabulary of a million is 13.8, below the last edge.
ENTROPY_EDGES_NATS = (0.0, *(0.001 * 16000 ** (i / 46) for i in range(47)))
NUM_BINS = len(ENTROPY_EDGES_NATS)
SAMPLE_TOKENS = 512


@dataclass(frozen=True)
class TokenPicture:
    """Of one optimizer step, over all ranks except for the sample."""

    entropy_counts: Sequence[int]
    """Targets per bin; bin i ends at edge i, and the last bin includes all above the last edge."""
    dropped_counts: Sequence[int]
    """Those of them that dropped."""
    sample: int
    """Number of the sample whose beginning is shown."""
    ids: Sequence[int]
    is_dropped: Sequence[bool]


class TokenTexts:
    """Texts of tokens by the corpus's own tokenizer, which is loaded when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def marked(self, picture: TokenPicture) -> str:
        """The sample as Markdown that shows every character as it is, dropped tokens in ⟦ ⟧."""
        pieces = []
        pairs = zip(picture.ids, picture.is_dropped, strict=True)
        for is_dropped, run in groupby(pairs, key=lambda pair: pair[1]):
            text = self._decode([token for token, _ in run])
            pieces.append(f"⟦{text}⟧" if is_dropped else text)
        indented = _indented("".join(pieces))
        dropped, shown = sum(picture.is_dropped), len(picture.ids)
        head = f"Sample {picture.sample}: {dropped} of its first {shown} tokens dropped, in ⟦ ⟧."
        return f"{head}\n\n{indented}\n"

    @cached_property
    def _decode(self) -> Callable[[list[int]], str]:
        if (self._folder / "tokenizer.json").exists():
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(self._folder / "tokenizer.json"))
            return lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
        for model in sorted(self._folder.glob("*.model")):
            from sentencepiece import SentencePieceProcessor

            return SentencePieceProcessor(model_file=str(model)).decode
        return lambda ids: " ".join(map(str, ids))  # a corpus of ids that came without a tokenizer


def as_markdown(continuations: Sequence[Mapping[str, str]]) -> str:
    """Each prompt with its continuation behind ▸, every character as it is."""
    shown = [f"{each['prompt']}▸{each['text']}" for each in continuations]
    return "\n\n---\n\n".join(map(_indented, shown)) + "\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def add_histogram(writer: Any, tag: str, counts: Sequence[int], *, step: int) -> None:
    """Counts per bin as a TensorBoard histogram; nothing when all are 0."""
    if not sum(counts):
        return
    edges = ENTROPY_EDGES_NATS
    centres = [(low + high) / 2 for low, high in zip((0.0, *edges), edges, strict=False)]
    filled = [edge for edge, count in zip(edges, counts, strict=True) if count]
    writer.add_histogram_raw(
        tag,
        min=max((edge for edge in edges if edge < filled[0]), default=0.0),
        max=filled[-1],
        num=sum(counts),
        sum=sum(c * x for c, x in zip(counts, centres, strict=True)),
        sum_squares=sum(c * x * x for c, x in zip(counts, centres, strict=True)),
        bucket_limits=list(edges),
        bucket_counts=list(counts),
        global_step=step,
    )
