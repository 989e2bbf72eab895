"""Non-finite losses, and spikes: named, skipped, rolled back or the end, on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import run_ranks
from tests.training.short_runs import metrics, saving_recipe, train_on_rank
from training.config.recipe import Recipe

BAD_STEP = 5  # the sixth
BASE: dict[str, Any] = {
    "train__sequence_parallel_size": 1,
    "evaluation": {"every_steps": None},
    "checkpoint__every_steps": 2,
}


def train_with_bad_batch(
    recipe: Recipe, factor: float, *, once: bool, lasting: bool, accepted: tuple[str, ...] = ()
) -> None:
    """As if one sample of a step had a loss times `factor`; `once`: not when it is run again.

    Args:
        lasting: in every later step too.
        accepted: as `train` takes it.
    """
    import training.run.step as module
    from training.run.run import train

    forward = module.forward_micro_batch
    samples: list[int] = []
    seen = {"step": -1, "calls": 0}
    original = module.train_step

    def train_step(*args: Any, **kwargs: Any) -> Any:
        seen["step"], seen["calls"] = kwargs["step"], 0
        return original(*args, **kwargs)

    def forward_with_fault(engine: Any, batch: Any, regulariser: Any, micro_step: int, *more: Any):
        done = forward(engine, batch, regulariser, micro_step, *more)
        is_bad = seen["step"] == BAD_STEP or (lasting and seen["step"] > BAD_STEP)
        is_here = is_bad and micro_step == 0 and engine.layout.dp_rank == 1
        seen["calls"] += 1
        if not is_here or (once and seen["calls"] > engine.num_micro_steps):
            return done
        samples.append(batch.sample_ids[0])
        nll_BS = done.scored.nll_BS.clone()
        nll_BS[0] *= factor
        scored = done.scored._replace(nll_BS=nll_BS)
        return done._replace(scored=scored, loss_sum=done.loss_sum * factor)

    module.forward_micro_batch = forward_with_fault
    import training.run.loop

    training.run.loop.train_step = train_step  # type: ignore[assignment]
    train(recipe, accepted=accepted)


def run_of(
    corpus: Path,
    run_dir: Path,
    factor: float,
    once: bool = False,
    lasting: bool = False,
    **changes: Any,
) -> Any:
    recipe = saving_recipe(corpus, run_dir, **(BASE | changes))
    run_ranks(train_with_fault, recipe, factor, once, lasting, world_size=2)
    return metrics(run_dir, "step"), metrics(run_dir, "bad_step")


def train_with_fault(recipe: Recipe, factor: float, once: bool, lasting: bool) -> None:
    train_with_bad_batch(recipe, factor, once=once, lasting=lasting)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_skipped_and_named(small_corpus, tmp_path, factor):
    steps, (told,) = run_of(small_corpus, tmp_path / "run", factor)
    assert [row["updated"] for row in steps] == [number != BAD_STEP for number in range(8)]
    assert steps[BAD_STEP]["loss"] is None
    assert all(row["loss"] is not None for row in steps[BAD_STEP + 1 :])
    assert told["bad_step"] == BAD_STEP + 1
    assert "loss is nan" in told["text"]  # infinities meet zeros at positions without a target
    assert "the batch or the weights are at fault" in told["text"]
    assert told["text"].endswith("skipped")
    worst = told["samples"][0]
    assert worst["loss"] is None and worst["documents"]
    assert (
        f"sample {worst['sample']} (domain main; documents {worst['documents'][0]}" in told["text"]
    )


def test_a_fault_that_does_not_come_again_is_the_machines(small_corpus, tmp_path):
    _, (told,) = run_of(small_corpus, tmp_path / "run", float("nan"), once=True)
    assert "the machine is at fault" in told["text"]


def test_a_rollback_leaves_the_batch_out_and_nothing_else(small_corpus, tmp_path):
    """Steps before it are done again from the checkpoint; it then passes without an update."""
    skipped, _ = run_of(small_corpus, tmp_path / "skipped", float("nan"))
    steps, (told,) = run_of(
        small_corpus, tmp_path / "run", float("nan"), guard__on_not_finite="rollback"
    )
    assert "rolled back" in told["text"]
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["updated"] for row in steps] == [number != BAD_STEP for number in range(8)]
    assert [row["loss"] for row in steps] == [row["loss"] for row in skipped]


def train_with_accepted_lr(recipe: Recipe) -> None:
    train_with_bad_batch(
        recipe, float("nan"), once=False, lasting=False, accepted=("recipe.optimizer.lr",)
    )


@pytest.mark.parametrize("save_every", [1, 8], ids=["to_its_own_save", "to_that_of_before"])
def test_a_rollback_after_a_start_on_other_ranks(small_corpus, tmp_path, save_every):
    """One rank saved what two go on with, at an accepted other rate; it goes back to either."""
    changes = {**BASE, "guard__on_not_finite": "rollback"}
    before = saving_recipe(small_corpus, tmp_path / "run", **changes, train__stop_after_steps=4)
    run_ranks(train_on_rank, before, world_size=1)
    changes |= {"checkpoint__every_steps": save_every, "optimizer__lr": 5e-3}
    run_ranks(
        train_with_accepted_lr,
        saving_recipe(small_corpus, tmp_path / "run", **changes),
        world_size=2,
    )
    (told,) = metrics(tmp_path / "run", "bad_step")
    assert (told["action"], told["step"]) == ("rollback", BAD_STEP if save_every == 1 else 4)
    steps = metrics(tmp_path / "run", "step")
    assert [row["step"] for row in steps] == list(range(1, 9))
    assert [row["updated"] for row in steps] == [number != BAD_STEP for number in range(8)]


def test_a_rollback_without_a_checkpoint_says_that_it_skipped(small_corpus, tmp_path):
    _, (told,) = run_of(
        small_corpus,
        tmp_path / "run",
        float("nan"),
        guard__on_not_finite="rollback",
        checkpoint__every_steps=None,
    )
    assert told["action"] == "skip"
    assert told["text"].endswith(": skipped")


def test_a_step_that_was_gone_back_to_is_evaluated_once(small_corpus, tmp_path):
    run_of(
        small_corpus,
        tmp_path / "run",
        float("nan"),
        guard__on_not_finite="rollback",
        evaluation={"every_steps": 2, "max_samples": 6},
    )
    evaluated = [row["step"] for row in metrics(tmp_path / "run", "evaluation")]
    assert evaluated == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_a_fault_that_stays_ends_the_run(small_corpus, tmp_path, action):
    """Also when good steps are done again between two bad ones: else it would go on for ever."""
    changes = {"guard__on_not_finite": action, "guard__max_bad_steps": 2, "train__max_steps": 12}
    with pytest.raises(AssertionError, match="more than 2 in a row"):
        run_of(small_corpus, tmp_path / "run", float("nan"), lasting=True, **changes)


def test_a_run_may_stop_at_the_first_one(small_corpus, tmp_path):
    with pytest.raises(AssertionError, match="guard is set to stop; the checkpoints are untouched"):
        run_of(small_corpus, tmp_path / "run", float("nan"), guard__on_not_finite="stop")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]
