"""Scores of a corpus: those of a plain forward pass, on any layout, after any kill."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from data_prep.ledger import Split
from data_prep.shards import Corpus, open_corpus
from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.warm_python import warm_python
from training.run import score
from training.run.score import ScoreOptions, score_corpus

ROOT = Path(__file__).parents[2]
SEQ_LEN = 64
SPLITS: tuple[Split, ...] = ("train", "val")


@pytest.fixture
def corpus(rows_corpus: Path, tmp_path: Path) -> Corpus:
    return open_corpus(shutil.copytree(rows_corpus, tmp_path / "corpus"))


def options_for(corpus: Corpus, model: Path, **changes: object) -> ScoreOptions:
    values = {
        "corpus": corpus.folder,
        "model": str(model),
        "sequence_tokens": SEQ_LEN,
        "deepspeed": "ds_configs/zero3_fp32.json",
        **changes,
    }
    return ScoreOptions(**values)  # type: ignore[arg-type]


def all_scores(corpus: Corpus, name: str = "reference") -> list[np.ndarray]:
    scores = corpus.open_scores(name)
    return [
        scores.document(i, split)
        for split in ("train", "val")
        for i in range(corpus.num_documents(split))
    ]


def all_likeliest(corpus: Corpus, name: str = "reference") -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probabilities of every token of the train split, `[tokens, K]`, `[tokens, J]`."""
    scores, index = corpus.open_scores(name), corpus.open_pack(SEQ_LEN)
    found = [scores.top_k(index, i, count=SEQ_LEN) for i in range(index.num_samples())]
    ids, log_probs = (np.concatenate(column) for column in zip(*found, strict=True))
    return ids, log_probs.astype(np.float32)


