"""Keys of a recipe that cannot go together, each said with what to set instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from training.config.heldout import HeldoutData
from training.config.regularisers import find_no_combination

if TYPE_CHECKING:
    from training.config.recipe import Recipe


def find_conflicts(recipe: Recipe) -> list[str]:
    """A sentence for each; none where the keys fit one another."""
    return [found for rule in _RULES if (found := rule(recipe)) is not None]


def _prompts_have_evaluations(recipe: Recipe) -> str | None:
    if recipe.evaluation.prompts is not None and recipe.evaluation.every_steps is None:
        return (
            "evaluation.prompts are continued at evaluations, and evaluation.every_steps is "
            "null: set it to a number of steps"
        )
    return None


def _each_tracker_once(recipe: Recipe) -> str | None:
    if len(set(recipe.trackers)) < len(recipe.trackers):
        return f"trackers: one is named twice (are {', '.join(recipe.trackers)})"
    return None


def _regularisers_fit(recipe: Recipe) -> str | None:
    return find_no_combination(
        recipe.regularisers, dropout=recipe.dropout, entropy=recipe.entropy, model=recipe.model
    )


def _decays_stop_at_their_end(recipe: Recipe) -> str | None:
    lr, names = recipe.optimizer.lr, recipe.regularisers
    decays = {"optimizer.weight_decay": recipe.optimizer.weight_decay}
    if "weight_decay" in names:
        decays = {"baseline.weight_decay": recipe.baseline.weight_decay}
    if "l2_sp" in names:
        decays["baseline.l2_sp"] = recipe.baseline.l2_sp
    for key, decay in decays.items():
        if lr * decay > 1.0:
            return (
                f"{key}: {decay:g} times optimizer.lr {lr:g} is above 1: each step would go beyond "
                f"what it decays towards; set {key} below {1.0 / lr:g}"
            )
    return None


def _lagged_fits(recipe: Recipe) -> str | None:
    if recipe.entropy.threshold == "lagged" and (
        recipe.entropy.source != "online" or recipe.dropout.where != "loss"
    ):
        return (
            "entropy.threshold: lagged needs entropy.source: online and dropout.where: loss "
            f"(are {recipe.entropy.source} and {recipe.dropout.where}): an input is dropped before "
            "its entropy is known"
        )
    return None


def _side_fits(recipe: Recipe) -> str | None:
    """What has to know the entropies of the step before its draws."""
    entropy, dropout = recipe.entropy, recipe.dropout
    is_high, is_soft = dropout.side == "high", dropout.softness is not None
    if (is_high or is_soft) and (entropy.scope == "corpus" or entropy.threshold == "lagged"):
        key = "dropout.side: high" if is_high else f"dropout.softness: {dropout.softness:g}"
        return (
            f"{key} needs entropy.scope: batch and entropy.threshold: step (are "
            f"{entropy.scope} and {entropy.threshold})"
        )
    return None


def _entropies_fit(recipe: Recipe) -> str | None:
    entropy = recipe.entropy
    if entropy.scope == "corpus" and entropy.source == "online":
        return (
            "entropy.scope: corpus needs entropy.source: reference or cache (is online): "
            "online has no entropies of the whole corpus"
        )
    measures_in_training = entropy.source == "cache" or entropy.threshold == "lagged"
    smooths = "label_smoothing" in recipe.regularisers
    if measures_in_training and entropy.measure == "nll" and smooths:
        return (
            "entropy.measure: nll of the training forward would be that of smoothed targets "
            "(regularisers: label_smoothing); set measure: shannon, or use another one"
        )
    if measures_in_training and entropy.measure == "nll" and recipe.train.z_loss:
        return (
            f"entropy.measure: nll of the training forward would include train.z_loss "
            f"{recipe.train.z_loss}; set measure: shannon, or train.z_loss: 0"
        )
    return None


def _replay_fits(recipe: Recipe) -> str | None:
    if recipe.replay is not None and recipe.entropy.scope == "corpus":
        return (
            "entropy.scope: corpus with replay would take its threshold from all of "
            "replay.corpus, of which the run trains on a share: set entropy.scope: batch, or "
            "replay: null"
        )
    own = os.path.realpath(recipe.data.corpus)
    if recipe.replay is not None and os.path.realpath(recipe.replay.corpus) == own:
        return (
            f"replay.corpus {recipe.replay.corpus} is data.corpus, whose samples would come more "
            "often than train.epochs says: name a corpus of other text"
        )
    return None


def _adapter_has_a_base(recipe: Recipe) -> str | None:
    if recipe.adapter is not None and recipe.model.pretrained is None:
        return (
            "adapter needs weights to train beside: set model.pretrained (model.config begins "
            "with random ones, which would stay random)"
        )
    if recipe.adapter is not None and recipe.adapter.dropout and recipe.model.tiled_mlp:
        return (
            f"adapter.dropout: {recipe.adapter.dropout:g} draws for whole rows, of which "
            "model.tiled_mlp gives the MLP tiles: set one of them to 0 or false"
        )
    if recipe.adapter is not None and "l2_sp" in recipe.regularisers:
        return (
            "regularisers: l2_sp has nothing to hold beside an adapter, whose base is frozen; "
            "weight_decay draws the adapter towards nothing, which is the base"
        )
    return None


def _teacher_fits(recipe: Recipe) -> str | None:
    if recipe.teacher is None:
        return None
    if recipe.teacher.kind == "ema" and recipe.ema is None:
        return "teacher.kind: ema needs the section ema: set ema.half_life_epochs"
    if recipe.teacher.on != "all" and recipe.replay is None:
        return f"teacher.on: {recipe.teacher.on} needs the section replay (is null)"
    if recipe.waits_for_forward:
        key, remedy = "regularisers: eaft", "leave eaft out"
        if recipe.is_lagged:
            key, remedy = "entropy.threshold: lagged", "set entropy.threshold: step"
        return (
            f"teacher with {key} would need the head's logits twice: {remedy}, or set teacher: null"
        )
    return None


def _held_out_is_not_trained_on(recipe: Recipe) -> str | None:
    for name, data in (recipe.evaluation.sets or {}).items():
        if data.split == "train" and (trained := _trained_on(recipe, data)):
            return (
                f"evaluation.sets.{name}.split: train is trained on, as {trained}: take val, "
                "another corpus, or a domain of data.corpus with data.mixture.NAME.epochs: 0"
            )
    return None


def _trained_on(recipe: Recipe, data: HeldoutData) -> str | None:
    """Which key trains on the train split of a set's corpus; None for neither."""
    corpus = os.path.realpath(data.corpus or recipe.data.corpus)
    if recipe.replay is not None and corpus == os.path.realpath(recipe.replay.corpus):
        return "replay.corpus"
    weight = (recipe.data.mixture or {}).get(data.domain or "")
    is_left_out = weight is not None and 0 in (weight.epochs, weight.proportion)
    is_own = corpus == os.path.realpath(recipe.data.corpus)
    return "data.corpus" if is_own and not is_left_out else None


