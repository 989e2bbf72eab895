"""Benchmarks through lm-evaluation-harness, offline, against plain transformers by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_prep.shards import open_corpus
from tests.training.plain_model import NUM_NEW_TOKENS, Plain
from tests.training.task_files import (
    CHOICES,
    PROMPTS,
    evaluate,
    write_choice_task,
    write_pages_task,
    write_task,
)

pytestmark = pytest.mark.slow  # each start imports torch, transformers and the harness


@pytest.fixture(scope="module")
def model(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, large enough to have opinions."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tasks") / "model"
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        max_position_embeddings=128,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(open_corpus(small_corpus).tokenizer_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tasks_dir(model: Path) -> Path:
    """A task of each kind, five documents each: no number that two ranks share evenly."""
    plain, folder = Plain(model), model.parent / "tasks"
    folder.mkdir()
    continued = [plain.continued(prompt) for prompt in PROMPTS]
    said = [text if i % 2 else "something else" for i, text in enumerate(continued)]
    greedy = [
        greedy_document(plain, prompt) if i % 2 else {"text": prompt, "target": "something else"}
        for i, prompt in enumerate(PROMPTS)
    ]
    write_choice_task(folder)
    write_task(
        folder,
        "our_cloze",
        greedy,
        output_type="loglikelihood",
        doc_to_target="{{target}}",
        metrics=["acc", "perplexity"],
    )
    write_pages_task(folder)
    write_task(
        folder,
        "our_answers",
        [{"text": a, "target": b} for a, b in zip(PROMPTS, said, strict=True)],
        output_type="generate_until",
        doc_to_target="{{target}}",
        metrics=["exact_match"],
        generation_kwargs={
            "until": ["\n"],
            "max_gen_toks": NUM_NEW_TOKENS,
            "do_sample": False,
        },
    )
    return folder


def greedy_document(plain: Plain, prompt: str) -> dict[str, str]:
    """The beginning of a prompt, and what the model says next, in the tokens of the whole text."""
    for cut in range(len(prompt), 1, -1):
        said = plain.continued(prompt[:cut])
        for end in range(len(said), 0, -1):
            if plain.score(prompt[:cut], said[:end])[1]:
                return {"text": prompt[:cut], "target": said[:end]}
    raise AssertionError(f"nothing that is said of {prompt!r} has the tokens that were drawn")


OUR_TASKS = "our_choice,our_cloze,our_pages,our_answers"


def results_of(model: Path, tasks_dir: Path, *, num_ranks: int) -> dict[str, Any]:
    out = model.parent / f"on-{num_ranks}.json"
    ended = evaluate(
        *[str(model), "--tasks", OUR_TASKS, "--tasks-dir", str(tasks_dir)],
        *["--out", str(out), "--batch-size", "2"],
        home=model.parent,
        num_ranks=num_ranks,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("our_answers") == 1  # one table, whatever the ranks
    assert json.loads(out.read_text())["num_requests_cut"] == 0
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def on_one(model: Path, tasks_dir: Path) -> dict[str, Any]:
    return results_of(model, tasks_dir, num_ranks=1)


def test_every_kind_of_task_gives_the_numbers_of_plain_transformers(model, tasks_dir, on_one):
    plain = Plain(model)
    found = on_one["results"]

    picked, picked_by_length = [], []
    for prompt in PROMPTS:
        scores = [plain.score(prompt, choice)[0] for choice in CHOICES]
        by_length = [s / len(choice) for s, choice in zip(scores, CHOICES, strict=True)]
        picked.append(scores.index(max(scores)))
        picked_by_length.append(by_length.index(max(by_length)))
    right = [pick == i % 3 for i, pick in enumerate(picked)]
    right_by_length = [pick == i % 3 for i, pick in enumerate(picked_by_length)]
    assert found["our_choice"]["acc,none"] == pytest.approx(sum(right) / 5)
    assert found["our_choice"]["acc_norm,none"] == pytest.approx(sum(right_by_length) / 5)

    rows = [json.loads(line) for line in (tasks_dir / "our_cloze.jsonl").open()]
    scored = [plain.score(row["text"], row["target"]) for row in rows]
    num_greedy = sum(greedy for _, greedy in scored)
    assert 0 < num_greedy < 5
    assert found["our_cloze"]["acc,none"] == pytest.approx(num_greedy / 5)
    mean = sum(score for score, _ in scored) / 5
    assert found["our_cloze"]["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-4)

    pages = [prompt * 3 for prompt in PROMPTS]
    bits = -sum(plain.score_whole(page) for page in pages) / math.log(2)
    num_bytes = sum(len(page.encode()) for page in pages)
    assert found["our_pages"]["bits_per_byte,none"] == pytest.approx(bits / num_bytes, rel=1e-5)

    rows = [json.loads(line) for line in (tasks_dir / "our_answers.jsonl").open()]
    right = [plain.continued(row["text"]) == row["target"] for row in rows]
    assert 0 < sum(right) < 5
    assert found["our_answers"]["exact_match,none"] == pytest.approx(sum(right) / 5)


def test_two_ranks_find_the_same_numbers_from_the_same_documents(model, tasks_dir, on_one):
    on_two = results_of(model, tasks_dir, num_ranks=2)
    assert on_two["settings"]["num_processes"] == 2
    assert set(on_two["num_documents"].values()) == {5}
    for key in ("task_hashes", "num_documents", "num_fewshot", "task_versions", "versions"):
        assert on_two[key] == on_one[key]
    assert on_two["results"].keys() == on_one["results"].keys()
    for task, row in on_one["results"].items():
        exact = {key: value for key, value in row.items() if "_stderr" not in key}
        found = {key: value for key, value in on_two["results"][task].items() if key in exact}
        assert found == pytest.approx(exact, rel=1e-6)


def test_a_task_without_its_data_is_one_line_and_no_traceback(model, tmp_path):
    task = {"task": "far_away", "dataset_path": "nobody/absent", "test_split": "test"}
    (tmp_path / "far_away.yaml").write_text(yaml.safe_dump(task))
    ended = evaluate(
        *[str(model), "--tasks", "far_away", "--tasks-dir", str(tmp_path)],
        *["--out", str(tmp_path / "out.json")],
        home=model.parent,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "error: task far_away: Couldn't reach 'nobody/absent'" in ended.stderr
    assert "is downloaded" in ended.stderr
    assert not (tmp_path / "out.json").exists()


def test_requests_longer_than_the_model_are_counted_and_told(model, tmp_path):
    """The harness drops their beginning, here the question itself (its issues 1426 and 3421)."""
    texts = ["one name = ", "if not self. " * 90, "for key in " * 90]
    write_task(
        tmp_path,
        "long_cloze",
        [{"text": text, "target": "value"} for text in texts],
        output_type="loglikelihood",
        doc_to_target="{{target}}",
        metrics=["acc"],
    )
    write_task(
        tmp_path,
        "long_answers",
        [{"text": text, "target": "value"} for text in texts],
        output_type="generate_until",
        doc_to_target="{{target}}",
        metrics=["exact_match"],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 5, "do_sample": False},
    )
    out = tmp_path / "out.json"
    ended = evaluate(
        *[str(model), "--tasks", "long_cloze,long_answers", "--tasks-dir", str(tmp_path)],
        *["--out", str(out)],
        home=model.parent,
        num_ranks=2,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(out.read_text())["num_requests_cut"] == 4
    assert "WARNING: 4 requests are longer than the 128 tokens that the model takes" in ended.stderr


def test_a_task_that_generates_more_than_the_model_takes_is_one_sentence(model, tmp_path):
    write_task(
        tmp_path,
        "too_much",
        [{"text": "one", "target": "value"}],
        output_type="generate_until",
        doc_to_target="{{target}}",
        metrics=["exact_match"],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 128, "do_sample": False},
    )
    ended = evaluate(
        *[str(model), "--tasks", "too_much", "--tasks-dir", str(tmp_path)],
        *["--out", str(tmp_path / "out.json")],
        home=model.parent,
    )
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert (
        "error: lm-evaluation-harness: Invalid configuration: requested max tokens" in ended.stderr
    )
