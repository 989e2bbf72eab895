"""What a resume must find unchanged, and the message when something changed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from pydantic.fields import FieldInfo
from transformers import AutoConfig, PretrainedConfig

from data_prep.shards import PackIndex, Scores
from training.config.recipe import Recipe
from training.config.renamed import with_list
from training.config.sections import Model
from training.model.special_ids import SPECIAL_KEYS

# keys that may change between a save and its resume: none affects what is learnt
_FREE_TO_CHANGE = (
    *("run_dir", "resume", "determinism", "deepspeed"),
    *("checkpoint", "guard", "watchdog", "trackers", "profile"),
)
_OTHER_WEIGHTS = tuple(f"recipe.adapter.{key}" for key in ("kind", "rank", "targets"))
"""Differences that nobody can accept: what a checkpoint holds has other names or shapes. All three
are among them when only one of the two runs has an adapter."""
BASE_WEIGHTS = "base_weights"
_MEANINGS = {
    BASE_WEIGHTS: " (fingerprint of the weights of model.pretrained)",
    "pack": " (fingerprint of the packed corpus: token ids, tokenizer, packing, weights)",
    "scores": " (fingerprint of entropy.scores)",
    "others.replay": " (fingerprint of the packed corpus of replay.corpus)",
    "others.teacher_scores": " (fingerprint of teacher.scores)",
    "others.replay_teacher_scores": " (fingerprint of teacher.scores, beside replay.corpus)",
}
_ABOUT_THE_FILE = (
    *("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version"),
    *SPECIAL_KEYS,
)
"""Of a model's configuration; the dtype is compared on its own, and special ids, which are the
tokenizer's, decide nothing in training."""
_FREE_IN_TRAIN = ("stop_after_steps", "stop_when", "sequence_parallel_size", "micro_batch_samples")
_FREE_IN_MODEL = (
    *("activation_checkpointing", "activation_offloading", "attention", "kernels"),
    "tiled_mlp",
)
"""Memory and speed; what they change is rounding, as another layout does."""