def _best_is_kept(recipe: Recipe) -> str | None:
    if not recipe.saves_best:
        return None
    key = "train.stop_when" if recipe.train.stop_when else "checkpoint.save_best"
    if recipe.evaluation.every_steps is None:
        return f"{key} needs evaluations: set evaluation.every_steps (is null)"
    if recipe.checkpoint.keep_best == 0:
        return f"{key} needs checkpoint.keep_best of at least 1 (is 0)"
    return None


def _batch_divides(recipe: Recipe) -> str | None:
    batch, sample = recipe.train.global_batch_tokens, recipe.data.sequence_tokens
    if batch % sample:
        return (
            f"train.global_batch_tokens {batch} is not a multiple of data.sequence_tokens "
            f"{sample}; nearest that work: {_nearest_multiples(batch, sample)}"
        )
    sp_size = recipe.train.sequence_parallel_size
    if sample % sp_size:
        return (
            f"data.sequence_tokens {sample} is not a multiple of train.sequence_parallel_size "
            f"{sp_size}; nearest sequence_tokens that work: "
            f"{_nearest_multiples(sample, sp_size)}"
        )
    return None


def _nearest_multiples(value: int, unit: int) -> str:
    """Example: of 100 around 250 it is "200, 300", around 50 it is "100"."""
    below = value // unit * unit
    return f"{below}, {below + unit}" if below else f"{unit}"


_RULES: tuple[Callable[[Recipe], str | None], ...] = (
    _prompts_have_evaluations,
    _each_tracker_once,
    _regularisers_fit,
    _decays_stop_at_their_end,
    _lagged_fits,
    _side_fits,
    _entropies_fit,
    _replay_fits,
    _adapter_has_a_base,
    _teacher_fits,
    _held_out_is_not_trained_on,
    _best_is_kept,
    _batch_divides,
)
