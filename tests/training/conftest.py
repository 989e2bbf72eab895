"""Fixtures of several files here."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards import open_corpus
from tests.made_once import made_once
from tests.scores import write_scores


@pytest.fixture(scope="session")
def general_corpus(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other text in two domains, with the tokenizer of `small_corpus` and packed alike."""

    def make(folder: Path) -> None:
        import email
        import html

        from data_prep.build import build
        from data_prep.build_options import BuildOptions
        from data_prep.packing.pack import pack

        inputs = tuple(f"{m.__name__}={Path(m.__file__ or '').parent}" for m in (email, html))
        build(
            BuildOptions(
                inputs=inputs,
                out=folder,
                tokenizer=str(small_corpus / "tokenizer"),
                val_frac=0.3,
                num_workers=1,
            )
        )
        pack(folder, seq_len=64)

    return made_once(tmp_path_factory, "general_corpus", make)


@pytest.fixture(scope="session")
def rows_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pieces of Python's json package, some longer than a sample, in some 50 samples of 64
    tokens of 512 ids."""

    def make(folder: Path) -> None:
        from data_prep.build import build
        from data_prep.build_options import BuildOptions
        from data_prep.packing.pack import pack

        text = Path(json.decoder.__file__).read_text()
        rows = [text[start : start + 60 + start % 300] for start in range(0, 8000, 200)]
        source = folder.with_suffix(".jsonl")
        source.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
        build(
            BuildOptions(
                inputs=(source,),
                out=folder,
                train_tokenizer="bpe",
                train_vocab_size=512,
                val_frac=0.2,
                num_workers=1,
            )
        )
        pack(folder, seq_len=64)

    return made_once(tmp_path_factory, "rows_corpus", make)


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Qwen3 of 512 ids with weights large enough that its entropies differ well."""

    def make(folder: Path) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            "qwen3",
            vocab_size=512,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            initializer_range=0.3,
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)

    return made_once(tmp_path_factory, "wide_model", make)


@pytest.fixture
def corpus_copy(small_corpus: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


@pytest.fixture
def scored_copy(corpus_copy: Path) -> Path:
    """The same with scores beside it."""
    from tests.training.short_runs import SEQUENCE_TOKENS  # loads the engine, which few files need

    write_scores(
        open_corpus(corpus_copy),
        lambda shard: np.ones(shard.num_tokens),
        name="reference",
        measure="shannon",
        model="a-model",
        seq_len=SEQUENCE_TOKENS,
    )
    return corpus_copy


@pytest.fixture(scope="session")
def finished(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 8 steps on 2 ranks that share each sequence, never stopped, saved at 6 and 8."""
    return _trained(small_corpus, "finished_run", tmp_path_factory)


@pytest.fixture(scope="session")
def saved_run(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a cache of entropies, and a profile of the third and fourth step."""
    changes = {"entropy__source": "cache", "determinism": "strict"}
    changes["profile"] = {"first_step": 3, "num_steps": 2}
    return _trained(small_corpus, "saved_run", tmp_path_factory, **changes)


@pytest.fixture(scope="session")
def exported(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a copy of `finished`, within the copy."""
    from training.checkpoints.export import export_run

    def make(run_dir: Path) -> None:
        shutil.copytree(finished, run_dir)
        export_run(run_dir)

    return made_once(tmp_path_factory, "exported_run", make) / "export"


@pytest.fixture(scope="session")
def adapted(exported: Path, small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 6 steps of a LoRA beside `exported`, with `ema`, saved at 3 and 6."""
    from tests.training.adapter_runs import LORA, SAVED, adapter_recipe, trained

    def make(run_dir: Path) -> None:
        trained(adapter_recipe(small_corpus, exported, run_dir, LORA, **SAVED))

    return made_once(tmp_path_factory, "adapted_run", make)


def _trained(corpus: Path, name: str, factory: pytest.TempPathFactory, **changes: Any) -> Path:
    from tests.distributed import run_ranks  # loads the engine, which few files need
    from tests.training.short_runs import saving_recipe, train_on_rank

    def make(run_dir: Path) -> None:
        run_ranks(train_on_rank, saving_recipe(corpus, run_dir, **changes), world_size=2)

    return made_once(factory, name, make)


@pytest.fixture
def imported_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code of models is imported from a folder of the test's own, and forgotten afterwards.

    Ranks inherit this process's path, but not the folder where transformers keeps such code.
    """
    from transformers import dynamic_module_utils

    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
