"""What share of a GPU's peak a run reaches: of the model's operations (MFU) and of all (HFU)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from training.config.passes import Passes, forward_flops, passes_of, runs_tiles
from training.config.recipe import Recipe
from training.model.causal_lm import CausalLMWithEntropy
from training.model.layer_parts import mlp_of
from training.model.layers import decoder_layers

_PEAK_TFLOPS = {
    r"A100": 312.0,
    r"H100 PCIe": 756.0,
    r"H100 NVL": 835.0,
    r"H100|H800|H200|GH200": 989.0,
    r"H20": 148.0,
    r"L40S": 362.0,
    r"L4": 121.0,
}
"""Dense bf16 by NVIDIA's data sheets; the first that the name of a GPU has as a word."""


@dataclass(frozen=True)
class Utilisation:
    """Turns a run's speed into operations."""

    forward_flops: float | None
    """Of a token; None for layers whose operations are not known from their weights."""
    passes: Passes
    num_gpus: int
    peak_tflops: float | None
    """Of a GPU; None where no data sheet is known here."""

    @classmethod
    def of(cls, recipe: Recipe, model: CausalLMWithEntropy, *, num_gpus: int) -> Utilisation:
        """Of a run on this rank's kind of GPU."""
        is_known = not model.recurrences.names
        length = recipe.data.sequence_tokens
        flops = flops_of(model.lm, sequence_tokens=length) if is_known else None
        hidden = model.lm.config.get_text_config().hidden_size
        is_tiled = runs_tiles(recipe, hidden=hidden)
        share = flops_of_mlps(model.lm) / flops if flops and is_tiled else 0.0
        passes = passes_of(recipe, mlp_share=share)
        return cls(flops, passes, num_gpus, _peak_tflops(model.lm.dtype))

    def at(self, tokens_per_second: float) -> dict[str, float]:
        """Per GPU: TFLOP/s of the model and of the hardware; with a peak, their shares of it."""
        if self.forward_flops is None:
            return {}
        each = tokens_per_second * self.forward_flops / self.num_gpus / 1e12
        model, hardware = each * self.passes.model, each * self.passes.hardware
        row = {"model_tflops": model, "hardware_tflops": hardware}
        if self.peak_tflops:
            row |= {"mfu": model / self.peak_tflops, "hfu": hardware / self.peak_tflops}
        return row


def flops_of(lm: PreTrainedModel, *, sequence_tokens: int) -> float | None:
    """Of a forward pass for a token; None for experts, of which a token meets only some."""
    layers, config = decoder_layers(lm), lm.config.get_text_config()
    shapes = _shapes(layers)
    heads = getattr(config, "num_attention_heads", None)
    if heads is None or any(len(shape) > 2 for shape in shapes) or has_experts(layers):
        return None
    output = lm.get_output_embeddings().weight
    shapes.append(torch.Size(getattr(output, "ds_shape", output.shape)))
    return forward_flops(
        weights=sum(shape.numel() for shape in shapes),
        layers=len(layers),
        queries=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
        sequence_tokens=sequence_tokens,
    )


def flops_of_mlps(lm: PreTrainedModel) -> float:
    """Of a forward pass for a token, those of the MLPs that tiles are made of."""
    mlps = map(mlp_of, decoder_layers(lm))
    return 2.0 * sum(shape.numel() for mlp in mlps for shape in _shapes(mlp))


def _shapes(module: nn.Module) -> list[torch.Size]:
    """Of its weights, but an adapter's: these are few."""
    return [
        torch.Size(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
        if "lora_" not in name
    ]


def has_experts(layers: nn.ModuleList) -> bool:
    """Whether a layer has modules among which tokens choose."""
    return any("expert" in name for name, _ in layers.named_modules())


def _peak_tflops(dtype: torch.dtype) -> float | None:
    if not torch.cuda.is_available() or dtype != torch.bfloat16:
        return None
    return peak_tflops(torch.cuda.get_device_name())


def peak_tflops(gpu: str) -> float | None:
    """Dense bf16 of a GPU by its name; None for others than those of the table, and for a part."""
    if " MIG " in gpu:
        return None
    found = (peak for name, peak in _PEAK_TFLOPS.items() if re.search(rf"\b({name})\b", gpu))
    return next(found, None)