def run_identity(
    recipe: Recipe,
    pack: PackIndex,
    *,
    dtype: torch.dtype,
    scores: Scores | None = None,
    others: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What a checkpoint and its resume must share to give the numbers of an uninterrupted run.

    The layout is not included: the numbers do not depend on it.

    Args:
        others: fingerprints of what the run uses of other corpora, by what it is for.
    """
    kept = {key: value for key, value in asdict(recipe).items() if key not in _FREE_TO_CHANGE}
    for key in _FREE_IN_TRAIN:
        kept["train"].pop(key)
    kept["model"] = _of_model(kept["model"])
    kept["data"].pop("verify")
    for key in ("every_steps", "prompts", "prompt_tokens"):  # the rest decides what its bands are
        kept["evaluation"].pop(key)
    kept["evaluation"]["best_by"] = recipe.evaluation.decides_best  # the order of sets may, too
    return {
        "recipe": kept,
        "pack": pack.fingerprint,
        "scores": scores and scores.fingerprint,
        "others": dict(others or {}),
        "dtype": str(dtype),
    }


def refuse_differences(
    checkpoint: Path, saved: dict[str, Any], current: dict[str, Any], *, accepted: Collection[str]
) -> None:
    """Compare the identity in a checkpoint with that of this start.

    Args:
        accepted: dotted names, or prefixes of them, of what may differ.

    Raises:
        ValueError: with a line for each difference.
    """
    differences = unaccepted_differences(saved, current, accepted=accepted)
    if differences:
        remedy = f", or resume with the change: --accept-changes {' '.join(differences)}"
        if differences.keys() & set(_OTHER_WEIGHTS):
            remedy = "; weights of another adapter cannot be resumed from"
        raise ValueError(
            f"{checkpoint} belongs to a run with other settings:\n"
            + "\n".join(f"  - {line}" for line in differences.values())
            + "\nSet them back, or choose another run_dir (or resume=never with an empty one)"
            + remedy
        )


def unaccepted_differences(
    saved: dict[str, Any], current: dict[str, Any], *, accepted: Collection[str]
) -> dict[str, str]:
    """By dotted name, a line for each difference that `refuse_differences` refuses."""
    recipe = _with_new_keys(with_list(saved["recipe"]), current["recipe"])
    return {
        name: line
        for name, line in compare_identity(saved | {"recipe": recipe}, current).items()
        if name != BASE_WEIGHTS or BASE_WEIGHTS in current  # known once there is an engine
        if name in _OTHER_WEIGHTS or not _is_accepted(name, accepted)
    }


def _with_new_keys(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """A key that its version did not know has its default, which is what that version did."""
    sections = {
        field.name: asdict(field.default.get_default(call_default_factory=True))
        for field in fields(Recipe)
        if isinstance(field.default, FieldInfo) and field.default.default_factory
    }
    filled = {
        name: {key: defaults[key] for key in defaults.keys() & current[name].keys()} | saved[name]
        for name, defaults in sections.items()
        if name in saved and name in current
    }
    if "model" in saved:  # versions before this compared more of its keys
        filled["model"] = _of_model(saved["model"])
    return saved | filled


def _of_model(section: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in _FREE_IN_MODEL}


def find_other_model(
    kept: Path, config: PretrainedConfig, *, model: Model, accepted: Collection[str]
) -> str | None:
    """What differs between the configuration that a run has kept and the model's of now.

    The weights are the checkpoint's, so another `rope_theta` in the base model's folder, or in a
    newer revision of the hub's, would make another model of them. Keys that only one of the two
    has are those of another version of transformers.

    Args:
        kept: folder of the configuration in the run folder.
        config: of the model as it is now.
        model: whether its code may run.
        accepted: as in `refuse_differences`, for example model.rope_parameters.

    Returns:
        The message for all ranks to raise; None when nothing differs, or nothing was kept.
    """
    if not (kept / "config.json").is_file():
        return None
    before = AutoConfig.from_pretrained(kept, trust_remote_code=model.trust_remote_code).to_dict()
    after = config.to_dict()
    saved, current = (
        {
            key: value
            for key, value in one.items()
            if key in before.keys() & after.keys() and key not in _ABOUT_THE_FILE
        }
        for one in (before, after)
    )
    differences = compare_identity({"model": saved}, {"model": current})
    left = [name for name in differences if not _is_accepted(name, accepted)]
    if not left:
        return None
    return (
        f"the model's configuration is not the one that {kept.parent} was trained with:\n"
        + "\n".join(f"  - {differences[name]}" for name in left)
        + f"\nSet it back, or resume with the change: --accept-changes {' '.join(left)}"
    )


def compare_identity(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, str]:
    """By dotted name, a line with the saved and the current value of each leaf that differs."""
    saved_leaves, current_leaves = dict(_leaves(saved)), dict(_leaves(current))
    names = saved_leaves.keys() | current_leaves.keys()
    return {
        name: f"{name}{_MEANINGS.get(name, '')}: was {saved_leaves.get(name)!r}, "
        f"is {current_leaves.get(name)!r}"
        for name in sorted(names)
        if saved_leaves.get(name) != current_leaves.get(name)
    }


def is_by_another_loss(saved: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether held-out losses of two identities cannot be compared, as after an accepted change."""
    return bool(compare_identity(_about_the_loss(saved), _about_the_loss(current)))


def judged_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the held-out losses in two manifests of checkpoints can be compared."""
    first, second = (manifest.get("identity") for manifest in (one, other))
    return first is None or second is None or not is_by_another_loss(first, second)


def _about_the_loss(identity: dict[str, Any]) -> dict[str, Any]:
    """Which samples its losses are of, and which of them decides."""
    evaluation = {
        key: value for key, value in identity["recipe"]["evaluation"].items() if key != "num_bands"
    }
    others = identity.get("others") or {}
    sets = {name: pack for name, pack in others.items() if name.startswith("sets.")}
    ema = identity["recipe"].get("ema") or {}
    averages = ema if ema.get("decides_best") else None
    return {"evaluation": evaluation, "ema": averages, "pack": identity["pack"], "others": sets}


def _is_accepted(name: str, accepted: Collection[str]) -> bool:
    return any(f"{name}.".startswith(f"{given}.") for given in accepted)


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", list(value) if isinstance(value, tuple) else value))
    return leaves
