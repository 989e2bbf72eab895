"""Recipes of a study's runs: the base model, and adapting it to a slice of a domain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.study.arm import GENERAL
from benchmarks.study.corpora import Folders
from benchmarks.study.settings import Base, Setting, Size
from training.config.load import parse_recipe
from training.config.recipe import Recipe

_MICRO_BATCH_SAMPLES = 16


def base_recipe(setting: Setting, size: Size, folders: Folders) -> Recipe:
    """General text from scratch, without a regulariser of ours."""
    return parse_recipe(
        {
            **_common(setting, size, folders.base(size.name), folders.general),
            "model": {"config": size.config(sequence_tokens=setting.sequence_tokens)},
            "train": _train(
                setting, epochs=size.base_epochs, batch_tokens=setting.base_batch_tokens
            ),
            "regulariser": "none",
            "optimizer": {"lr": size.base_lr},
            "evaluation": {"every_steps": 500, "max_samples": 64},
            "checkpoint": {"every_steps": 500, "keep_last": 1},
        },
        origin="base",
    )


def adapting_recipe(
    setting: Setting,
    size: Base,
    folders: Folders,
    *,
    domain: str,
    seed: int,
    num_samples: int,
    name: str,
    overrides: Mapping[str, Any],
) -> Recipe:
    """Many epochs over a slice, evaluated and saved about once an epoch, and at the end.

    Args:
        num_samples: of the slice.
        name: of the run.
        overrides: what the arm changes, by dotted key.
    """
    steps_an_epoch = max(1, num_samples * setting.sequence_tokens // setting.batch_tokens)
    content: dict[str, Any] = {
        **_common(setting, size, folders.run(name), folders.slice(domain, seed)),
        "seed": seed,
        "model": {"pretrained": str(folders.base(size.name) / "export")},
        "train": _train(setting, epochs=setting.epochs, batch_tokens=setting.batch_tokens),
        "optimizer": {"lr": setting.lr_of_domain[domain]},
        "schedule": {"warmup_frac": 0.05},
        "entropy": {"scores": scores_name(size)},
        "evaluation": {"every_steps": steps_an_epoch},
        # the best by held-out loss and the last are scored when the run ends
        "checkpoint": {"every_steps": steps_an_epoch, "keep_last": 1, "in_background": False},
    }
    for key, value in overrides.items():
        if key.startswith("lr."):
            content["optimizer"]["lr"] *= value
        else:
            _set(content, key.split("."), str(folders.general) if value == GENERAL else value)
    return parse_recipe(content, origin=name)


def scores_name(size: Base) -> str:
    """Of the entropies of slices by the base model of a size."""
    return f"base-{size.name}".replace(".", "_")


def _common(setting: Setting, size: Base, run_dir: Path, corpus: Path) -> dict[str, Any]:
    return {
        "run_dir": str(run_dir),
        "deepspeed": size.deepspeed,
        "data": {
            "corpus": str(corpus),
            "sequence_tokens": setting.sequence_tokens,
            "verify": "sizes",
        },
    }


def _train(setting: Setting, *, epochs: float, batch_tokens: int) -> dict[str, Any]:
    samples_a_step = batch_tokens // setting.sequence_tokens
    return {
        "epochs": epochs,
        "global_batch_tokens": batch_tokens,
        "micro_batch_samples": min(_MICRO_BATCH_SAMPLES, samples_a_step),
    }


def _set(content: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        content = content.setdefault(key, {})
    content[path[-1]] = value
