"""L2-SP under ZeRO-3 against plain torch, over several updates."""

from __future__ import annotations

from typing import Any

import torch

from tests.distributed import run_ranks
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine
from training.model.base_decay import decay_towards_base
from training.model.engine import Engine
from training.ranks.dist import init_layout
from training.regularisers.base import Regulariser
from training.run.step import train_step

LR, DECAY, STRENGTH, STEPS = 0.05, 0.5, 3.0, 3

Weights = dict[str, torch.Tensor]


class MeasuringEngine(Engine):
    """Keeps the whole gradients of each step."""

    gradients: list[Weights]

    def backward_and_step(self, loss_sum: torch.Tensor, *, divisor: float, lr: float) -> Any:
        from deepspeed.utils import safe_get_full_grad

        step = self.ds.step

        def measured_step() -> None:
            if self.ds.is_gradient_accumulation_boundary():
                named = self.model.lm.named_parameters()
                self.gradients.append({name: safe_get_full_grad(w).clone() for name, w in named})
            step()

        self.ds.step = measured_step
        try:
            return super().backward_and_step(loss_sum, divisor=divisor, lr=lr)
        finally:
            self.ds.step = step


def trained(deepspeed: str) -> tuple[Weights, list[Weights], Weights, bool]:
    """Weights before, gradients of each step, weights after, in fp32, and a skipped update."""
    from deepspeed.utils import safe_get_full_fp32_param

    layout = init_layout(sp_size=1)
    recipe = tiny_recipe(
        train__micro_batch_samples=2,
        deepspeed=deepspeed,
        regulariser="none",
        optimizer={"lr": LR, "weight_decay": DECAY},
    )
    built, stream = make_engine(recipe, layout)
    decay_towards_base(
        built.ds.optimizer, built.parts, strength=STRENGTH, dtype=built.model.lm.dtype
    )
    engine = MeasuringEngine(**vars(built))
    object.__setattr__(engine, "gradients", [])

    def weights() -> Weights:
        named = engine.model.lm.named_parameters()
        return {name: safe_get_full_fp32_param(w).clone() for name, w in named}

    before = weights()
    for step in range(STEPS):
        train_step(engine, stream, Regulariser(), step=step % 3, trained_frac=0.0, lr=LR)
    after = weights()
    train_step(engine, stream, Regulariser(), step=0, trained_frac=0.0, lr=LR, skip_update=True)
    stayed = all(torch.equal(w, after[name]) for name, w in weights().items())
    return before, engine.gradients[:STEPS], after, stayed


def by_plain_torch(base: Weights, gradients: list[Weights]) -> Weights:
    found = {name: weight.clone().requires_grad_() for name, weight in base.items()}
    groups = [
        {"params": [w for w in found.values() if w.ndim > 1], "weight_decay": DECAY},
        {"params": [w for w in found.values() if w.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    for gradient in gradients:
        with torch.no_grad():
            for name, weight in found.items():
                weight -= LR * STRENGTH * (weight - base[name])
        for name, weight in found.items():
            weight.grad = gradient[name].float()
        optimizer.step()
    return {name: weight.detach() for name, weight in found.items()}


def on_both_kinds_of_weights() -> list[tuple[Weights, list[Weights], Weights, bool]]:
    return [trained(f"ds_configs/{name}.json") for name in ("zero3_fp32", "zero3", "zero1")]


def test_weights_decay_towards_the_base_as_in_plain_torch():
    for rank in run_ranks(on_both_kinds_of_weights, world_size=2):
        for base, gradients, found, stayed in rank:
            assert stayed  # a step without update moves nothing
            for name, expected in by_plain_torch(base, gradients).items():
                assert not torch.equal(found[name], base[name])
                torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
