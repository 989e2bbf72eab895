"""The interface of a regulariser: the points of a run at which it may change something.

B rows, S tokens of this rank's sequence shard, P = S + 1 with the token after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from data_prep.shards import Mixture
from training.config.recipe import Recipe
from training.data.joined_pack import SamplePack, SampleScores
from training.data.stream import MicroBatch, SampleStream
from training.entrodrop.mask import LowSet
from training.entrodrop.quantile import Quantile
from training.model.engine import Engine
from training.model.inputs import ModelInputs, Scored
from training.regularisers.entropy_cache import EntropyCache


@dataclass(frozen=True)
class SavedThreshold:
    """Which tokens were low, as a checkpoint stores it."""

    nats: float
    last_tie_key: int

    @classmethod
    def of(cls, low: LowSet) -> SavedThreshold:
        return cls(low.quantile.threshold, low.last_tie_key)

    def low_set(self, *, seed: int) -> LowSet:
        """The same tokens; their number is not kept."""
        quantile = Quantile(self.nats, 0, 0, 0, 0)
        return LowSet(quantile, self.last_tie_key, seed)


@dataclass(frozen=True)
class Step:
    """An optimizer step before its forward passes."""

    batches: list[MicroBatch]
    """This rank's, one per micro-step."""
    stream: SampleStream
    number: int
    """0-based."""
    trained_frac: float
    """Trained tokens / planned tokens, which drives the curriculum."""
    num_targets: int
    """Of the whole global batch."""


@dataclass(frozen=True)
class StepDropout:
    """What is known of a step's drops before its forward passes, equal on every rank except for
    the tokens; by default nothing drops."""

    gamma: float = 0.0
    """Drop probability of a low token at this point of the curriculum, at guidance 1."""
    rate_asked: float = 0.0
    """Share of all targets that drop on average: gamma * quantile, of those with a value."""
    threshold_nats: float | None = None
    kept_share: float = 1.0
    """Expected share of the targets' losses that stays; the loss is divided by it."""
    dropped_BP: tuple[Tensor, ...] = ()
    """Bool `[B, P]` per micro-batch, where it is known before the forward."""


@dataclass(frozen=True)
class RunParts:
    """Parts of a run that a regulariser may be built from."""

    engine: Engine
    pack: SamplePack
    mixture: Mixture
    scores: SampleScores | None = None
    """Of the corpus, where the recipe names some (`open_scores`)."""
    cache: EntropyCache | None = None
    """Likewise (`open_cache`)."""
    threshold: SavedThreshold | None = None
    """Of the checkpoint that the run resumes from."""


class Regulariser:
    """A way to keep a model from overfitting. This one changes nothing.

    A step calls `begin_step`; then for each micro-batch `change_inputs`, the forward pass,
    `target_drops_BS` (before the forward, unless it `waits_for_forward`) and `observe`; and
    `end_step`. Every rank makes the same calls in the same order.
    """

    waits_for_forward: bool = False
    """Whether which targets drop is known only after the forward pass: the head then computes its
    logits twice."""
    drops_losses: bool = False
    """Whether the losses of targets that drop are left out of the loss."""
    masked_weight: float | None = None
    """Weight of the loss of the changed inputs, beside a pass with unchanged ones; None: no such
    pass."""

    @classmethod
    def in_model(cls, recipe: Recipe) -> dict[str, Any]:
        """Fields of `ModelRegularisation` that it sets."""
        return {}

    @classmethod
    def build(cls, recipe: Recipe, parts: RunParts) -> Regulariser:
        """For the steps of a run, from its start or a checkpoint's threshold."""
        return cls()

    @property
    def threshold(self) -> SavedThreshold | None:
        """What a checkpoint stores of it, besides the cache."""
        return None

    def begin_step(self, step: Step) -> StepDropout:
        """Decide what can be decided before the forward passes."""
        return StepDropout()

    def change_inputs(self, inputs: ModelInputs, batch: MicroBatch, micro_step: int) -> ModelInputs:
        """Other inputs for the training forward."""
        return inputs

    def target_drops_BS(
        self, batch: MicroBatch, micro_step: int, scored: Scored | None
    ) -> Tensor | None:
        """Positions whose target drops, bool `[B, S]`; None for none.

        Args:
            scored: of the training forward, for those that wait for it.
        """
        return None

    def loss_weights_BS(self, scored: Scored) -> Tensor | None:
        """Factors of the targets' losses, fp32 `[B, S]`, for those that wait for the training
        forward; None for 1."""
        return None

    def observe(self, batch: MicroBatch, micro_step: int, scored: Scored) -> None:
        """Record what the training forward measured."""

    def end_step(self, step: Step) -> None:
        """Store what was recorded, before the next step begins."""


class Together(Regulariser):
    """A regulariser with others, none of which chooses tokens to drop: of these only `in_model`,
    `change_inputs` and `loss_weights_BS` count."""

    def __init__(self, first: Regulariser, *others: Regulariser) -> None:
        self._first, self._all = first, (first, *others)
        self.waits_for_forward = any(each.waits_for_forward for each in self._all)
        self.drops_losses = first.drops_losses
        weights = (each.masked_weight for each in self._all)
        self.masked_weight = next((weight for weight in weights if weight is not None), None)

    @property
    def threshold(self) -> SavedThreshold | None:
        return self._first.threshold

    def begin_step(self, step: Step) -> StepDropout:
        return self._first.begin_step(step)

    def change_inputs(self, inputs: ModelInputs, batch: MicroBatch, micro_step: int) -> ModelInputs:
        for each in self._all:
            inputs = each.change_inputs(inputs, batch, micro_step)
        return inputs

    def target_drops_BS(
        self, batch: MicroBatch, micro_step: int, scored: Scored | None
    ) -> Tensor | None:
        return self._first.target_drops_BS(batch, micro_step, scored)

    def loss_weights_BS(self, scored: Scored) -> Tensor | None:
        given = [each.loss_weights_BS(scored) for each in self._all]
        return next((weight_BS for weight_BS in given if weight_BS is not None), None)

    def observe(self, batch: MicroBatch, micro_step: int, scored: Scored) -> None:
        self._first.observe(batch, micro_step, scored)

    def end_step(self, step: Step) -> None:
        self._first.end_step(step)
