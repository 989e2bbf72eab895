"""Standard regularisers to compare the method with or combine it with."""

from __future__ import annotations

from typing import Any, ClassVar

from training.config.dropout import Dropout
from training.config.recipe import Recipe
from training.entrodrop.mask import DropRates, draw_drops
from training.regularisers.base import Regulariser, RunParts, Step, StepDropout
from training.regularisers.drop_sets import (
    drop_lowest,
    gamma_at,
    mean_scale,
    sample_scales_of,
)
from training.regularisers.entropy_source import (
    EntropySource,
    ExcessLoss,
    OnlineProbe,
    ReferenceScores,
)
from training.regularisers.token_dropout import TokenDropout


class RandomTokenDropout(TokenDropout):
    """The baseline: any target drops, whatever its entropy, at EntroDrop's mean rate."""

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        return cls(
            recipe.dropout,
            where=recipe.dropout.where,
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    def choose(self, step: Step) -> StepDropout:
        gamma = gamma_at(self._settings, step.trained_frac)
        if gamma == 0.0:
            return StepDropout()
        rate = gamma * self._settings.quantile
        return StepDropout(
            gamma=gamma,
            rate_asked=rate * mean_scale(self._settings),
            dropped_BP=tuple(
                draw_drops(
                    batch.is_target_token_BP,
                    batch.token_index_BP,
                    rate=rate * sample_scales_of(self._settings, [batch], seed=self._seed),
                    seed=self._seed,
                )
                for batch in step.batches
            ),
        )


class Rho1(TokenDropout):
    """The baseline: only the share of targets with the greatest excess loss stays in the loss.

    Lin et al.: Rho-1: Not All Tokens Are What You Need, 2024.
    """

    def __init__(
        self, settings: Dropout, *, source: EntropySource, share: float, seed: int, vocab_size: int
    ) -> None:
        super().__init__(settings, where="loss", seed=seed, vocab_size=vocab_size)
        self._source, self._share = source, share

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        assert parts.scores is not None  # `open_scores` has refused a corpus without scores
        return cls(
            recipe.dropout,
            source=ExcessLoss(
                OnlineProbe(parts.engine, measure="nll"),
                ReferenceScores(parts.pack, parts.scores, parts.engine.layout),
            ),
            share=recipe.baseline.rho1_share,
            seed=recipe.seed,
            vocab_size=parts.engine.vocab_size,
        )

    def choose(self, step: Step) -> StepDropout:
        return drop_lowest(
            self._source.of_step(step.batches),
            step.batches,
            rates=DropRates(gamma=1.0, q=1.0 - self._share),
            seed=self._seed,
            num_targets=step.num_targets,
        )


class InModel(Regulariser):
    """A regulariser that is a part of model or optimizer, of one number in `baseline`."""

    field: ClassVar[str]
    """Of `ModelRegularisation`, and of `baseline`."""

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        return {cls.field: getattr(recipe.baseline, cls.field)}


class HiddenDropout(InModel):
    """Channels drop after every layer.

    Srivastava et al.: Dropout, 2014; `training/model/layer_dropout.py` draws by counter.
    """

    field = "hidden_dropout"


class MlpDropout(InModel):
    """Inner channels of each MLP drop (arXiv 2510.04071 compares it with masked inputs)."""

    field = "mlp_dropout"


class AttentionOutputDropout(InModel):
    """Channels of what attention adds to the residual stream drop.

    Vaswani et al.: Attention is all you need, 2017, section 5.4 (there behind the MLP, too).
    """

    field = "attention_output_dropout"


class StochasticDepth(InModel):
    """Whole layers are skipped, by sample, later ones more often.

    Huang et al.: Deep networks with stochastic depth, 2016 (arXiv 1603.09382).
    """

    field = "stochastic_depth"


class LabelSmoothing(InModel):
    """A share of each target is spread over the vocabulary, in the head.

    Szegedy et al.: Rethinking the Inception architecture, 2015 (arXiv 1512.00567), section 7.
    """

    field = "label_smoothing"


class WeightDecay(InModel):
    """A stronger decay than the optimizer's own (Loshchilov and Hutter, arXiv 1711.05101)."""

    field = "weight_decay"


class L2SP(InModel):
    """Weights decay towards those of the base, too (`training/model/base_decay.py`).

    Li et al.: Explicit inductive bias for transfer learning, 2018 (arXiv 1802.01483).
    """

    field = "l2_sp"
