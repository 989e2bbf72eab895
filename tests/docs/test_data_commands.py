"""Every command of the pages on data runs as it stands, on corpora of the names they use."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.__main__ import main
from data_prep.packing.pack import pack
from data_prep.shards import open_corpus
from tests.docs.markdown import REPO_ROOT, code_blocks
from tests.scores import write_scores
from training.__main__ import main as training_main

PAGES = ("cleaning.md", "inspecting.md", "data_format.md")
MAINS: dict[str, Callable[[list[str]], int]] = {"data_prep": main, "training": training_main}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the corpora data/web, data/notes and data/mix, a benchmark and a recipe."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 300, 400)) for _ in range(120)]
    for name in ("web", "notes"):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": texts[3][:300]}) + "\n")
    flags = "--train-tokenizer bpe --vocab-size 400 --workers 1 --val-frac 0.1"
    for name, inputs in (
        ("web", "web.jsonl"),
        ("notes", "notes.jsonl"),
        ("mix", "notes=notes.jsonl web=web.jsonl"),
    ):
        assert main(shlex.split(f"build --input {inputs} {flags} --out data/{name}")) == 0
    for name in ("web", "notes"):
        pack(tmp_path / "data" / name, seq_len=2048)
    write_scores(
        open_corpus("data/notes"),
        lambda shard: rng.random(shard.num_tokens),
        name="base",
        measure="shannon",
        model="random",
        seq_len=2048,
    )
    (tmp_path / "RECIPE.yaml").write_text(
        "run_dir: runs/notes\n"
        "model: {config: {model_type: qwen3}}\n"
        "data: {corpus: data/notes, sequence_tokens: 2048}\n"
        "train: {global_batch_tokens: 4096, epochs: 4}\n"
    )
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs(page: str, project: Path) -> None:
    blocks = code_blocks(REPO_ROOT / "docs" / page, "bash")
    commands = [line for block in blocks for line in block.splitlines() if line.strip()]
    assert commands
    for command in commands:
        start, module, *arguments = shlex.split(command)[1:]
        assert start == "-m"
        # The corpora here are small: samples 0 to 3 stand for any.
        arguments = ["1" if word == "17" else word for word in arguments]
        assert MAINS[module](arguments) == 0, command


def test_the_reader_of_the_page_reads(project: Path) -> None:
    (example,) = code_blocks(REPO_ROOT / "docs" / "data_format.md", "python")
    found: dict[str, object] = {}
    exec(compile(example, "data_format.md", "exec"), found)
    assert found["sample"].ids.shape == (2048,)  # type: ignore[attr-defined]
