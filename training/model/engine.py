"""The DeepSpeed engine as a step uses it: built, one forward, one backward and update."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import set_z3_leaf_module
from torch import Tensor, nn
from transformers import PretrainedConfig

from training.config.recipe import Recipe
from training.entrodrop.distillation import OutputLayer, TopK
from training.model.base_decay import decay_towards_base
from training.model.causal_lm import CausalLMWithEntropy, build_model
from training.model.ds_config import join_ds_config, shards_all
from training.model.host_time import spare_host_time
from training.model.inputs import (
    NO_REGULARISATION,
    ModelInputs,
    ModelRegularisation,
    Scored,
    TeacherView,
)
from training.model.layers import decoder_layers
from training.model.own_parts import OwnParts, own_parts, refuse_mixed_dtypes, whole_shape
from training.model.probe_trace import ProbeTrace
from training.model.ulysses import shard_attention
from training.model.weights import find_non_finite
from training.ranks.dist import Layout, raise_together
from training.ranks.phase_memory import PhaseMemory
from training.ranks.watchdog import Watchdog


@dataclass(frozen=True)
class Engine:
    """The DeepSpeed engine, and what else the loop needs."""

    ds: Any
    layout: Layout
    sp_group: dist.ProcessGroup | None
    num_micro_steps: int
    num_parameters: int
    num_trained: int
    """Of them; the rest is frozen."""
    parts: OwnParts | None
    """None without an optimizer."""
    probe_trace: ProbeTrace | None
    """None under ZeRO-1, which gathers nothing for a forward pass."""
    memory: PhaseMemory
    watchdog: Watchdog = field(default_factory=Watchdog.off)

    @property
    def model(self) -> CausalLMWithEntropy:
        return self.ds.module

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The weights that are trained: all of them, or an adapter's."""
        return {n: p for n, p in self.model.lm.named_parameters() if p.requires_grad}

    @property
    def has_frozen(self) -> bool:
        """Whether some weights are not: checkpoints do not hold these."""
        return self.num_trained < self.num_parameters

    @property
    def zero_stage(self) -> int:
        """Of ZeRO: 3, 1, or 0 for evaluation by whole weights."""
        return int(self.ds.zero_optimization_stage())

    @property
    def vocab_size(self) -> int:
        return int(self.model.lm.config.get_text_config().vocab_size)

    @property
    def hidden_size(self) -> int:
        return int(self.model.lm.config.get_text_config().hidden_size)

    def score(self, inputs: ModelInputs) -> Scored:
        """nll and entropy of a micro-batch, both differentiable as far as the mode allows."""
        self.watchdog.enter("forward")
        if torch.is_grad_enabled():
            self.memory.enter("forward")
        return Scored(*self.ds(inputs))

    def weighted_loss(
        self, inputs: ModelInputs, token_weights_BS: Tensor, teacher: TeacherView | None = None
    ) -> tuple[Tensor, Scored]:
        """The weighted sum of the tokens' losses, which alone is differentiable, and `score`.

        The head computes its logits once, not twice (`CausalLMWithEntropy`).

        Args:
            token_weights_BS: fp32 `[B, S]`, known in advance.
            teacher: whose predictions are part of that sum.
        """
        self.watchdog.enter("forward")
        self.memory.enter("forward")
        loss, *scored = self.ds(inputs, token_weights_BS, teacher)
        return loss, Scored(*scored)

    @torch.no_grad()
    def predict(self, inputs: ModelInputs) -> tuple[Tensor, OutputLayer]:
        """What makes the model's predictions, without its own dropout: hidden states and layer."""
        self.watchdog.enter("forward")
        with self._measuring():
            hidden_BSD, weight_VD, bias_V = self.ds(inputs, as_teacher=True)
        return hidden_BSD, OutputLayer(weight_VD, bias_V)

    @torch.no_grad()
    def probe(self, inputs: ModelInputs) -> Scored:
        """`score` without gradient and without the model's own dropout."""
        with self._measuring():
            return self.score(inputs)

    @torch.no_grad()
    def probe_top_k(self, inputs: ModelInputs, *, k: int, num_ids: int) -> tuple[Scored, TopK]:
        """`probe`, and the `k` likeliest of the first `num_ids` ids at each position, in fp32."""
        self.watchdog.enter("forward")
        with self._measuring():
            nll_BS, entropy_BS, ids_BSK, log_probs_BSJ = self.ds(inputs, top_k=(k, num_ids))
        return Scored(nll_BS, entropy_BS), TopK(ids_BSK, log_probs_BSJ)

    @torch.no_grad()
    def likeliest(self, inputs: ModelInputs, places_K: Tensor) -> Tensor:
        """The likeliest next token behind some places of this shard, int64 `[K]`.

        Args:
            places_K: int64, row * S + position in the shard.
        """
        self.watchdog.enter("forward")
        with self._measuring():
            found: Tensor = self.ds(inputs, likeliest_at_K=places_K)
        return found

    @contextmanager
    def _measuring(self) -> Iterator[None]:
        self.memory.enter("probe")
        self.ds.eval()
        try:
            with self.probe_trace.used() if self.probe_trace else nullcontext():
                yield
        finally:
            self.ds.train()

    def put(self, weights: Mapping[str, Tensor] | None) -> None:
        """Replace the weights that are trained by those of rank 0; every rank calls it.

        Args:
            weights: whole, by the names of transformers; None on other ranks.
        """
        for name, parameter in self.trained.items():
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
                if weights is not None:
                    parameter.copy_(weights[name])
                if not hasattr(parameter, "ds_id"):  # whole on every rank
                    dist.broadcast(parameter, 0)

    @property
    def updated(self) -> bool:
        """Whether the last step changed the weights: DeepSpeed skips it, on every rank, when the
        norm of the gradient is not finite."""
        return bool(self.ds.was_step_applied())

    def backward_and_step(self, loss_sum: Tensor, *, divisor: float, lr: float) -> float | None:
        """Backward of one micro-step; the last one of a step also updates the weights.

        Args:
            loss_sum: this rank's sum of per-token losses of the micro-step.
            divisor: what the sum over the whole step is divided by, the same on every rank.
            lr: learning rate of the step.

        Returns:
            The norm of the whole gradient before clipping, at the end of a step; else None.

        DeepSpeed averages gradients over ranks (under ZeRO-3 sequence shards included, with
        `reduce_scatter`) and divides by the micro-steps; the factor undoes both, so that the
        gradient is that of `sum of losses / divisor` on every layout.
        """
        factor = self.loss_factor(divisor)
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        ends_step = self.ds.is_gradient_accumulation_boundary()
        self.watchdog.enter("backward")
        self.memory.enter("backward")
        self.ds.backward(loss_sum * factor)
        self.watchdog.enter("update")
        self.memory.enter("update")
        self.ds.step()
        if not ends_step:
            return None
        norm = self.ds.get_global_grad_norm()
        assert norm is not None  # computed at each update
        return float(norm)

    def loss_factor(self, divisor: float) -> float:
        """What `backward_and_step` multiplies the losses of a micro-step by."""
        assert self.parts is not None
        return self.parts.averages_over * self.num_micro_steps / divisor


