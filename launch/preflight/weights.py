"""Check: a tiny model of this family under the JSON's ZeRO has the weights that it should.

`from_config` within `deepspeed.zero.Init` silently leaves them at torch's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig

from launch.preflight.finding import Finding, name_ranks
from launch.preflight.setting import Context, Setting
from launch.preflight.tiny import tiny_config, tiny_recipe
from training.model.causal_lm import build_model
from training.model.ds_config import join_ds_config
from training.model.tiny import plain_model

_MAX_RATIO = 1.25
"""Ratio of standard deviations of matrices of thousands of random numbers: 1.02 by chance."""
_MAX_MOVE = 0.5
"""Likewise of their means, in standard deviations."""


def gathered_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of all weights, whole, on the CPU, named as in the plain model; all ranks call it."""
    weights = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name.removeprefix("lm.")] = parameter.detach().cpu().clone()
    return weights


def measure(context: Context) -> dict[str, Any]:
    """Weights that are not as in a plain model: from scratch by spread, loaded ones bit by bit."""
    torch.manual_seed(context.recipe.seed)
    config = tiny_config(context.recipe, dtype=torch.float32)
    plain = plain_model(context.recipe.model, config)
    expected = {name: weight.detach() for name, weight in plain.named_parameters()}
    loads = context.recipe.model.pretrained is not None
    with TemporaryDirectory(prefix="preflight-") as folder:
        if loads:
            # not by `save_pretrained`, which writes on rank 0 alone
            config.save_pretrained(folder)
            save_file(expected, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        found = _weights_under_zero(context, config, folder if loads else None)
    if found.keys() != expected.keys():
        raise ValueError(f"other weights: {sorted(found.keys() ^ expected.keys())}")
    if loads:
        wrong = [
            f"{name} differs by up to {(found[name] - weight).abs().max():.2g}"
            for name, weight in expected.items()
            if not torch.equal(found[name], weight)
        ]
    else:
        wrong = [
            f"{name} has {_spread(found[name])}, should have {_spread(weight)}"
            for name, weight in expected.items()
            if not is_alike(found[name], weight)
        ]
    matrix = max(expected, key=lambda name: expected[name].numel())
    return {
        "wrong": wrong,
        "num": len(expected),
        "std": float(found[matrix].std()),
        "range": getattr(config, "initializer_range", None),
        "loads": loads,
    }


def _weights_under_zero(
    context: Context, config: PretrainedConfig, folder: str | None
) -> dict[str, Tensor]:
    """From a folder with the plain model's, or newly initialised."""
    with tiny_recipe(context, dtype=torch.float32) as recipe:
        ds_config = join_ds_config(recipe, num_micro_steps=1, has_gpu=context.setting.on_gpu)
        model = recipe.model
        if folder is not None:
            model = replace(model, pretrained=str(Path(folder)), config=None)
        return gathered_weights(
            build_model(model, config, ds_config=ds_config, seed=context.recipe.seed)
        )


def is_alike(found: Tensor, expected: Tensor) -> bool:
    """Norms are constant; others have about the same spread around about the same mean."""
    if expected.numel() == 1:
        return bool(found.isfinite())  # constant or random, it does not say
    wanted, spread = float(expected.std()), float(found.std())
    if wanted == 0:
        return torch.equal(found, expected)
    by_chance = _ratio_by_chance(expected.numel())
    max_ratio, max_move = max(_MAX_RATIO, by_chance), max(_MAX_MOVE, by_chance - 1)
    moved = abs(float(found.mean() - expected.mean()))
    return wanted / max_ratio < spread < wanted * max_ratio and moved < wanted * max_move


def _ratio_by_chance(num: int) -> float:
    """What the spreads of two draws of `num` normal numbers exceed less than once in a million.

    Of many numbers a matter of standard errors, of few one of draws that lie close together: 4
    numbers (the sinks of a tiny model) give 220, 64 give 2.1, 4096 give 1.1.
    """
    return max(math.exp(6 / (num - 1) ** 0.5), 10 ** (7 / (num - 1)))


def _spread(weight: Tensor) -> str:
    return f"mean {float(weight.mean()):.3f} and standard deviation {float(weight.std()):.4f}"


def judge(setting: Setting, measures: Mapping[int, dict[str, Any]]) -> list[Finding]:
    """Any wrong weight on any rank fails."""
    if wrong := tuple(rank for rank, found in measures.items() if found["wrong"]):
        listed = measures[wrong[0]]["wrong"]
        more = f" and {len(listed) - 2} more" if len(listed) > 2 else ""
        return [
            Finding(
                "fail",
                f"under ZeRO {'; '.join(listed[:2])}{more} ({name_ranks(wrong, setting.hosts)})",
                "do not train with these versions of transformers and deepspeed: pip install -r "
                "requirements.txt",
                wrong,
            )
        ]
    first = measures[min(measures)]
    if first["loads"]:
        return [Finding("pass", f"all {first['num']} weights are loaded bit by bit (tiny model)")]
    return [
        Finding(
            "pass",
            f"standard deviation {first['std']:.4f}, initializer_range {first['range']}; "
            f"{first['num']} weights as without ZeRO (tiny model)",
        )
    ]
