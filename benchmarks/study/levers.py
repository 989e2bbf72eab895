"""The arms of the second round: what lowers the best loss, not only the last one.

Plain training searches its learning rate for its own best loss; all others take the rate that it
chose and search a setting of their own, with as many tries.
"""

from __future__ import annotations

from typing import Any

from benchmarks.study.arm import GENERAL, Arm, Overrides, tries

_PLAIN = ("plain",)
_NONE = {"regulariser": "none"}
_REPLAY = {"replay.corpus": GENERAL}
_EMA_TEACHER = {"teacher.kind": "ema", "teacher.weight": 0.5}
_HALF_LIVES = tries("ema.half_life_epochs", 2.0, 1.0, 0.5)
_RATES = tries("dropout.max_rate", 0.3, 0.15, 0.6)
_REFERENCE = {"entropy.source": "reference"}
_LORA = {
    "adapter.kind": "lora",
    "adapter.rank": 16,
    "adapter.alpha": 32,
    "adapter.dropout": 0.0,
    "adapter.targets": "all-linear",
}
# One factor of what it adds starts at zero, so that it moves slowly at first: about ten times the
# rate of all weights is best (Schulman et al.: LoRA Without Regret, 2025). Its steps cost no less
# here: what frozen weights spare, the adapters of such narrow layers take.
_LORA_RATES = tries("lr.adapter", 10.0, 3.0, 30.0)


def _lever(name: str, label: str, fixed: Overrides, settings: Any, **more: Any) -> Arm:
    return Arm(name, label, {**_NONE, **fixed}, settings, like=_PLAIN, **more)


def _joined(name: str, label: str, fixed: Overrides, *like: str, round: int) -> Arm:
    """A teacher beside other levers, each with the setting that it chose alone."""
    return Arm(name, label, fixed, like=(*_PLAIN, *like), passes=4 / 3, round=round)


def _regulariser(name: str, label: str, key: str, *values: float, **more: Any) -> Arm:
    fixed = {"regulariser": name}
    return _lever(f"plus_{name}", label, fixed, tries(f"baseline.{key}", *values), **more)


