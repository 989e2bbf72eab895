"""What tests of refusals share: a start checked without a model, corpora to break, and flips."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from data_prep.reading.fields import Fields
from tests.training.short_runs import SEQUENCE_TOKENS, short_recipe
from training.config.recipe import Recipe
from training.ranks.dist import Layout
from training.run.start import Start, check_start

CPU = torch.device("cpu")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def check(corpus: Path, *, num_processes: int = 2, **changes: Any) -> Start:
    """The checks of every rank, of which each reads a share of the files."""
    recipe = short_recipe(corpus, Path("unused"), **changes)
    sp_size = recipe.train.sequence_parallel_size
    layouts = [Layout(rank, num_processes, sp_size, CPU) for rank in range(num_processes)]
    starts = [check_start(recipe, layout) for layout in layouts]
    return starts[0]


def message_without_a_model(recipe: Recipe) -> str:
    from training.run import run as run_module

    def build_engine(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was built")

    run_module.build_engine = build_engine
    return refused(lambda: run_module.train(recipe))


def build_ids(
    folder: Path, rows: list[dict[str, Any]], *, tokenizer: Path, val_frac: float
) -> Path:
    folder.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines)
    build(
        BuildOptions(
            inputs=(folder / "rows.jsonl",),
            out=folder / "corpus",
            tokenizer=str(tokenizer),
            fields=Fields(ids="ids", loss_mask="mask"),
            val_frac=val_frac,
            num_workers=1,
        )
    )
    pack(folder / "corpus", seq_len=SEQUENCE_TOKENS)
    return folder / "corpus"


def build_text(folder: Path, **changes: Any) -> Path:
    options = {"train_vocab_size": 512, "val_frac": 0.6, **changes}
    build(
        BuildOptions(
            inputs=(Path(json.__file__).parent, Path(logging.__file__).parent),
            out=folder,
            train_tokenizer="bpe",
            num_workers=1,
            **options,
        )
    )
    pack(folder, seq_len=SEQUENCE_TOKENS)
    return folder


def first_shard(corpus: Path, suffix: str) -> Path:
    return min(corpus.glob(f"shard-train-*.{suffix}"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
