"""Training with an adapter: plain peft's numbers on any layout, over resumes, saved alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.grids import WHOLE
from tests.training.adapter_runs import (
    DORA,
    LORA,
    SAVED,
    TAUGHT,
    adapter_recipe,
    plain_steps,
    trained,
)
from tests.training.short_runs import metrics
from training.checkpoints.files import read_state
from training.checkpoints.mixing import load_masters

BOUNDS = {"loss": 1e-5, "objective": 1e-5, "grad_norm": 2e-4}


def test_losses_and_gradients_are_those_of_plain_peft(adapted, exported, small_corpus):
    """On two ranks that share each sequence, with weight decay and clipping."""
    expected, lm = plain_steps(adapter_recipe(small_corpus, exported, adapted, LORA))
    compare(metrics(adapted, "step"), expected)
    weights = load_masters(adapted / "checkpoints" / "step-00000006")
    plain = {
        name.removeprefix("base_model.model."): weight
        for name, weight in lm.named_parameters()
        if weight.requires_grad
    }
    assert weights.keys() == plain.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, plain[name].detach(), rtol=1e-3, atol=1e-4)


def compare(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    for row, plain in zip(rows, expected, strict=True):
        for key, bound in BOUNDS.items():
            assert row[key] == pytest.approx(plain[key], rel=bound), key


def test_a_base_that_teaches_is_the_adapter_switched_off(exported, small_corpus, tmp_path):
    """DoRA, on three of the layers, against plain peft with a second pass."""
    recipe = adapter_recipe(small_corpus, exported, tmp_path / "run", DORA, **TAUGHT)
    expected, _ = plain_steps(recipe)
    assert expected[-1]["objective"] != pytest.approx(expected[-1]["loss"], rel=1e-3)
    compare(trained(recipe), expected)


@pytest.mark.parametrize(
    ("world_size", "sp_size", "rows"), [(2, 2, 8), (1, 1, 8), *([(4, 2, 2)] if WHOLE else [])]
)
def test_a_resume_goes_on_as_if_never_stopped(
    adapted, exported, small_corpus, tmp_path, world_size, sp_size, rows
):
    """On as many ranks bit for bit; resharded within rounding."""
    run_dir = Path(shutil.copytree(adapted, tmp_path / "run"))
    shutil.rmtree(run_dir / "checkpoints" / "step-00000006")
    layout = {"train__sequence_parallel_size": sp_size, "train__micro_batch_samples": rows}
    recipe = adapter_recipe(small_corpus, exported, run_dir, LORA, **SAVED, **layout)
    found, expected = trained(recipe, world_size=world_size), metrics(adapted, "step")
    evaluations = metrics(run_dir, "evaluation"), metrics(adapted, "evaluation")
    if world_size == 2:
        assert found == expected
        assert evaluations[0] == evaluations[1]
    compare(found, expected)
    for row, before in zip(*evaluations, strict=True):
        assert row["ema_loss"] == pytest.approx(before["ema_loss"], rel=1e-6)


def test_a_checkpoint_holds_what_is_trained(adapted):
    """Master weight, two moments and the average of each; nothing of the base."""
    folder = adapted / "checkpoints" / "step-00000006"
    num_trained = sum(weight.numel() for weight in load_masters(folder).values())
    files = [*(folder / "zero3").glob("*.pt"), *(folder / "ema").glob("*.pt")]
    tensors = [leaf for file in files for leaf in tree_leaves(read_state(file))]
    num_numbers = sum(leaf.numel() for leaf in tensors if isinstance(leaf, torch.Tensor))
    assert num_trained == 1120
    assert 4 * num_trained <= num_numbers < 4 * num_trained + 100