LEVERS = (
    Arm("plain", "plain", _NONE, tries("lr.searched", 1.0, 0.5, 2.0), is_baseline=True),
    Arm("plain_slow", "plain, a third of its rate", {**_NONE, "lr.slow": 1 / 3}, like=_PLAIN),
    # forgets more, which interpolation with the base then takes back
    Arm("plain_fast", "plain, twice its rate", {**_NONE, "lr.fast": 2.0}, like=_PLAIN),
    _lever("ema_weights", "EMA of weights", {"ema.decides_best": True}, _HALF_LIVES),
    _lever("ema_teacher", "EMA teacher", _EMA_TEACHER, _HALF_LIVES, passes=4 / 3),
    _lever(
        "base_teacher",
        "KL to the base, on the domain",
        {"teacher.kind": "base"},
        tries("teacher.weight", 0.25, 0.5, 0.75),
        passes=4 / 3,
    ),
    _lever("replay", "replay", _REPLAY, tries("replay.share", 0.5, 0.25, 0.1)),
    _lever(
        "replay_teacher",
        "KL to the base, on replay",
        {**_REPLAY, "teacher.kind": "base", "teacher.on": "replay", "teacher.weight": 1.0},
        tries("replay.share", 0.5, 0.25, 0.1),
        passes=4 / 3,
    ),
    _regulariser("l2_sp", "L2-SP", "l2_sp", 3.0, 1.0, 10.0),
    _lever(
        "random",
        "random tokens, input",
        {"regulariser": "random_token_dropout"},
        _RATES,
    ),
    _lever("entrodrop", "EntroDrop", {"regulariser": "entrodrop", **_REFERENCE}, _RATES),
    _lever(
        "entrodrop_soft",
        "EntroDrop, soft",
        {"regulariser": "entrodrop", "dropout.softness": 0.5, **_REFERENCE},
        tries("dropout.max_rate", 0.3, 0.15, 0.5),
    ),
    _joined(
        "replay_ema_teacher",
        "replay + EMA teacher",
        {**_NONE, **_REPLAY, **_EMA_TEACHER},
        "replay",
        "ema_teacher",
        round=1,
    ),
    _joined(
        "entrodrop_with_teacher",
        "EntroDrop + EMA teacher",
        {"regulariser": "entrodrop", **_REFERENCE, **_EMA_TEACHER},
        "ema_teacher",
        "entrodrop",
        round=1,
    ),
    _joined(
        "entrodrop_with_levers",
        "EntroDrop + replay + EMA teacher",
        {"regulariser": "entrodrop", **_REFERENCE, **_REPLAY, **_EMA_TEACHER},
        "replay",
        "ema_teacher",
        "entrodrop",
        round=1,
    ),
    _joined(
        "random_with_levers",
        "random tokens at EntroDrop's rate + replay + EMA teacher",
        {"regulariser": "random_token_dropout", **_REPLAY, **_EMA_TEACHER},
        "replay",
        "ema_teacher",
        "entrodrop",
        round=1,
    ),
    _regulariser("neftune", "NEFTune", "neftune_alpha", 5.0, 2.0, 15.0, round=2),
    _regulariser("weight_decay", "weight decay", "weight_decay", 3.0, 1.0, 10.0, round=2),
    _regulariser("mlp_dropout", "MLP dropout", "mlp_dropout", 0.1, 0.05, 0.2, round=2),
    _regulariser(
        "attention_output_dropout",
        "attention output dropout",
        "attention_output_dropout",
        0.1,
        0.05,
        0.2,
        round=2,
    ),
    _regulariser(
        "stochastic_depth", "stochastic depth", "stochastic_depth", 0.1, 0.05, 0.2, round=2
    ),
    _regulariser(
        "token_replacement", "token replacement", "token_replacement", 0.05, 0.02, 0.15, round=2
    ),
    _lever(
        "mir",
        "MIR",
        {
            "regulariser": "random_token_dropout",
            "extra_regulariser": "mir",
            "dropout.quantile": 1.0,
            "dropout.max_rate": 0.5,
            "dropout.sample_rates": "uniform",
            "dropout.curriculum.kind": "constant",
        },
        tries("baseline.mir_weight", 0.4, 0.2, 0.8),
        passes=2.0,
        round=2,
    ),
    _regulariser("eaft", "EAFT", "eaft_full_nats", 3.0, 1.5, 6.0, round=2),
    _lever(
        "plus_eaft_low",
        "EAFT turned round",
        {"regulariser": "eaft", "baseline.eaft_side": "low"},
        tries("baseline.eaft_full_nats", 3.0, 1.5, 6.0),
        round=2,
    ),
    _lever(
        "plus_entrodrop_loss",
        "EntroDrop, loss",
        {"regulariser": "entrodrop", "dropout.where": "loss", **_REFERENCE},
        _RATES,
        round=2,
    ),
    # the regulariser that gained most alone, beside what gained most of all
    _joined(
        "mlp_dropout_with_teacher",
        "MLP dropout + EMA teacher",
        {"regulariser": "mlp_dropout", **_EMA_TEACHER},
        "ema_teacher",
        "plus_mlp_dropout",
        round=3,
    ),
    _joined(
        "mlp_dropout_with_levers",
        "MLP dropout + replay + EMA teacher",
        {"regulariser": "mlp_dropout", **_REPLAY, **_EMA_TEACHER},
        "replay",
        "ema_teacher",
        "plus_mlp_dropout",
        round=3,
    ),
    _joined(
        "entrodrop_mlp_dropout_with_teacher",
        "EntroDrop + MLP dropout + EMA teacher",
        {"regularisers": ["entrodrop", "mlp_dropout"], **_REFERENCE, **_EMA_TEACHER},
        "ema_teacher",
        "entrodrop",
        "plus_mlp_dropout",
        round=3,
    ),
    _lever("lora", "LoRA", _LORA, _LORA_RATES, round=4),
    _joined(
        "lora_teacher",
        "LoRA + KL to the base, on the domain",
        {**_NONE, **_LORA, "teacher.kind": "base"},
        "base_teacher",
        "lora",
        round=4,
    ),
)
_CORE = (
    "plain",
    "ema_weights",
    "ema_teacher",
    "base_teacher",
    "replay",
    "replay_ema_teacher",
    "random",
    "entrodrop",
    "entrodrop_soft",
    "entrodrop_with_teacher",
    "plus_mlp_dropout",
    "mlp_dropout_with_teacher",
    "entrodrop_mlp_dropout_with_teacher",
)
CORE = tuple(arm for arm in LEVERS if arm.name in _CORE)
"""For further places: those that gained most where all were run, and the project's own."""
_WITHOUT_A_BASE = (
    "plain",
    "ema_weights",
    "ema_teacher",
    "replay",
    "replay_ema_teacher",
    "random",
    "plus_neftune",
    "plus_weight_decay",
    "plus_mlp_dropout",
    "plus_attention_output_dropout",
    "plus_stochastic_depth",
    "plus_token_replacement",
    "mir",
    "mlp_dropout_with_teacher",
)
SCRATCH = (
    *(arm for arm in LEVERS if arm.name in _WITHOUT_A_BASE),
    _lever(
        "entrodrop_cache",
        "EntroDrop, its own entropies",
        {"regulariser": "entrodrop", "entropy.source": "cache"},
        _RATES,
    ),
)
"""From random weights: no base whose entropies or predictions say anything."""
