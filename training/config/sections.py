"""The sections of a recipe: their keys, defaults, ranges and internal consistency."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from common.names import checked_name
from common.remote import folder_url, is_remote

STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]


def _as_it_is(path: str) -> str:
    """Only a shell expands these: the run would be in a folder that is called ~."""
    if path.startswith("~") or "$" in path:
        raise ValueError(f"~ and $ are not expanded here; write the path out (is {path!r})")
    return path


def _as_url(text: str) -> str:
    if text and not is_remote(text):
        raise ValueError("expected a URL, such as s3://bucket/folder")
    return folder_url(text) if text else text


Location = Annotated[str, Field(min_length=1), AfterValidator(_as_it_is)]
"""A file or folder, or a name of the Hugging Face hub."""

Name = Annotated[str, AfterValidator(checked_name)]
"""Of what is kept beside a corpus."""


@dataclass(config=STRICT)
class Model:
    """Which causal LM to train: exactly one of `pretrained` and `config`."""

    pretrained: Location | None = None
    """Hugging Face name or folder whose weights are adapted."""
    config: dict[str, Any] | None = None
    """A Hugging Face configuration (`model_type` and its keys) for weights from scratch."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass: about a third more compute, far less memory."""
    activation_offloading: bool = False
    """Keep what activation_checkpointing keeps, the input of each layer, in the host's memory."""
    tiled_mlp: bool = False
    """Run the MLP of each layer on as many tokens at a time as it has hidden channels, and again in
    the backward pass: less memory for long samples, the same numbers but for rounding."""
    attention: Literal["flash2", "flash3", "flash4"] = "flash2"
    """Flash attention on GPUs, in training: torch's own kernels, or those of the packages
    flash-attn-3 (compute capability 9) and flash-attn-4 (9 and 10), which each start checks."""
    kernels: Literal["plain", "liger"] = "plain"
    """liger: norms, rotations and gated units by Liger's fused kernels, equal to plain ones within
    rounding, which each start checks. Needs a GPU, the extra [kernels] and a family it covers."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model repository. Only for sources you trust."""
    disable_dropout: bool = False
    """Set all dropout and jitter of the model's own configuration to 0. They would draw other
    numbers on each layout, so that a model that has some is refused otherwise."""

    @model_validator(mode="after")
    def _one_source(self) -> Model:
        if (self.pretrained is None) == (self.config is None):
            raise ValueError("set exactly one of model.pretrained and model.config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("model.config needs the key model_type, for example qwen3")
        if self.activation_offloading and not self.activation_checkpointing:
            raise ValueError(
                "model.activation_offloading moves what model.activation_checkpointing keeps: set "
                "that to true, too (is false)"
            )
        return self


@dataclass(config=STRICT)
class DomainWeight:
    """How much of a domain an epoch takes: exactly one of the two."""

    epochs: Annotated[float, Field(ge=0)] | None = None
    """Passes over the domain in an epoch; 0 leaves it out."""
    proportion: Fraction | None = None
    """Share of the epoch's tokens."""

    @model_validator(mode="after")
    def _one_weight(self) -> DomainWeight:
        if (self.epochs is None) == (self.proportion is None):
            raise ValueError("set exactly one of epochs and proportion")
        return self


@dataclass(config=STRICT)
class Data:
    """Which packed corpus to train on."""

    corpus: Location
    """Folder written by `python -m data_prep build`."""
    sequence_tokens: Annotated[int, Field(ge=2)]
    """Tokens in a sample; `python -m data_prep pack CORPUS --seq-len` makes its index."""
    mixture: dict[str, DomainWeight] | None = None
    """By domain, how much of it an epoch takes: `{notes: {epochs: 4}, web: {proportion: 0.3}}`.
    A domain not named is seen once; null uses the weights given to `pack`."""
    verify: Literal["hashes", "sizes"] = "hashes"
    """What a start compares with the manifests. hashes: every byte of corpus, pack and scores, each
    process reading a share of the files; sizes: file sizes only, which takes no time."""


@dataclass(config=STRICT)
class StopWhen:
    """When a run that gets worse ends, complete, before its last step."""

    worse_for: Positive
    """Evaluations in a row without a new best held-out loss (`evaluation.best_by`), counted from
    the first one after a step."""


@dataclass(config=STRICT)
class Train:
    """How long and in what batches."""

    global_batch_tokens: Positive
    """Tokens in an optimizer step over all ranks and micro-steps."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    max_steps: Positive | None = None
    """Stop early; the curriculum and the schedule then span this shorter run."""
    micro_batch_samples: Positive = 1
    """Samples of one data-parallel group in a forward pass."""
    sequence_parallel_size: Positive = 1
    """Ranks that share each sample (Ulysses)."""
    gradient_clipping: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the whole gradient; null disables clipping."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Factor of the square of each token's ln(sum of e^logits) in the loss, which keeps logits from
    drifting (PaLM: 1e-4). The logged training loss includes it, held-out losses do not."""
    stop_after_steps: Positive | None = None
    """Save and stop after this many steps; a later start resumes. The horizon does not change."""
    stop_when: StopWhen | None = None
    """Early stopping: `{worse_for: 3}` ends the run after three evaluations without a new best; it
    saves each new best. The horizon does not change."""


@dataclass(config=STRICT)
class Optimizer:
    """AdamW; norms and biases have no weight decay."""

    lr: Annotated[float, Field(gt=0)] = 1e-5
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1


@dataclass(config=STRICT)
class Schedule:
    """Learning rate over optimizer steps."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_frac: Fraction = 0.02
    """Share of all steps in which the rate rises linearly from 0."""
    decay_frac: Fraction = 0.2
    """wsd only: share of all steps at the end in which the rate falls linearly."""
    final_lr_frac: Fraction = 0.1
    """Rate at the end, as a share of the peak."""

    @model_validator(mode="after")
    def _phases_fit(self) -> Schedule:
        if self.kind == "wsd" and self.warmup_frac + self.decay_frac > 1:
            raise ValueError("schedule.warmup_frac + schedule.decay_frac must not exceed 1")
        return self


@dataclass(config=STRICT)
class Checkpoint:
    """When to save, which checkpoints to keep, and what a failed save means."""

    every_steps: Positive | None = None
    """null saves at the end only."""
    keep_last: Positive = 2
    """How many of the newest to keep."""
    keep_best: NonNegative = 1
    """How many of the best to keep too, by held-out loss of the newest evaluation before each."""
    keep_every_steps: Positive | None = None
    """Also keep those of steps that are multiples of this."""
    save_best: bool = False
    """Also save at every evaluation whose held-out loss is the best so far; a run with
    train.stop_when does so anyway."""
    in_background: bool = True
    """Training continues while a save is written, from a copy in memory of each process's share of
    weights and optimizer. The last save of a run is always waited for."""
    on_failure: Literal["stop", "go_on"] = "stop"
    """When a save fails, for example on a full disk; older ones are kept either way. go_on reports
    it on stderr and tries again at the next save; the last save of a run must succeed."""
    mirror: Annotated[str, AfterValidator(_as_url)] = ""
    """Where copies of the checkpoints go, sent in the background: `s3://bucket/runs/notes`. A start
    with no checkpoint in run_dir fetches the newest. Needs the extra [remote]."""


@dataclass(config=STRICT)
class Guard:
    """What to do with a step that should not be learnt from; its samples are reported."""

    on_not_finite: Literal["skip", "rollback", "stop"] = "skip"
    """A non-finite loss or gradient. skip: no update; rollback: resume from the
    newest checkpoint without the step's batch; stop: end the run."""
    on_spike: Literal["report", "skip", "rollback", "stop"] = "report"
    """A loss far above the previous ones. An exploding gradient is clipped by
    train.gradient_clipping, so skip only reports it."""
    spike_sigmas: Annotated[float, Field(gt=0)] | None = 6.0
    """How far above the mean of the previous steps is a spike; null does not look for spikes."""
    window_steps: Annotated[int, Field(ge=16)] = 128
    """How many previous steps to compare with."""
    max_bad_steps: Positive = 5
    """More skipped or rolled back steps than this in a row end the run."""


@dataclass(config=STRICT)
class Watchdog:
    """When a rank that makes no progress ends the run instead of keeping all others waiting."""

    seconds: Annotated[float, Field(gt=0)] | None = 600.0
    """Longest time in one phase (data, forward, backward, update); null never ends a run."""
    slow_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """The same for starting, where weights are loaded, and for saving."""
    record_collectives: Annotated[int, Field(ge=0)] = 0
    """How many of its last collectives each rank keeps in mind (torch's flight recorder), for
    RUN/collectives-rank*.pickle when one hangs; 0 for none."""

    @property
    def group_timeout_seconds(self) -> float | None:
        """When communication gives up: long after the watchdog, which says where and why.

        Example: 600 and 3600 seconds give 7200.
        """
        return None if self.seconds is None else 2.0 * max(self.seconds, self.slow_seconds)
