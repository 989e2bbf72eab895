"""The arms of the first round: EntroDrop, its controls, and the usual regularisers beside it."""

from __future__ import annotations

from typing import Any

from benchmarks.study.arm import Arm, Overrides, tries

_RATES = tries("dropout.max_rate", 0.6, 0.3, 0.9)
"""With quantile 0.5 half of it is the mean rate at the end, for random dropout too."""


def _entrodrop(**changes: Any) -> Overrides:
    """By reference entropies; `dropout__where` sets dropout.where."""
    fixed = {"regulariser": "entrodrop", "entropy.source": "reference"}
    return fixed | {key.replace("__", "."): value for key, value in changes.items()}


def _random(**changes: Any) -> Overrides:
    return {"regulariser": "random_token_dropout"} | {
        key.replace("__", "."): value for key, value in changes.items()
    }


REGULARISERS = (
    Arm("none", "none", {"regulariser": "none"}),
    Arm("random_input", "random tokens, input", _random(dropout__where="input"), _RATES),
    Arm("entrodrop_input", "EntroDrop, input", _entrodrop(dropout__where="input"), _RATES),
    Arm(
        "hidden_dropout",
        "hidden dropout",
        {"regulariser": "hidden_dropout"},
        tries("baseline.hidden_dropout", 0.1, 0.05, 0.2),
    ),
    Arm(
        "random_matched",
        "random tokens, input, at EntroDrop's rate",
        _random(dropout__where="input"),
        like=("entrodrop_input",),
        spared_by="random_input",
    ),
    Arm(
        "high_input",
        "opposite: high entropy, input",
        _entrodrop(dropout__where="input", dropout__side="high"),
        like=("entrodrop_input",),
    ),
    Arm(
        "weight_decay",
        "weight decay",
        {"regulariser": "weight_decay"},
        tries("baseline.weight_decay", 3.0, 1.0, 10.0),
        round=1,
    ),
    Arm("entrodrop_both", "EntroDrop, both", _entrodrop(dropout__where="both"), _RATES, round=1),
    Arm("entrodrop_loss", "EntroDrop, loss", _entrodrop(dropout__where="loss"), _RATES, round=1),
    Arm("random_loss", "random tokens, loss", _random(dropout__where="loss"), _RATES, round=1),
    Arm(
        "neftune",
        "NEFTune",
        {"regulariser": "neftune"},
        tries("baseline.neftune_alpha", 15.0, 5.0, 45.0),
        round=1,
    ),
    Arm(
        "label_smoothing",
        "label smoothing",
        {"regulariser": "label_smoothing"},
        tries("baseline.label_smoothing", 0.1, 0.05, 0.2),
        round=1,
    ),
    Arm(
        "cache_input",
        "EntroDrop, input, cache",
        _entrodrop(dropout__where="input", entropy__source="cache"),
        like=("entrodrop_input",),
        round=2,
    ),
    Arm(
        "online_input",
        "EntroDrop, input, online",
        _entrodrop(dropout__where="input", entropy__source="online"),
        like=("entrodrop_input",),
        round=2,
    ),
    Arm(
        "with_decay",
        "EntroDrop, input + weight decay",
        _entrodrop(dropout__where="input", extra_regulariser="weight_decay"),
        like=("entrodrop_input", "weight_decay"),
        round=2,
    ),
    Arm(
        "with_hidden",
        "EntroDrop, input + hidden dropout",
        _entrodrop(dropout__where="input", extra_regulariser="hidden_dropout"),
        like=("entrodrop_input", "hidden_dropout"),
        round=2,
    ),
    Arm(
        "with_neftune",
        "EntroDrop, input + NEFTune",
        _entrodrop(dropout__where="input", extra_regulariser="neftune"),
        like=("entrodrop_input", "neftune"),
        round=2,
    ),
    Arm(
        "random_with_decay",
        "random tokens, input, at EntroDrop's rate + weight decay",
        _random(dropout__where="input", extra_regulariser="weight_decay"),
        like=("entrodrop_input", "weight_decay"),
        round=3,
    ),
    Arm(
        "random_with_hidden",
        "random tokens, input, at EntroDrop's rate + hidden dropout",
        _random(dropout__where="input", extra_regulariser="hidden_dropout"),
        like=("entrodrop_input", "hidden_dropout"),
        round=3,
    ),
    Arm(
        "random_with_neftune",
        "random tokens, input, at EntroDrop's rate + NEFTune",
        _random(dropout__where="input", extra_regulariser="neftune"),
        like=("entrodrop_input", "neftune"),
        round=3,
    ),
    Arm(
        "corpus_input",
        "EntroDrop, input, threshold of the corpus",
        _entrodrop(dropout__where="input", entropy__scope="corpus"),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "constant_input",
        "EntroDrop, input, no curriculum",
        _entrodrop(dropout__where="input", dropout__curriculum__kind="constant"),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "constant_random",
        "random tokens, input, no curriculum",
        _random(dropout__where="input", dropout__curriculum__kind="constant"),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "half_guided",
        "EntroDrop, input, guidance 0.5",
        _entrodrop(dropout__where="input", dropout__guidance=0.5),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "half_guided_high",
        "opposite: high entropy, input, guidance 0.5",
        _entrodrop(dropout__where="input", dropout__guidance=0.5, dropout__side="high"),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "mean_input",
        "EntroDrop, input, replaced by the mean",
        _entrodrop(dropout__where="input", dropout__replace="mean"),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "quarter_input",
        "EntroDrop, input, q 0.25",
        _entrodrop(dropout__where="input", dropout__quantile=0.25),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "most_input",
        "EntroDrop, input, q 0.75",
        _entrodrop(dropout__where="input", dropout__quantile=0.75),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "random_most",
        "random tokens, input, at the rate of q 0.75",
        _random(dropout__where="input", dropout__quantile=0.75),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "random_quarter",
        "random tokens, input, at the rate of q 0.25",
        _random(dropout__where="input", dropout__quantile=0.25),
        like=("entrodrop_input",),
        round=3,
    ),
    Arm(
        "random_both",
        "random tokens, both, at EntroDrop's rate",
        _random(dropout__where="both"),
        like=("entrodrop_both",),
        round=3,
    ),
    Arm(
        "random_loss_matched",
        "random tokens, loss, at EntroDrop's rate",
        _random(dropout__where="loss"),
        like=("entrodrop_loss",),
        spared_by="random_loss",
        round=3,
    ),
)
