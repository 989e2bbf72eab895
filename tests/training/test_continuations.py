"""What the model says to a few prompts: as plain transformers, on every layout."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.shards import open_corpus
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import tiny_recipe
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, saving_recipe, train_on_rank
from training.checkpoints.export import export_run
from training.reports.report import write_report
from training.run.continuations import Continuations, read_prompts

PROMPTS = ["import os\n", "def f(x):\n    return", "class A:"]
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def runs(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three steps: of one rank, of two that share each sequence, of two with their own."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    found = {}
    layouts = {"alone": (1, 1), "sequence": (2, 2)} | ({"data": (2, 1)} if WHOLE else {})
    for name, (ranks, sp_size) in layouts.items():
        changes: dict[str, Any] = {
            "train__sequence_parallel_size": sp_size,
            "train__micro_batch_samples": 2,
            "train__stop_after_steps": 3,
            "optimizer": {"lr": 0.01},
            "evaluation": {
                "every_steps": 3,
                "max_samples": 2,
                "prompts": str(prompts),
                "prompt_tokens": NEW_TOKENS,
            },
        }
        recipe = saving_recipe(small_corpus, folder / name, **changes)
        run_ranks(train_on_rank, recipe, world_size=ranks)
        found[name] = folder / name
    return found


def said(run_dir: Path) -> dict[int, list[dict[str, str]]]:
    return {row["step"]: row["continuations"] for row in metrics(run_dir, "evaluation")}


def test_continuations_are_the_same_on_every_layout(runs: dict[str, Path]) -> None:
    alone = said(runs["alone"])
    assert list(alone) == [0, 3] and alone[0] != alone[3]
    assert [row["prompt"] for row in alone[3]] == PROMPTS
    assert all(said(run_dir) == alone for run_dir in runs.values())


def test_continuations_are_those_of_plain_transformers(
    runs: dict[str, Path], small_corpus: Path
) -> None:
    export_run(runs["alone"])
    model: Any = AutoModelForCausalLM.from_pretrained(runs["alone"] / "export", dtype=torch.float32)
    corpus = open_corpus(small_corpus)
    prefix = corpus.manifest.special_ids.document_prefix
    for row in said(runs["alone"])[3]:
        ids = [*prefix, *corpus.tokenizer.encode([row["prompt"]])[0].tolist()]
        both = model.generate(
            torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )[0].tolist()
        new = both[len(ids) :]
        eos = corpus.manifest.special_ids.eos
        new = new[: new.index(eos)] if eos in new else new
        assert corpus.tokenizer.decode([*ids, *new]) == row["prompt"] + row["text"]


def test_a_report_shows_them_as_they_are(runs: dict[str, Path], tmp_path: Path) -> None:
    page = write_report([runs["alone"]], tmp_path).read_text(encoding="utf-8")
    for step, rows in said(runs["alone"]).items():
        for row in rows:
            assert html.escape(f"step {step}\n{row['prompt']}▸{row['text']}") in page


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.txt", None, "absent.txt: No such file or directory"),
        ("empty.txt", "\n \n", "is empty; write a prompt into each line"),
        ("a.jsonl", '{"text": "x"}\n', 'expected {"prompt": "..."}, found {"text": "x"}'),
        ("a.jsonl", "words\n", 'expected {"prompt": "..."}, found words'),
    ],
)
def test_a_file_without_prompts_is_refused(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        read_prompts(tmp_path / name)
    assert "evaluation.prompts: " in str(caught.value) and message in str(caught.value)


def test_a_prompt_of_json_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes('{"prompt": "a\u2028b"}\r\n{"prompt": "c"}'.encode())
    assert read_prompts(tmp_path / "a.jsonl") == ["a\u2028b", "c"]


def test_more_prompts_than_a_micro_batch_holds_are_refused(
    tmp_path: Path, small_corpus: Path
) -> None:
    path = tmp_path / "prompts.txt"
    corpus = open_corpus(small_corpus)

    def opened(num_prompts: int, **changes: Any) -> Continuations | None:
        path.write_text("import os\n" * num_prompts)
        data = {"corpus": str(small_corpus), "sequence_tokens": SEQUENCE_TOKENS}
        evaluation = {"prompts": str(path), "every_steps": 3, "prompt_tokens": 20} | changes
        return Continuations.open(tiny_recipe(data=data, evaluation=evaluation), corpus)

    found = opened(2)
    assert found is not None
    assert found.places == [(0, 0), (0, len(found.ids[0]) + 20)]
    with pytest.raises(ValueError, match=r"40 prompts, each with evaluation\.prompt_tokens 20"):
        opened(40)
    with pytest.raises(ValueError, match=r"a micro-batch has . x 64: take fewer or shorter"):
        opened(1, prompt_tokens=64)
