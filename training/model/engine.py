"""DeepSpeed joined with the recipe: configuration, optimizer groups, one forward, one step."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import set_z3_leaf_module
from pydantic import ValidationError
from torch import Tensor
from transformers import PretrainedConfig

from common.hints import did_you_mean
from training.config.recipe import Recipe
from training.model.attention import shard_attention
from training.model.causal_lm import CausalLMWithEntropy, build_model, decoder_layers
from training.model.inputs import NO_REGULARISATION, ModelInputs, ModelRegularisation, Scored
from training.ranks.dist import Layout
from training.ranks.watchdog import Watchdog

_RECIPE_OWNS = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_samples",
    "gradient_accumulation_steps": "train.global_batch_tokens",
    "gradient_clipping": "train.gradient_clipping",
    "optimizer": "optimizer",
    "scheduler": "schedule",
}
_SECTIONS = ("bf16", "fp16", "zero_optimization")
"""Of the DeepSpeed JSON: those that decide how the numbers come about."""


@dataclass(frozen=True)
class Engine:
    """The DeepSpeed engine with what the loop needs beside it."""

    ds: Any
    layout: Layout
    sp_group: dist.ProcessGroup | None
    num_micro_steps: int
    num_parameters: int
    watchdog: Watchdog = field(default_factory=Watchdog.off)

    @property
    def model(self) -> CausalLMWithEntropy:
        return self.ds.module

    @property
    def vocab_size(self) -> int:
        return int(self.model.lm.config.get_text_config().vocab_size)

    @property
    def hidden_size(self) -> int:
        return int(self.model.lm.config.get_text_config().hidden_size)

    def score(self, inputs: ModelInputs) -> Scored:
        """nll and entropy of a micro-batch, both differentiable as far as the mode allows."""
        self.watchdog.enter("forward")
        return Scored(*self.ds(inputs))

    def weighted_loss(self, inputs: ModelInputs, token_weights_BS: Tensor) -> tuple[Tensor, Scored]:
        """The weighted sum of the tokens' losses, which alone is differentiable, and `score`.

        The head computes its logits once, not twice (`CausalLMWithEntropy`).

        Args:
            token_weights_BS: fp32 `[B, S]`, known before the pass.
        """
        self.watchdog.enter("forward")
        loss, *scored = self.ds(inputs, token_weights_BS)
        return loss, Scored(*scored)

    @torch.no_grad()
    def probe(self, inputs: ModelInputs) -> Scored:
        """`score` without gradient and without the model's own dropout."""
        self.ds.eval()
        try:
            return self.score(inputs)
        finally:
            self.ds.train()

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

        DeepSpeed averages gradients over all ranks (sequence shards included, with
        `reduce_scatter`) and divides by the micro-steps; the factor undoes both, so that the
        gradient is that of `sum of losses / divisor` on every layout.
        """
        factor = self.layout.world_size * self.num_micro_steps / divisor
        for group in self.ds.optimizer.param_groups:
            group["lr"] = lr
        ends_step = self.ds.is_gradient_accumulation_boundary()
        self.watchdog.enter("backward")
        self.ds.backward(loss_sum * factor)
        self.watchdog.enter("update")
        self.ds.step()
        return float(self.ds.get_global_grad_norm() or 0.0) if ends_step else None


def training_dtype(recipe: Recipe) -> torch.dtype:
    """bf16 where the DeepSpeed JSON enables it, else fp32."""
    enabled = _read_ds_config(recipe).get("bf16", {}).get("enabled", False)
    return torch.bfloat16 if enabled else torch.float32


def _read_ds_config(recipe: Recipe) -> dict[str, Any]:
    path = Path(recipe.deepspeed)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"deepspeed: {path}: {error.strerror}") from None
    except ValueError as error:  # bad JSON, bad UTF-8
        raise ValueError(f"deepspeed: {path}: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"deepspeed: {path}: expected keys and values")
    for name in _SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            raise ValueError(f"deepspeed: {path}: {name}: expected keys and values")
        enabled = config.get(name, {}).get("enabled", False)
        if enabled not in (False, True, "auto"):  # "auto" is refused with its own reason
            raise ValueError(
                f"deepspeed: {path}: {name}.enabled: expected true or false, found {enabled!r}"
            )
    return config


def join_ds_config(recipe: Recipe, *, num_micro_steps: int, has_gpu: bool) -> dict[str, Any]:
    """The DeepSpeed JSON of the recipe, with the recipe's own keys joined in.

    Raises:
        ValueError: when the JSON is unreadable, sets what the recipe owns, or asks for a mode
            in which losses or gradients would be wrong.
    """
    path, config = recipe.deepspeed, _read_ds_config(recipe)
    mistakes = [
        f"{key} belongs to the recipe ({owner})"
        for key, owner in _RECIPE_OWNS.items()
        if key in config
    ]
    # DeepSpeed passes over a key that it does not know, and a run would be in fp32 unasked
    for key in config.keys() - {*_SECTIONS, *_RECIPE_OWNS}:
        if hint := did_you_mean(key, _SECTIONS, cutoff=0.65):
            mistakes.append(f"{key}: unknown key{hint}")
    zero = config.get("zero_optimization", {})
    mistakes += _mistakes_of_zero(zero)
    if zero.get("stage") != 3:
        mistakes.append(f"zero_optimization.stage is {zero.get('stage')}; this engine needs 3")
    if zero.get("reduce_scatter", True) is not True:
        mistakes.append(
            "zero_optimization.reduce_scatter must be true: sequence shards add wrongly otherwise"
        )
    if config.get("fp16", {}).get("enabled"):
        mistakes.append("fp16 is not supported; use bf16, or neither for fp32")
    if '"auto"' in json.dumps(config):
        mistakes.append('"auto" is a value of the Hugging Face Trainer; leave the key out')
    if mistakes:
        raise ValueError(f"deepspeed: {path}:\n" + "\n".join(f"  - {m}" for m in mistakes))

    opt = recipe.optimizer
    offloads = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
    adam = {"lr": opt.lr, "betas": [opt.beta1, opt.beta2], "eps": opt.eps}
    # with offload DeepSpeed's own CPU Adam; elsewhere torch's, which needs no compiler
    adam |= {"weight_decay": opt.weight_decay}
    if not offloads:
        adam |= {"torch_adam": True, "fused": True}
    if not has_gpu:
        zero.pop("overlap_comm", None)
    # it waits for the device twice a micro-step
    config.setdefault("timers", {"throughput": {"enabled": False}})
    return config | {
        "train_micro_batch_size_per_gpu": recipe.train.micro_batch_samples,
        "gradient_accumulation_steps": num_micro_steps,
        "gradient_clipping": recipe.train.gradient_clipping or 0.0,
        "optimizer": {"type": "AdamW", "params": adam},
        "steps_per_print": 2**31,
    }


def _mistakes_of_zero(zero: dict[str, Any]) -> list[str]:
    """What DeepSpeed itself would refuse, but only once the model is built."""
    try:
        DeepSpeedZeroConfig(**copy.deepcopy(zero))
    except ValidationError as error:
        return [
            f"zero_optimization.{'.'.join(map(str, item['loc']))}: {item['msg']}"
            f" (is {item['input']!r})"
            for item in error.errors()
        ]
    return []


def build_engine(
    recipe: Recipe,
    model_config: PretrainedConfig,
    *,
    layout: Layout,
    num_micro_steps: int,
    regularisation: ModelRegularisation = NO_REGULARISATION,
    trains: bool = True,
    loads_universal: bool = False,
    watchdog: Watchdog | None = None,
) -> Engine:
    """Model, Ulysses and ZeRO-3; every rank calls it together.

    Args:
        regularisation: in training alone.
        trains: False leaves the optimizer and its memory out, for evaluation.
        loads_universal: the checkpoint to load will be one of another number of ranks.
        watchdog: is told of every forward, backward and update.
    """
    ds_config = join_ds_config(
        recipe, num_micro_steps=num_micro_steps, has_gpu=layout.device.type == "cuda"
    )
    if loads_universal:
        ds_config["checkpoint"] = {"load_universal": True}
    weight_decay = regularisation.weight_decay
    if weight_decay is None:
        weight_decay = recipe.optimizer.weight_decay
    model = build_model(
        recipe.model,
        model_config,
        ds_config=ds_config,
        seed=recipe.seed,
        z_loss=recipe.train.z_loss,
        regularisation=regularisation,
    )
    mpu = shard_attention(
        model.lm,
        sp_size=layout.sp_size,
        micro_batch_samples=recipe.train.micro_batch_samples,
        sequence_tokens=recipe.data.sequence_tokens,
    )
    # Hooks around each layer, not around each of its parts: half of the host's time a step.
    for layer in decoder_layers(model.lm):
        set_z3_leaf_module(layer, True)
    if not trains:
        ds_config.pop("optimizer")
    ds_engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=(_parameter_groups(model, weight_decay) if trains else None),
        config=ds_config,
        mpu=mpu,
    )
    return Engine(
        ds=ds_engine,
        layout=layout,
        sp_group=mpu.get_sequence_parallel_group() if mpu else None,
        num_micro_steps=num_micro_steps,
        num_parameters=sum(_whole_shape(p).numel() for p in model.parameters()),
        watchdog=watchdog or Watchdog.off(),
    )


def _whole_shape(parameter: torch.nn.Parameter) -> torch.Size:
    shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]  # set by ZeRO-3
    return shape


def _parameter_groups(model: CausalLMWithEntropy, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases, which have one dimension, do not."""
    matrices = [p for p in model.parameters() if len(_whole_shape(p)) > 1]
    vectors = [p for p in model.parameters() if len(_whole_shape(p)) <= 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
