"""With the optimizer's state alone sharded, numbers and runs are what they are under ZeRO-3."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.layouts import ZERO1_FP32
from tests.training.measured_layouts import DROPOUTS, LAYOUTS, MODELS, measure
from tests.training.short_runs import metrics, saving_recipe, train_on_rank
from training.checkpoints.ema_files import read_average
from training.checkpoints.files import read_state
from training.checkpoints.mixing import load_masters
from training.checkpoints.reshard import LEFT_OVER

NAMES = list(DROPOUTS) if WHOLE else ["off", "both_by_nll_random_token", "loss_lagged"]
CASES = [(model, layout) for model in MODELS for layout in LAYOUTS]
if not WHOLE:
    CASES = [("untied_one_kv_head_checkpointed", "dp_2_sp_2_accumulation_2")]

ONE, THREE = "ds_configs/zero1.json", "ds_configs/zero3.json"
ONE_FP32, THREE_FP32 = ZERO1_FP32, "ds_configs/zero3_fp32.json"
LAST = "checkpoints/step-00000008"
CHANGES: dict[str, Any] = {
    # what a loader mixes up between groups, and Adam's steps, would show in losses
    "optimizer__weight_decay": 0.5,
    "train__gradient_clipping": 1.0,
    "ema": {"half_life_steps": 2},
}
# from, to, ranks that go on, ranks that share a sequence, by how much losses may differ
RESUMES = {
    "other_ranks": (ONE, ONE, 4, 2, 3e-4),
    "other_ranks_fp32": (ONE_FP32, ONE_FP32, 4, 2, 1e-6),
    "one_rank_fp32": (ONE_FP32, ONE_FP32, 1, 1, 1e-6),
    "to_stage_3": (ONE, THREE, 2, 2, 3e-4),
    "to_stage_3_fp32": (ONE_FP32, THREE_FP32, 4, 2, 1e-6),
    "from_stage_3": (THREE, ONE, 2, 2, 3e-4),
    "from_stage_3_fp32": (THREE_FP32, ONE_FP32, 2, 2, 1e-6),
}


@pytest.fixture(scope="module")
def under_zero3() -> dict[str, dict[str, Any]]:
    """A step on one process, by model."""
    models = {model for model, _ in CASES}
    return {m: run_ranks(measure, 1, 8, MODELS[m], NAMES, world_size=1)[0] for m in models}


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_any_layout_has_the_numbers_of_zero3(under_zero3, model, layout):
    world_size, *shape = LAYOUTS[layout]
    changed = MODELS[model] | {"deepspeed": ONE_FP32}
    ranks = run_ranks(measure, *shape, changed, NAMES, world_size=world_size)
    for name, expected in under_zero3[model].items():
        dropped = set().union(*(rank[name]["dropped"] for rank in ranks))
        assert dropped == expected["dropped"]
        for rank in ranks:
            for key in ("loss", "objective", "grad_norm", "mean_entropy_nats"):
                assert rank[name]["row"][key] == pytest.approx(expected["row"][key], rel=1e-5)
            for weight, gradient in expected["gradients"].items():
                difference = (rank[name]["gradients"][weight] - gradient).norm() / gradient.norm()
                assert difference < 1e-5, weight


def run(corpus: Path, run_dir: Path, deepspeed: str, *, world_size: int = 2, **more: Any) -> Path:
    recipe = saving_recipe(corpus, run_dir, deepspeed=deepspeed, **CHANGES, **more)
    run_ranks(train_on_rank, recipe, world_size=world_size)
    return run_dir


@pytest.fixture(scope="module")
def whole(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """On 2 ranks that share each sequence, never stopped, saved at 6 and 8."""
    folder = tmp_path_factory.mktemp("zero1")
    files = (ONE, ONE_FP32, THREE, THREE_FP32) if WHOLE else (ONE,)
    return {file: run(small_corpus, folder / Path(file).stem, file) for file in files}


def stopped(whole: Path, run_dir: Path) -> Path:
    """A copy as it was at step 6."""
    shutil.copytree(whole, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    return run_dir


def test_a_resume_on_the_same_ranks_is_exact(whole, small_corpus, tmp_path):
    run_dir = stopped(whole[ONE], tmp_path / "run")
    run(small_corpus, run_dir, ONE)
    for kind in ("step", "evaluation"):
        assert metrics(run_dir, kind) == metrics(whole[ONE], kind)
    for read in (load_masters, read_average):
        found, expected = (
            read(each / "checkpoints/step-00000008") for each in (run_dir, whole[ONE])
        )
        assert found.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize("case", RESUMES if WHOLE else ["other_ranks"])
def test_a_run_goes_on_with_other_ranks_and_at_another_stage(whole, small_corpus, tmp_path, case):
    before, after, world_size, sp_size, bound = RESUMES[case]
    run_dir = stopped(whole[before], tmp_path / "run")
    layout = {"train__sequence_parallel_size": sp_size, "train__micro_batch_samples": 2}
    run(small_corpus, run_dir, after, world_size=world_size, **layout)
    reference = whole[ONE_FP32 if bound < 1e-5 else ONE]
    rows, expected = metrics(run_dir, "step"), metrics(reference, "step")
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=bound)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=50 * bound)
    last, other = metrics(run_dir, "evaluation")[-1], metrics(reference, "evaluation")[-1]
    assert last["ema_loss"] == pytest.approx(other["ema_loss"], rel=bound)
    assert not list((run_dir / "checkpoints").glob(LEFT_OVER))


def test_a_checkpoint_holds_master_and_moments(whole):
    checkpoint = whole[ONE] / LAST
    masters = load_masters(checkpoint)
    num_trained = sum(w.numel() for name, w in masters.items() if name != "lm_head.weight")  # tied
    states = map(read_state, (checkpoint / "zero3").glob("*.pt"))
    tensors = [x for x in tree_leaves(list(states)) if isinstance(x, torch.Tensor)]
    num_numbers = sum(tensor.numel() for tensor in tensors)
    assert 3 * num_trained <= num_numbers < 3 * num_trained + 100
