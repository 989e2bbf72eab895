"""Several held-out sets in one run: the same on every layout; forgetting; early stopping."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from launch.verdict import judge
from tests.distributed import run_ranks
from tests.training.refusals import CPU
from tests.training.short_runs import SEQUENCE_TOKENS, metrics, short_recipe, train_on_rank
from training.checkpoints.choice import find_checkpoint
from training.checkpoints.manifest import read_manifest
from training.config.recipe import Recipe
from training.ranks.dist import Layout
from training.ranks.run_state import read_run_state
from training.run.start import check_start

ALONE = Layout(0, 1, 1, CPU)


def sets_of(general: Path) -> dict[str, Any]:
    return {
        "domain": {},
        "general": {"corpus": str(general), "max_samples": 5},
        "html": {"corpus": str(general), "domain": "html", "split": "train", "max_samples": 3},
    }


def recipe_of(corpus: Path, run_dir: Path, general: Path, **changes: Any) -> Recipe:
    evaluation = {"every_steps": 3, "max_samples": 6, "sets": sets_of(general)}
    return short_recipe(corpus, run_dir, **{"evaluation": evaluation, **changes})


@pytest.fixture(scope="module")
def finished(
    small_corpus: Path, general_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """On 2 ranks that share each sequence, never stopped."""
    run_dir = tmp_path_factory.mktemp("sets") / "run"
    recipe = recipe_of(small_corpus, run_dir, general_corpus)
    run_ranks(train_on_rank, recipe, world_size=2)
    return run_dir


def test_every_set_has_its_loss_bands_and_forgetting(finished):
    rows = metrics(finished, "evaluation")
    assert [row["step"] for row in rows] == [0, 3, 6, 8]
    for row in rows:
        assert list(row["sets"]) == ["domain", "general", "html"]
        for name, found in row["sets"].items():
            first = rows[0]["sets"][name]
            assert found["forgetting_nats"] == found["loss"] - first["loss"]
            assert found["num_targets"] == first["num_targets"] > 0
            assert sum(band["num_targets"] for band in found["bands"]) == found["num_targets"]
        assert row["loss"] == row["sets"]["domain"]["loss"]  # the first decides what is best
        assert row["bands"] == row["sets"]["domain"]["bands"]
    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    for name in ("domain", "general", "html"):
        for key in ("loss", "forgetting_nats"):
            shown = [event.value for event in events.Scalars(f"heldout/{name}/{key}")]
            assert shown == pytest.approx([row["sets"][name][key] for row in rows])
        assert len(events.Scalars(f"heldout/{name}/band_4")) == len(rows)


def test_a_run_with_one_set_has_the_numbers_of_a_set_of_the_same_samples(
    finished, small_corpus, tmp_path
):
    """Bit for bit: evaluating more changes nothing that is learnt or measured."""
    run_ranks(train_on_rank, short_recipe(small_corpus, tmp_path / "one"), world_size=2)
    assert metrics(tmp_path / "one", "step") == metrics(finished, "step")
    rows = metrics(tmp_path / "one", "evaluation")
    for row, several in zip(rows, metrics(finished, "evaluation"), strict=True):
        assert "sets" not in row
        assert {**row, "best_by": "domain", "sets": several["sets"]} == several
        assert row["forgetting_nats"] == row["loss"] - rows[0]["loss"]


@pytest.mark.parametrize(("world_size", "sp_size", "rows"), [(1, 1, 4), (4, 2, 4)])
def test_sets_have_the_same_losses_on_every_layout(
    finished, small_corpus, general_corpus, tmp_path, world_size, sp_size, rows
):
    recipe = recipe_of(
        small_corpus,
        tmp_path / "run",
        general_corpus,
        train__sequence_parallel_size=sp_size,
        train__micro_batch_samples=rows,
        train__stop_after_steps=3,
    )
    run_ranks(train_on_rank, recipe, world_size=world_size)
    for row, expected in zip(
        metrics(tmp_path / "run", "evaluation"), metrics(finished, "evaluation"), strict=False
    ):
        for name, found in row["sets"].items():
            assert found["num_targets"] == expected["sets"][name]["num_targets"]
            assert found["loss"] == pytest.approx(expected["sets"][name]["loss"], rel=1e-5)


def test_forgetting_and_bands_go_on_after_a_resume(
    finished, small_corpus, general_corpus, tmp_path
):
    for stop in (5, None):
        recipe = recipe_of(
            small_corpus, tmp_path / "run", general_corpus, train__stop_after_steps=stop
        )
        run_ranks(train_on_rank, recipe, world_size=2)
    found = [row for row in metrics(tmp_path / "run", "evaluation") if row["step"] != 5]
    assert found == metrics(finished, "evaluation")


def test_other_samples_of_a_set_on_a_resume_are_refused(
    finished, small_corpus, general_corpus, tmp_path
):
    other = {"general": {"corpus": str(general_corpus)}, "domain": {}}
    evaluation = {"every_steps": 3, "max_samples": 6, "sets": other}
    recipe = recipe_of(small_corpus, finished, general_corpus, evaluation=evaluation)
    with pytest.raises(AssertionError, match=r"evaluation\.sets\.general\.max_samples: was 5, is"):
        run_ranks(train_on_rank, recipe, world_size=2)


def test_another_order_of_sets_that_changes_what_is_best_is_refused(
    finished, small_corpus, general_corpus
):
    turned = dict(reversed(sets_of(general_corpus).items()))
    evaluation = {"every_steps": 3, "max_samples": 6, "sets": turned}
    recipe = recipe_of(small_corpus, finished, general_corpus, evaluation=evaluation)
    with pytest.raises(AssertionError, match=r"evaluation\.best_by: was 'domain', is 'html'"):
        run_ranks(train_on_rank, recipe, world_size=2)


def message_of(corpus: Path, general: Path, **general_set: Any) -> str:
    sets = {"domain": {}, "general": {"corpus": str(general), **general_set}}
    with pytest.raises(ValueError) as caught:
        check_start(
            short_recipe(
                corpus,
                Path("unused"),
                train__sequence_parallel_size=1,
                evaluation={"sets": sets},
            ),
            ALONE,
        )
    return str(caught.value)


def test_a_set_that_cannot_be_evaluated_is_refused_by_its_name(
    small_corpus, general_corpus, tmp_path
):
    key = "evaluation.sets.general"
    assert f"{key}.corpus: " in message_of(small_corpus, tmp_path / "absent")
    assert f"{key}.domain: no domain 'htm' in" in (
        said := message_of(small_corpus, general_corpus, domain="htm")
    )
    assert said.endswith("did you mean html?")
    text = tmp_path / "text.txt"
    text.write_text("Other words. " * 200)
    options = {"inputs": (text,), "num_workers": 1, "val_frac": 0.0}
    own = str(small_corpus / "tokenizer")
    build(BuildOptions(out=tmp_path / "unpacked", tokenizer=own, **options))
    assert f"{key}.corpus: {tmp_path / 'unpacked'}" in (
        said := message_of(small_corpus, tmp_path / "unpacked")
    )
    assert f"not packed for {SEQUENCE_TOKENS} tokens; run `python -m data_prep pack" in said
    pack(tmp_path / "unpacked", seq_len=SEQUENCE_TOKENS)
    assert "the validation split is empty" in message_of(small_corpus, tmp_path / "unpacked")
    build(
        BuildOptions(
            out=tmp_path / "foreign", train_tokenizer="bpe", train_vocab_size=300, **options
        )
    )
    assert "has another tokenizer" in (said := message_of(small_corpus, tmp_path / "foreign"))
    assert f"build it with --tokenizer {small_corpus / 'tokenizer'}" in said


# --- early stopping ---


def worsening(corpus: Path, run_dir: Path, general: Path, **changes: Any) -> Recipe:
    """Its general loss rises from some step on: a constant rate that is far too high."""
    changes = {
        "optimizer__lr": 0.6,
        "schedule": {"kind": "constant", "warmup_frac": 0.0},
        "train__max_steps": 30,
        "train__stop_when": {"worse_for": 2},
        "evaluation__every_steps": 1,
        "evaluation__sets": dict([*sets_of(general).items()][:2]),
        "evaluation__best_by": "general",
        **changes,
    }
    return recipe_of(corpus, run_dir, general, **changes)


@pytest.fixture(scope="module")
def ended(
    small_corpus: Path, general_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run_dir = tmp_path_factory.mktemp("ended") / "run"
    recipe = worsening(small_corpus, run_dir, general_corpus)
    run_ranks(train_on_rank, recipe, world_size=2)
    return run_dir


def test_a_run_without_a_new_best_ends_complete_and_keeps_the_best(ended):
    rows = metrics(ended, "evaluation")
    losses = {row["step"]: row["sets"]["general"]["loss"] for row in rows if row["step"]}
    best = min(losses, key=lambda step: losses[step])
    last = max(losses)
    assert last == best + 2 < 30
    state = read_run_state(ended)
    assert (state.state, state.step, state.total_steps) == ("complete", last, 30)
    assert state.reason is not None
    assert state.reason.startswith("train.stop_when: held-out loss has no new best in 2 evalu")
    assert state.reason.endswith(f"the best is {losses[best]:.4f} at step {best}")
    sentence = judge(state, ended, starts_before=0)[1]
    assert sentence == f"Complete: step {last} of 30, in {ended} ({state.reason})."
    assert find_checkpoint(ended, "best").name == f"step-{best:08d}"
    assert read_manifest(find_checkpoint(ended, "best"))["heldout_loss"] == losses[best]
    assert find_checkpoint(ended, "last").name == f"step-{last:08d}"


def said_in_training(recipe: Recipe) -> str:
    with redirect_stderr(io.StringIO()) as said:
        train_on_rank(recipe)
    return said.getvalue()


def test_a_resume_of_a_run_that_is_over_trains_no_step(
    ended, small_corpus, general_corpus, tmp_path
):
    run_dir = tmp_path / "run"
    shutil.copytree(ended, run_dir)
    before = (run_dir / "metrics.jsonl").read_bytes()
    recipe = worsening(small_corpus, run_dir, general_corpus)
    said = run_ranks(said_in_training, recipe, world_size=2)
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    state = read_run_state(run_dir)
    assert (state.state, state.step) == ("complete", read_run_state(ended).step)
    told = f"complete after step {state.step} of 30: {state.reason}\n"
    assert [text.count(told) for text in said] == [1, 0]
    longer = worsening(small_corpus, run_dir, general_corpus, train__stop_when={"worse_for": 3})
    run_ranks(train_on_rank, longer, world_size=2)  # the rule may change: no loss depends on it
    assert read_run_state(run_dir).step >= state.step + 1


def test_a_run_that_was_stopped_often_ends_where_one_that_was_not_does(
    ended, small_corpus, general_corpus, tmp_path
):
    for stop in (3, None):
        recipe = worsening(
            small_corpus, tmp_path / "run", general_corpus, train__stop_after_steps=stop
        )
        run_ranks(train_on_rank, recipe, world_size=2)
    assert metrics(tmp_path / "run", "step") == metrics(ended, "step")
    assert metrics(tmp_path / "run", "evaluation") == metrics(ended, "evaluation")
    assert read_run_state(tmp_path / "run").reason == read_run_state(ended).reason


def test_an_evaluation_made_after_the_save_of_its_step_counts_once(
    ended, small_corpus, general_corpus, tmp_path
):
    """As after a stop: a checkpoint without its evaluation, which metrics.jsonl has or has not."""
    from common.checksum import FileRecord
    from training.checkpoints.manifest import MANIFEST, write_manifest

    begun = tmp_path / "run"
    recipe = worsening(small_corpus, begun, general_corpus, train__stop_after_steps=1)
    run_ranks(train_on_rank, recipe, world_size=2)
    for has_row in (True, False):
        run_dir = Path(shutil.copytree(begun, tmp_path / f"run-{has_row}"))
        folder = run_dir / "checkpoints" / "step-00000001"
        content = read_manifest(folder)
        files = {name: FileRecord(**record) for name, record in content.pop("files").items()}
        (folder / MANIFEST).unlink()
        unjudged = {"heldout_loss": None, "evaluated_step": 0, "best_loss": None, "best_step": None}
        write_manifest(folder, content | unjudged, files=files)
        if not has_row:
            path = run_dir / "metrics.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            kept = [r for r in rows if (r["kind"], r["step"]) != ("evaluation", 1)]
            path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        run_ranks(train_on_rank, worsening(small_corpus, run_dir, general_corpus), world_size=2)
        assert metrics(run_dir, "evaluation") == metrics(ended, "evaluation")
        assert read_run_state(run_dir).reason == read_run_state(ended).reason
