"""Measures: ceilings of the device, time of the head, speed and memory of whole steps."""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import cross_entropy

from benchmarks.device_time import median_milliseconds
from benchmarks.gpu_proof.checks import Figures
from benchmarks.step_workload import Bench
from launch.planner.duration import forecast_duration
from launch.planner.forecast import make_run
from launch.planner.memory import peak_moments
from launch.planner.models import find_architecture
from training.entrodrop.head import weighted_linear_cross_entropy
from training.ranks.phase_memory import PHASES


def ceilings(device: str, small: bool) -> Figures:
    """What a product of matrices in bf16, and a copy, reach at most."""
    size = 128 if small else 8192
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    source = torch.empty((1 << 16) if small else (1 << 30), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product, copy = (
        median_milliseconds(work, device, rounds=1 if small else 20) / 1e3
        for work in (lambda: a @ b, lambda: target.copy_(source))
    )
    return {
        "matmul_tflops": 2 * size**3 / product / 1e12,
        "copy_gb_per_second": 2 * source.nbytes / copy / 1e9,
    }


def head_milliseconds(device: str, small: bool) -> Figures:
    """Forward and backward of the head, compared with plain logits."""
    num_tokens, hidden_size, vocab = (32, 16, 300) if small else (4096, 1024, 151_936)
    hidden_ND = torch.randn(num_tokens, hidden_size, device=device).bfloat16().requires_grad_()
    weight_VD = torch.randn(vocab, hidden_size, device=device).bfloat16().requires_grad_()
    targets_N = torch.randint(0, vocab, (num_tokens,), device=device)
    token_weights_N = torch.ones(num_tokens, device=device)

    def ours() -> None:
        weighted_linear_cross_entropy(hidden_ND, weight_VD, targets_N, token_weights_N)[
            0
        ].backward()

    def plain() -> None:
        cross_entropy((hidden_ND @ weight_VD.T).float(), targets_N, reduction="sum").backward()

    found = {}
    for name, work in (("ours", ours), ("plain_logits", plain)):
        found[f"{name}_ms"] = median_milliseconds(work, device, rounds=1 if small else 20)
    return found


def steps(device: str, small: bool) -> Figures:
    """Real steps of a model of the size of Qwen3-0.6B: tokens a second, utilisation, memory.

    TFLOP/s of the model leave out what is computed twice; those of the hardware do not.
    """
    options = argparse.Namespace(
        layers=1 if small else 28,
        hidden=16 if small else 1024,
        vocab=64 if small else 151_936,
        sequence_tokens=16 if small else 4096,
        samples=2 if small else 8,
        micro_samples=1,
        modes=["off", "input_reference", "input_online", "loss_lagged"],
        sp=1,
        ranks=1,
        threads=torch.get_num_threads(),
        one_document=False,
        activation_checkpointing=False,
        deepspeed="ds_configs/zero3_whole.json",
    )
    bench = Bench(options, options.sequence_tokens)
    found: Figures = {}
    for mode, recipe in bench.recipes.items():
        for number in range(1 if small else 3):
            bench.step(mode, number)
        bench.engine.memory.take()
        milliseconds = median_milliseconds(
            lambda mode=mode: bench.step(mode, 2), device, rounds=3, warm_up=0
        )
        duration = forecast_duration(
            recipe,
            find_architecture(recipe),
            micro_steps=bench.stream.num_micro_steps,
            corpus_tokens=None,
            flops_per_second=1.0,
        )
        per_second = recipe.train.global_batch_tokens / milliseconds * 1e3
        found[f"{mode}_tokens_per_second"] = per_second
        found[f"{mode}_hardware_tflops"] = per_second * duration.flops_per_token / 1e12
        model_flops = duration.flops_per_token / duration.passes.hardware * duration.passes.model
        found[f"{mode}_model_tflops"] = per_second * model_flops / 1e12
        if device == "cuda":
            run = make_run(recipe, find_architecture(recipe), world_size=1, on_gpu=True)
            forecast = max(moment.total for moment in peak_moments(run).values())
            allocated_gib = bench.engine.memory.take()[:-1:2]
            found |= {
                f"{mode}_{phase}_gib": gib
                for phase, gib in zip(PHASES, allocated_gib, strict=True)
                if gib
            }
            found[f"{mode}_forecast_to_measured"] = forecast / 2**30 / max(allocated_gib)
    return found