@torch.no_grad()
def plain_predictions(corpus: Corpus, model: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Of every third sample, by transformers alone, piece by piece.

    Returns:
        Split (0 for train), sample, place there, document, place there and id of each token,
        `[N, 6]`; log-probabilities at its position, fp64 `[N, V]`.
    """
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    index, tokens, found = corpus.open_pack(SEQ_LEN), [], []
    for number, split in enumerate(("train", "val")):
        for i in range(0, index.num_samples(split), 3):
            at = 0
            for document, start, length in index.pieces(i, split).tolist():
                ids = corpus.document(document, split)[start : start + length].astype(np.int64)
                logits = lm(torch.from_numpy(ids)[None]).logits[0]
                found.append(logits[:-1].double().log_softmax(-1))
                tokens += [
                    (number, i, at + t, document, start + t, ids[t]) for t in range(1, length)
                ]
                at += length
    return np.array(tokens), torch.cat(found)


def test_scores_are_those_of_a_plain_forward_pass_at_their_own_token(
    corpus: Corpus, wide_model: Path
) -> None:
    tokens, log_probs = plain_predictions(corpus, wide_model)
    assert len(tokens) > 300
    expected = {
        "shannon": -(log_probs.exp() * log_probs).sum(dim=1),
        "nll": -log_probs[torch.arange(len(tokens)), tokens[:, 5]],
    }
    for measure, values in expected.items():
        top_k = 5 if measure == "shannon" else None
        options = options_for(corpus, wide_model, name=measure, measure=measure, top_k=top_k)
        run_ranks(score_corpus, options, world_size=1)
        scores = corpus.open_scores(measure)
        found = [scores.document(d, SPLITS[n])[t] for n, _, _, d, t, _ in tokens.tolist()]
        assert np.allclose(found, values, rtol=2e-3, atol=1e-3)  # float16
        assert all(math.isnan(document[0]) for document in all_scores(corpus, measure))
    likeliest = log_probs.topk(5)
    scores, index = corpus.open_scores("shannon"), corpus.open_pack(SEQ_LEN)
    whole = {(n, i): scores.top_k(index, i, SPLITS[n], count=SEQ_LEN) for n, i in tokens[:, :2]}
    kept = np.stack([whole[n, i].log_probs[at] for n, i, at, *_ in tokens]).astype(np.float64)
    ids = np.stack([whole[n, i].ids[at] for n, i, at, *_ in tokens])
    assert np.allclose(kept[:, :5], likeliest.values, rtol=2e-3, atol=1e-3)
    assert (ids == likeliest.indices.numpy()).mean() > 0.99  # neighbours may change places
    rest = 1.0 - likeliest.values.exp().sum(dim=1)
    assert np.allclose(np.exp(kept[:, 5]), rest, rtol=5e-3, atol=1e-5)


def test_scores_do_not_depend_on_the_layout(corpus: Corpus, wide_model: Path) -> None:
    kept, likeliest = [], []
    more = [(2, 1, 2), (2, 2, 1)] if WHOLE else []
    for world_size, sp_size, rows in ((1, 1, 3), (4, 2, 2), *more):
        changes = {"sequence_parallel_size": sp_size, "micro_batch_samples": rows, "top_k": 4}
        options = options_for(corpus, wide_model, overwrite=True, **changes)
        run_ranks(score_corpus, options, world_size=world_size)
        kept.append(np.concatenate(all_scores(corpus)))
        likeliest.append(all_likeliest(corpus))
    expected_ids, expected_log_probs = likeliest[0]
    for ids, log_probs in likeliest[1:]:
        assert np.allclose(log_probs, expected_log_probs, atol=1e-2, equal_nan=True)
        assert (ids == expected_ids).mean() > 0.99  # neighbours may change places
    for found in kept[1:]:
        assert np.array_equal(np.isnan(found), np.isnan(kept[0]))
        # A last bit of float16 may differ where fp32 rounds to the other side.
        assert np.nanmax(np.abs(found - kept[0])) < 5e-3
        has_score = ~np.isnan(found)
        assert (found == kept[0])[has_score].mean() > 0.99


def test_scores_that_are_there_already_are_refused_on_every_rank(
    corpus: Corpus, wide_model: Path
) -> None:
    """The first rank alone opens the files; the others must not wait for it for ever."""
    options = options_for(corpus, wide_model)
    run_ranks(score_corpus, options, world_size=1)
    messages = run_ranks(message_of_refusal, options, world_size=2, timeout_seconds=60)
    assert len(messages) == 2
    assert all("already exists" in message for message in messages)


def message_of_refusal(options: ScoreOptions) -> str:
    try:
        score_corpus(options)
    except ValueError as error:
        return str(error)
    raise AssertionError("not refused")


def score_until(options: ScoreOptions, last_step: int) -> None:
    """Stop as a kill would, after a commit and some more."""
    score.COMMIT_SECONDS = 0.0
    keep, num_kept = score._keep, 0

    def keep_some(*args: object, **kwargs: object) -> str | None:
        nonlocal num_kept
        num_kept += 1
        if num_kept == last_step:
            os._exit(9)
        return keep(*args, **kwargs)  # type: ignore[arg-type]

    score._keep = keep_some
    score_corpus(options)


def test_a_killed_start_is_gone_on_with(
    corpus: Corpus, wide_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = options_for(corpus, wide_model, name="whole", top_k=4)
    run_ranks(score_corpus, whole, world_size=1)
    options = options_for(corpus, wide_model, micro_batch_samples=2, top_k=4)
    with pytest.raises(AssertionError):
        run_ranks(score_until, options, 9, world_size=1)
    with pytest.raises(ValueError, match="no scores 'reference'; there are: whole"):
        corpus.open_scores("reference")
    position = corpus.folder / ".scores-reference.building" / "position.json"
    assert '"num_done": 16' in position.read_text()
    run_ranks(score_corpus, options, world_size=2)  # on other ranks than before
    found, expected = (np.concatenate(all_scores(corpus, n)) for n in ("reference", "whole"))
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected)) < 5e-3
    of_both = [all_likeliest(corpus, name)[1] for name in ("reference", "whole")]
    assert np.allclose(*of_both, atol=1e-2, equal_nan=True)
    assert not position.exists()


def test_the_verb_scores_under_a_launcher_and_refuses_what_does_not_fit(
    corpus: Corpus, wide_model: Path
) -> None:
    def run(*flags: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        command = [warm_python(), *(launcher if ranks > 1 else []), "-m", "data_prep", "score"]
        return subprocess.run(
            [*command, str(corpus.folder), "--model", str(wide_model), *flags],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        )

    flags = ("--seq-len", str(SEQ_LEN), "--deepspeed", "ds_configs/zero3_fp32.json")
    done = run(*flags, "--micro-batch-samples", "4", ranks=2)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "scores     " in done.stdout
    assert len(all_scores(corpus)) > 3
    for wrong, message in (
        (flags, "already exists"),
        ((*flags, "--name", "../x"), "--name '../x': use at most 64 letters, digits"),
        (("--seq-len", "63"), "not packed for 63 tokens; run"),
    ):
        refused = run(*wrong)
        assert refused.returncode == 2
        assert message in refused.stderr.splitlines()[-1]


def test_a_model_that_gives_no_number_is_no_source_of_scores(
    corpus: Corpus, wide_model: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(wide_model, tmp_path / "broken")
    lm = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        lm.base_model.norm.weight.fill_(3e38)  # finite, but its logits are not
    lm.save_pretrained(broken)
    with pytest.raises(AssertionError, match="the model gives NaN or infinity in samples 0 and on"):
        run_ranks(score_corpus, options_for(corpus, broken), world_size=2)


def test_a_vocabulary_that_is_too_small_is_refused(
    corpus: Corpus, tmp_path: Path, write_small_model: Callable[[Path], Path]
) -> None:
    options = options_for(corpus, write_small_model(tmp_path / "small"))
    with pytest.raises(AssertionError, match="smaller than the corpus's"):
        run_ranks(score_corpus, options, world_size=1)
    assert not list(corpus.folder.glob("*scores*"))


@pytest.fixture
def write_small_model() -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        AutoConfig.for_model("qwen3", vocab_size=100).save_pretrained(folder)
        return folder

    return write
