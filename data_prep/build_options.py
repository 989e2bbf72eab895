"""What a build is told by its user."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.reading.documents import OnError, OnLoss
from data_prep.reading.fields import Fields
from data_prep.reading.folders import Globs
from data_prep.reading.sources import split_name
from data_prep.record import printable_path
from data_prep.round_trip import Check

if TYPE_CHECKING:
    from data_prep.tokenizing.training import Algorithm


@dataclass(frozen=True)
class BuildOptions:
    """The user's options; `check` rejects contradictory ones."""

    inputs: tuple[str | Path, ...]
    """`PATH` or `DOMAIN=PATH`."""
    out: Path
    tokenizer: str | None = None
    train_tokenizer: Algorithm | None = None
    train_vocab_size: int | None = None
    fields: Fields = field(default_factory=lambda: Fields(text="text"))
    fields_of: dict[str, Fields] = field(default_factory=dict)
    """Fields of individual domains, where they differ from `fields`."""
    globs: Globs = field(default_factory=Globs)
    val_frac: float = 0.01
    on_error: OnError = "fail"
    on_loss: OnLoss = "fail"
    """What to do where ids do not spell their text: fail, or count the characters."""
    checked: Check = "sample"
    """Which texts are compared with what their ids spell."""
    add_eos: bool = True
    split_on_eos: bool = False
    """A flat .npy of ids holds many documents, each ending in EOS."""
    num_workers: int | None = None  # None: one per core, or one for a small corpus
    shard_mib: float = 512
    overwrite: bool = False
    restart: bool = False
    fast_path: bool = True
    """Encode with gigatoken where it is provably equivalent."""

    def check(self) -> None:
        if (self.tokenizer is None) == (self.train_tokenizer is None):
            raise ValueError(
                "give either --tokenizer NAME_OR_PATH or --train-tokenizer bpe|unigram"
            )
        if (self.train_vocab_size is None) != (self.train_tokenizer is None):
            raise ValueError("--train-tokenizer and --vocab-size go together: give both or neither")
        for fields in (self.fields, *self.fields_of.values()):
            if fields.kind != "text" and self.train_tokenizer:
                raise ValueError(
                    f"--train-tokenizer needs text, but the input is {fields.kind}; pass the "
                    "tokenizer of the ids or of the chat template with --tokenizer"
                )
        if not 0 <= self.val_frac < 1:
            raise ValueError(f"--val-frac {self.val_frac}: must be at least 0 and below 1")
        if self.num_workers is not None and self.num_workers < 1:
            raise ValueError(f"--workers {self.num_workers}: must be at least 1")
        if self.shard_mib <= 0:
            raise ValueError(f"--shard-mib {self.shard_mib}: must be above 0")
        out = self.out.resolve()
        if printable_path(str(out)) != str(out):
            raise ValueError(f"--out {printable_path(str(out))}: its name must be valid UTF-8")
        for text in map(str, self.inputs):
            source = Path(split_name(text)[1]).resolve()
            if source == out or source in out.parents or out in source.parents:
                raise ValueError(f"--out {self.out}: overlaps with --input {text}; keep them apart")
