"""The typed recipe: one run, put together of its sections, and what must fit between them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from training.config.sections import (
    STRICT,
    Baseline,
    Checkpoint,
    Data,
    Dropout,
    Entropy,
    Evaluation,
    Guard,
    Model,
    Name,
    Optimizer,
    Schedule,
    Train,
    Watchdog,
)


@dataclass(config=STRICT)
class Recipe:
    """One run: everything that decides what is learnt."""

    run_dir: Name
    """Folder of the run: metrics, checkpoints, export, report."""
    model: Model
    data: Data
    train: Train
    deepspeed: Name = "ds_configs/zero3.json"
    """DeepSpeed JSON: memory and communication, nothing that decides what is learnt."""
    seed: Annotated[int, Field(ge=0, lt=10**18)] = 1234
    resume: Literal["auto", "never"] = "auto"
    """auto goes on from the newest complete checkpoint in run_dir, if there is one."""
    regulariser: Literal[
        "none",
        "entrodrop",
        "random_token_dropout",
        "hidden_dropout",
        "label_smoothing",
        "neftune",
        "rho1",
        "weight_decay",
    ] = "entrodrop"
    """entrodrop and its baselines. random_token_dropout drops any target with the mean rate that
    EntroDrop would have (gamma * quantile), by the same `dropout.*` keys."""
    beside: Literal["hidden_dropout", "label_smoothing", "neftune", "weight_decay"] | None = None
    """A usual regulariser together with the first, as strong as `baseline.*` says."""
    optimizer: Optimizer = Field(default_factory=Optimizer)
    schedule: Schedule = Field(default_factory=Schedule)
    entropy: Entropy = Field(default_factory=Entropy)
    dropout: Dropout = Field(default_factory=Dropout)
    baseline: Baseline = Field(default_factory=Baseline)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    checkpoint: Checkpoint = Field(default_factory=Checkpoint)
    guard: Guard = Field(default_factory=Guard)
    watchdog: Watchdog = Field(default_factory=Watchdog)

    def applies(self, regulariser: str) -> bool:
        """Whether it is the regulariser, or the one beside it."""
        return regulariser in (self.regulariser, self.beside)

    @model_validator(mode="after")
    def _beside_another(self) -> Recipe:
        if self.beside is not None and self.regulariser in ("none", self.beside):
            raise ValueError(
                f"beside: {self.beside} needs another regulariser that it stands beside (is "
                f"{self.regulariser}); alone it is regulariser: {self.beside}"
            )
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
        entropy = self.entropy
        if self.dropout.side == "high" and (
            entropy.scope == "corpus" or entropy.threshold == "lagged"
        ):
            raise ValueError(
                "dropout.side: high needs entropy.scope: batch and entropy.threshold: step (are "
                f"{entropy.scope} and {entropy.threshold})"
            )
        return self

    @model_validator(mode="after")
    def _entropies_fit(self) -> Recipe:
        entropy = self.entropy
        if entropy.scope == "corpus" and entropy.source == "online":
            raise ValueError(
                "entropy.scope: corpus needs entropy.source: reference or cache (is online): "
                "entropies of the whole corpus are not at hand"
            )
        measures_in_training = entropy.source == "cache" or entropy.threshold == "lagged"
        if measures_in_training and entropy.measure == "nll" and self.beside == "label_smoothing":
            raise ValueError(
                "entropy.measure: nll of the training forward would be that of smoothed targets "
                "(beside: label_smoothing); take measure: shannon, or another regulariser beside"
            )
        if measures_in_training and entropy.measure == "nll" and self.train.z_loss:
            raise ValueError(
                f"entropy.measure: nll of the training forward would contain train.z_loss "
                f"{self.train.z_loss}; take measure: shannon, or train.z_loss: 0"
            )
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
                f"data.sequence_tokens {sample} does not divide by train.sequence_parallel_size "
                f"{sp_size}; nearest sequence_tokens that work: "
                f"{_nearest_multiples(sample, sp_size)}"
            )
        return self


def _nearest_multiples(value: int, unit: int) -> str:
    """Example: of 100 around 250 it is "200, 300", around 50 it is "100"."""
    below = value // unit * unit
    return f"{below}, {below + unit}" if below else f"{unit}"
