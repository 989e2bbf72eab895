"""The typed recipe of a run: its sections, and what must fit between them."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.config.adapter import Adapter
from training.config.dropout import Dropout, Entropy
from training.config.ema import Ema
from training.config.heldout import Evaluation, HeldoutData
from training.config.profile import Profile
from training.config.regularisers import Baseline, Regularisers, find_no_combination
from training.config.replay import Replay
from training.config.sections import (
    STRICT,
    Checkpoint,
    Data,
    Guard,
    Location,
    Model,
    Optimizer,
    Schedule,
    Train,
    Watchdog,
)
from training.config.teacher import Teacher

TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(config=STRICT)
class Recipe:
    """A run: everything that decides what is learnt."""

    run_dir: Location
    """Folder of the run: metrics, checkpoints, export, report."""
    model: Model
    data: Data
    train: Train
    deepspeed: Location = "ds_configs/zero3.json"
    """DeepSpeed JSON: memory and communication, nothing that decides what is learnt."""
    seed: Annotated[int, Field(ge=0, lt=10**18)] = 1234
    determinism: Literal["fast", "strict"] = "fast"
    """strict allows only operators that give the same bits in every run, which takes time on GPUs.
    Bit-exact resumes need it there, where none was tried yet; on CPUs both give them."""
    resume: Literal["auto", "never"] = "auto"
    """auto resumes from the newest complete checkpoint in run_dir, if there is one."""
    regularisers: Regularisers = ("entrodrop",)
    """What keeps the model from overfitting, in any order: `[entrodrop, mlp_dropout, l2_sp]`.
    entrodrop and random_token_dropout take their settings from `dropout.*`, the others from
    `baseline.*`. `regulariser: entrodrop` is short for a list of one."""
    adapter: Adapter | None = None
    """Small matrices that train in place of the weights: `{kind: lora, rank: 16}`."""
    replay: Replay | None = None
    """General text among the domain's: `{corpus: data/general, share: 0.25}`."""
    ema: Ema | None = None
    """A moving average of the weights, evaluated and saved beside them: `{half_life_epochs: 1}`."""
    teacher: Teacher | None = None
    """Other weights whose predictions are learnt, too: `{kind: ema, weight: 0.5}`."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    entropy: Entropy = Field(default_factory=Entropy)
    dropout: Dropout = Field(default_factory=Dropout)
    baseline: Baseline = Field(default_factory=Baseline)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    guard: Guard = Field(default_factory=Guard)
    watchdog: Watchdog = Field(default_factory=Watchdog)
    profile: Profile | None = None
    """Some steps under torch's profiler: `{first_step: 10, num_steps: 2}`."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where curves go beside metrics.jsonl: `[tensorboard, wandb]`. W&B, MLflow and Trackio are
    extra packages, and told by their own variables where to send to: `docs/reports.md`."""

    @property
    def is_lagged(self) -> bool:
        """Whether EntroDrop uses the threshold of the previous step."""
        return "entrodrop" in self.regularisers and self.entropy.threshold == "lagged"

    @property
    def waits_for_forward(self) -> bool:
        """Whether what a target counts is known only after the forward pass."""
        return self.is_lagged or "eaft" in self.regularisers

    @property
    def has_clean_pass(self) -> bool:
        """Whether each micro-batch is also trained on as it is, beside its masked inputs."""
        return "mir" in self.regularisers

    @property
    def num_passes(self) -> int:
        """Forward and backward passes of a micro-batch."""
        return 2 if self.has_clean_pass else 1

    @property
    def needs_base(self) -> bool:
        """Whether a resume needs the weights that the run began with."""
        is_taught_by_it = self.teacher is not None and self.teacher.kind == "base"
        return is_taught_by_it or "l2_sp" in self.regularisers or self.adapter is not None

    @property
    def keeps_entropies(self) -> bool:
        """Whether the run caches the entropies that it measures."""
        return "entrodrop" in self.regularisers and self.entropy.source == "cache"

    @property
    def uses_scores(self) -> bool:
        """Whether it reads scores of the corpus; a cache does if they exist."""
        if "entrodrop" in self.regularisers:
            return self.entropy.source != "online"
        return "rho1" in self.regularisers

    @property
    def probes(self) -> bool:
        """Whether each step that drops starts with a forward pass without gradient."""
        if "entrodrop" in self.regularisers:
            return self.entropy.source == "online" and self.entropy.threshold == "step"
        return "rho1" in self.regularisers

    @property
    def saves_best(self) -> bool:
        """Whether an evaluation with the best held-out loss so far is followed by a save."""
        return self.checkpoint.save_best or self.train.stop_when is not None

    @property
    def measure(self) -> Literal["shannon", "nll"]:
        """What decides which tokens drop."""
        return "nll" if "rho1" in self.regularisers else self.entropy.measure

    @model_validator(mode="after")
    def _prompts_have_evaluations(self) -> Recipe:
        if self.evaluation.prompts is not None and self.evaluation.every_steps is None:
            raise ValueError(
                "evaluation.prompts are continued at evaluations, and evaluation.every_steps is "
                "null: set it to a number of steps"
            )
        return self

    @model_validator(mode="after")
    def _each_tracker_once(self) -> Recipe:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: one is named twice (are {', '.join(self.trackers)})")
        return self

    @model_validator(mode="after")
    def _regularisers_fit(self) -> Recipe:
        mistake = find_no_combination(
            self.regularisers, dropout=self.dropout, entropy=self.entropy, model=self.model
        )
        if mistake:
            raise ValueError(mistake)
        return self

    @model_validator(mode="after")
    def _lagged_fits(self) -> Recipe:
        if self.entropy.threshold == "lagged" and (
            self.entropy.source != "online" or self.dropout.where != "loss"
        ):
            raise ValueError(
                "entropy.threshold: lagged needs entropy.source: online and dropout.where: loss "
                f"(are {self.entropy.source} and {self.dropout.where}): an input is dropped before "
                "its entropy is known"
            )
        return self

    @model_validator(mode="after")
    def _side_fits(self) -> Recipe:
        """What has to know the entropies of the step before its draws."""
        entropy, dropout = self.entropy, self.dropout
        is_high, is_soft = dropout.side == "high", dropout.softness is not None
        if (is_high or is_soft) and (entropy.scope == "corpus" or entropy.threshold == "lagged"):
            key = "dropout.side: high" if is_high else f"dropout.softness: {dropout.softness:g}"
            raise ValueError(
                f"{key} needs entropy.scope: batch and entropy.threshold: step (are "
                f"{entropy.scope} and {entropy.threshold})"
            )
        return self

    @model_validator(mode="after")
    def _entropies_fit(self) -> Recipe:
        entropy = self.entropy
        if entropy.scope == "corpus" and entropy.source == "online":
            raise ValueError(
                "entropy.scope: corpus needs entropy.source: reference or cache (is online): "
                "online has no entropies of the whole corpus"
            )
        measures_in_training = entropy.source == "cache" or entropy.threshold == "lagged"
        smooths = "label_smoothing" in self.regularisers
        if measures_in_training and entropy.measure == "nll" and smooths:
            raise ValueError(
                "entropy.measure: nll of the training forward would be that of smoothed targets "
                "(regularisers: label_smoothing); set measure: shannon, or use another one"
            )
        if measures_in_training and entropy.measure == "nll" and self.train.z_loss:
            raise ValueError(
                f"entropy.measure: nll of the training forward would include train.z_loss "
                f"{self.train.z_loss}; set measure: shannon, or train.z_loss: 0"
            )
        return self

    @model_validator(mode="after")
    def _replay_fits(self) -> Recipe:
        if self.replay is not None and self.entropy.scope == "corpus":
            raise ValueError(
                "entropy.scope: corpus with replay would take its threshold from all of "
                "replay.corpus, of which the run trains on a share: set entropy.scope: batch, or "
                "replay: null"
            )
        own = os.path.realpath(self.data.corpus)
        if self.replay is not None and os.path.realpath(self.replay.corpus) == own:
            raise ValueError(
                f"replay.corpus {self.replay.corpus} is data.corpus, whose samples would come more "
                "often than train.epochs says: name a corpus of other text"
            )
        return self

    @model_validator(mode="after")
    def _adapter_has_a_base(self) -> Recipe:
        if self.adapter is not None and self.model.pretrained is None:
            raise ValueError(
                "adapter needs weights to train beside: set model.pretrained (model.config begins "
                "with random ones, which would stay random)"
            )
        if self.adapter is not None and self.adapter.dropout and self.model.tiled_mlp:
            raise ValueError(
                f"adapter.dropout: {self.adapter.dropout:g} draws for whole rows, of which "
                "model.tiled_mlp gives the MLP tiles: set one of them to 0 or false"
            )
        if self.adapter is not None and "l2_sp" in self.regularisers:
            raise ValueError(
                "regularisers: l2_sp has nothing to hold beside an adapter, whose base is frozen; "
                "weight_decay draws the adapter towards nothing, which is the base"
            )
        return self

    @model_validator(mode="after")
    def _teacher_fits(self) -> Recipe:
        if self.teacher is None:
            return self
        if self.teacher.kind == "ema" and self.ema is None:
            raise ValueError("teacher.kind: ema needs the section ema: set ema.half_life_epochs")
        if self.teacher.on != "all" and self.replay is None:
            raise ValueError(f"teacher.on: {self.teacher.on} needs the section replay (is null)")
        if self.waits_for_forward:
            key, remedy = "regularisers: eaft", "leave eaft out"
            if self.is_lagged:
                key, remedy = "entropy.threshold: lagged", "set entropy.threshold: step"
            raise ValueError(
                f"teacher with {key} would need the head's logits twice: {remedy}, or set "
                "teacher: null"
            )
        return self

    @model_validator(mode="after")
    def _held_out_is_not_trained_on(self) -> Recipe:
        for name, data in (self.evaluation.sets or {}).items():
            if data.split == "train" and (trained := self._trained_on(data)):
                raise ValueError(
                    f"evaluation.sets.{name}.split: train is trained on, as {trained}: take val, "
                    "another corpus, or a domain of data.corpus with data.mixture.NAME.epochs: 0"
                )
        return self

    def _trained_on(self, data: HeldoutData) -> str | None:
        """Which key trains on the train split of a set's corpus; None for neither."""
        corpus = os.path.realpath(data.corpus or self.data.corpus)
        if self.replay is not None and corpus == os.path.realpath(self.replay.corpus):
            return "replay.corpus"
        weight = (self.data.mixture or {}).get(data.domain or "")
        is_left_out = weight is not None and 0 in (weight.epochs, weight.proportion)
        is_own = corpus == os.path.realpath(self.data.corpus)
        return "data.corpus" if is_own and not is_left_out else None

    @model_validator(mode="after")
    def _best_is_kept(self) -> Recipe:
        if not self.saves_best:
            return self
        key = "train.stop_when" if self.train.stop_when else "checkpoint.save_best"
        if self.evaluation.every_steps is None:
            raise ValueError(f"{key} needs evaluations: set evaluation.every_steps (is null)")
        if self.checkpoint.keep_best == 0:
            raise ValueError(f"{key} needs checkpoint.keep_best of at least 1 (is 0)")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Recipe:
        batch, sample = self.train.global_batch_tokens, self.data.sequence_tokens
        if batch % sample:
            raise ValueError(
                f"train.global_batch_tokens {batch} is not a multiple of data.sequence_tokens "
                f"{sample}; nearest that work: {_nearest_multiples(batch, sample)}"
            )
        sp_size = self.train.sequence_parallel_size
        if sample % sp_size:
            raise ValueError(
                f"data.sequence_tokens {sample} is not a multiple of train.sequence_parallel_size "
                f"{sp_size}; nearest sequence_tokens that work: "
                f"{_nearest_multiples(sample, sp_size)}"
            )
        return self


def _nearest_multiples(value: int, unit: int) -> str:
    """Example: of 100 around 250 it is "200, 300", around 50 it is "100"."""
    below = value // unit * unit
    return f"{below}, {below + unit}" if below else f"{unit}"
