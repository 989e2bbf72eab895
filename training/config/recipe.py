"""The typed recipe of a run, out of its sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.config.adapter import Adapter
from training.config.conflicts import find_conflicts
from training.config.dropout import Dropout, Entropy
from training.config.ema import Ema
from training.config.heldout import Evaluation
from training.config.profile import Profile
from training.config.regularisers import Baseline, Regularisers
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
    def _keys_fit(self) -> Recipe:
        if mistakes := find_conflicts(self):
            raise ValueError("\n  - ".join(mistakes))
        return self