def build_engine(
    recipe: Recipe,
    model_config: PretrainedConfig,
    *,
    layout: Layout,
    num_micro_steps: int,
    regularisation: ModelRegularisation | None = None,
    loads_universal: bool = False,
    watchdog: Watchdog | None = None,
) -> Engine:
    """Model, Ulysses and ZeRO; every rank calls it together.

    Args:
        regularisation: of the model in training. None leaves the optimizer and its memory out,
            for evaluation.
        loads_universal: the checkpoint to load is of other ranks, or of another stage of ZeRO.
        watchdog: is notified of every forward, backward and update.
    """
    ds_config = join_ds_config(
        recipe, num_micro_steps=num_micro_steps, has_gpu=layout.device.type == "cuda"
    )
    if loads_universal:
        ds_config["checkpoint"] = {"load_universal": True}
    trains = regularisation is not None
    if not trains:  # of use in a backward pass alone, and not on any number of processes
        ds_config["zero_optimization"].pop("zero_hpz_partition_size", None)
    model = build_model(
        # an evaluation is plain, so that it runs on any machine
        recipe.model if trains else replace(recipe.model, attention="flash2", kernels="plain"),
        model_config,
        ds_config=ds_config,
        seed=recipe.seed,
        z_loss=recipe.train.z_loss,
        regularisation=regularisation or NO_REGULARISATION,
        adapter=recipe.adapter,
    )
    if recipe.model.pretrained is not None:
        raise_together(find_non_finite(model))
    mpu = shard_attention(
        sp_size=layout.sp_size,
        micro_batch_samples=recipe.train.micro_batch_samples,
        sequence_tokens=recipe.data.sequence_tokens,
    )
    # Hooks around each layer, not around each of its parts: saves half of the host's time per step.
    for layer in decoder_layers(model.lm):
        set_z3_leaf_module(layer, True)
    groups, is_sharded = None, shards_all(ds_config)
    if regularisation is None:
        ds_config.pop("optimizer")
        if not is_sharded:  # nothing is left to share out
            ds_config["zero_optimization"] = {"stage": 0}
    else:
        own_decay = regularisation.weight_decay
        groups = _parameter_groups(
            model, recipe.optimizer.weight_decay if own_decay is None else own_decay
        )
        if not is_sharded:
            refuse_mixed_dtypes(model)
    with redirect_stdout(io.StringIO()):  # memory in several places, whatever its log level
        ds_engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=groups,
            config=ds_config,
            mpu=mpu,
        )
    parts = None if regularisation is None else own_parts(ds_engine, layout)
    spare_host_time(model, keeps_ranges=ds_config.get("wall_clock_breakdown", False))
    if parts is not None and regularisation is not None and regularisation.l2_sp:
        decay_towards_base(
            ds_engine.optimizer, parts, strength=regularisation.l2_sp, dtype=model.lm.dtype
        )
    return Engine(
        ds=ds_engine,
        layout=layout,
        sp_group=mpu.get_sequence_parallel_group() if mpu else None,
        num_micro_steps=num_micro_steps,
        num_parameters=sum(whole_shape(p).numel() for p in model.parameters()),
        num_trained=sum(whole_shape(p).numel() for p in model.parameters() if p.requires_grad),
        parts=parts,
        probe_trace=ProbeTrace(ds_engine) if is_sharded else None,
        memory=PhaseMemory(layout.device),
        watchdog=watchdog or Watchdog.off(),
    )


def _parameter_groups(model: CausalLMWithEntropy, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases and DoRA's sizes, which have one dimension, do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(whole_shape(p)) > 1]
    vectors = [p for p in trained if len(whole_shape(p)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
