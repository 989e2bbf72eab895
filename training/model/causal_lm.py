"""A Hugging Face causal LM under ZeRO whose head returns (nll, entropy) and no logits.

B rows, S tokens of this rank's sequence shard, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from training.config.adapter import Adapter
from training.config.sections import Model
from training.model.adapter import AdapterDropout, inject_adapter
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.checks import (
    refuse_idle_keys,
    refuse_other_shapes,
    refuse_quantized,
    refuse_unknown_keys,
    refuse_unsupported,
)
from training.model.ds_config import shards_all
from training.model.flash_choice import use_attention
from training.model.fused_layers import fuse_layers
from training.model.inputs import (
    NO_REGULARISATION,
    ModelInputs,
    ModelRegularisation,
    TeacherView,
)
from training.model.layer_dropout import LayerDropout
from training.model.layers import decoder_layers
from training.model.length_rope import LengthRope
from training.model.multimodal import name_rules, text_part, without_report
from training.model.offloading import checkpoint_layers
from training.model.older_attention import OlderAttention, allow_construction
from training.model.output_layer import entropy_head
from training.model.own_dropout import disable_dropout
from training.model.recurrences import Recurrences
from training.model.source import refuse_unknown_source, why_unread, without_retries_told
from training.model.tiled_mlp import tile_mlps


class CausalLMWithEntropy(nn.Module):
    """Embed, replace dropped inputs, run the layers, and score each target."""

    def __init__(
        self,
        lm: PreTrainedModel,
        regularisation: ModelRegularisation = NO_REGULARISATION,
        *,
        z_loss: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        has_transform = _has_transform(lm)
        lm.set_output_embeddings(
            entropy_head(lm, label_smoothing=regularisation.label_smoothing, z_loss=z_loss)
        )
        self.lm = lm
        self._has_transform = has_transform
        self.layer_dropout = LayerDropout(decoder_layers(lm), regularisation, seed=seed)
        self.recurrences = Recurrences(decoder_layers(lm))
        self.older_attention = OlderAttention(lm)
        self.length_rope = LengthRope(lm)
        self._adapter_dropouts = [m for m in lm.modules() if isinstance(m, AdapterDropout)]
        self.replaces_by_mean = regularisation.replaces_by_mean
        self._mean_D: Tensor | None = None
        # Registered before DeepSpeed's own hook, which releases the gathered weight.
        lm.get_input_embeddings().register_forward_hook(self._keep_mean)

    def _keep_mean(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        if self.replaces_by_mean:
            weight_VD: Tensor = module.weight  # type: ignore[assignment]
            self._mean_D = weight_VD.detach().mean(dim=0, dtype=torch.float32)

    def _replace(self, embeds_BSD: Tensor, replaced_BS: Tensor) -> Tensor:
        if self._mean_D is None:
            return embeds_BSD * (~replaced_BS)[..., None].to(embeds_BSD.dtype)
        return torch.where(replaced_BS[..., None], self._mean_D.to(embeds_BSD.dtype), embeds_BSD)

    def _embedded_per_layer(self, inputs: ModelInputs, embeds_BSD: Tensor) -> dict[str, Tensor]:
        """Gemma 4's small models embed each token once more for every layer."""
        if not getattr(self.lm.config.get_text_config(), "hidden_size_per_layer_input", 0):
            return {}
        model: Any = self.lm.base_model
        embedded = model.get_per_layer_inputs(inputs.ids_BS, embeds_BSD)
        if inputs.replaced_BS is not None:  # nothing of a dropped token gets through
            embedded = embedded * (~inputs.replaced_BS)[..., None, None].to(embedded.dtype)
        return {"per_layer_inputs": embedded}

    def forward(
        self,
        inputs: ModelInputs,
        token_weights_BS: Tensor | None = None,
        teacher: TeacherView | None = None,
        as_teacher: bool = False,
        top_k: tuple[int, int] | None = None,
        likeliest_at_K: Tensor | None = None,
    ) -> tuple[Tensor, ...] | Tensor:
        """Loss and entropy at each position of the shard.

        Args:
            token_weights_BS: fp32 `[B, S]`, factors of the tokens' losses where these are known in
                advance: the head then computes logits once, not twice.
            teacher: whose predictions are part of that loss.
            as_teacher: return (hidden, output weight, output bias) instead.
            top_k: return the likeliest tokens behind nll and entropy: how many of how many ids.
            likeliest_at_K: places of the flattened shard; return only the likeliest next tokens.

        Returns:
            nll (in training with smoothing and z-loss, if the head has them) and entropy, fp32
            `[B, S]`, in nats; with token weights before them their loss, the only one that is
            then differentiable.
        """
        self.layer_dropout.begin(inputs.token_index_BS, inputs.visits)
        self.recurrences.begin(inputs.documents)
        self.older_attention.begin(inputs)
        self.length_rope.begin(inputs)
        for dropout in self._adapter_dropouts:
            dropout.begin(inputs.token_index_BS)
        embeds_BSD = self.lm.get_input_embeddings()(inputs.ids_BS)
        if inputs.replaced_BS is not None:
            embeds_BSD = self._replace(embeds_BSD, inputs.replaced_BS)
        if inputs.noise_BSD is not None:
            embeds_BSD = embeds_BSD + inputs.noise_BSD.to(embeds_BSD.dtype)
        if torch.is_grad_enabled() and not embeds_BSD.requires_grad:
            # of a frozen embedding: ZeRO-3 lets a layer go when its input has its gradient
            embeds_BSD.requires_grad_()
        hidden_BSD = self.lm.base_model(
            inputs_embeds=embeds_BSD,
            position_ids=inputs.position_ids_BS,
            use_cache=False,
            document_layout=inputs.documents,
            **self._embedded_per_layer(inputs, embeds_BSD),
        ).last_hidden_state
        if self._has_transform:
            hidden_BSD = self.lm.lm_head(hidden_BSD)
        head = self.lm.get_output_embeddings()
        if likeliest_at_K is not None:
            return head(hidden_BSD.flatten(0, 1)[likeliest_at_K])
        return head(
            hidden_BSD,
            inputs.targets_BS,
            token_weights_BS,
            teacher,
            as_teacher,
            top_k,
            max_weighted=inputs.max_weighted,
        )


def _has_transform(lm: PreTrainedModel) -> bool:
    """Whether `lm_head` stands between the layers and the output layer: ModernBERT's decoder."""
    head = getattr(lm, "lm_head", None)
    output = lm.get_output_embeddings()
    return isinstance(head, nn.Module) and all(each is not output for each in head.modules())


def resolve_model_config(model: Model, *, vocab_size: int, dtype: torch.dtype) -> PretrainedConfig:
    """The Hugging Face configuration of the recipe.

    Args:
        vocab_size: of the corpus; a configuration without one gets it.
        dtype: of the weights in training and export.

    Raises:
        ValueError: for a source that cannot be read, or an architecture with parts that this
            engine is known not to implement; `training.model.gate` finds the others.
    """
    refuse_unknown_source(model)
    try:
        if model.pretrained is not None:
            with without_retries_told(model.pretrained):
                config = AutoConfig.from_pretrained(
                    model.pretrained, trust_remote_code=model.trust_remote_code
                )
            folder = Path(model.pretrained)
            config = text_part(config, folder if folder.is_dir() else None)
        else:
            given = {"vocab_size": vocab_size, **(model.config or {})}
            config = AutoConfig.for_model(**copy.deepcopy(given))  # it writes into rope_parameters
            refuse_unknown_keys(given)
            refuse_idle_keys(given, config)
        text = config.get_text_config()
    except Exception as error:  # transformers raises errors of many kinds for a wrong value
        raise ValueError(why_unread(model, error)) from None
    if model.disable_dropout:
        disable_dropout(config)
    refuse_other_shapes(text)
    refuse_quantized(config)
    refuse_unsupported(text)
    config.dtype = dtype
    return config


def warn_of_remote_code(model: Model) -> None:
    """One line on stderr when the recipe allows third-party code to run."""
    if model.trust_remote_code:
        source = model.pretrained or "the model's folder"
        print(
            f"WARNING: model.trust_remote_code is set: Python code that comes with {source} runs "
            "with all permissions of this user",
            file=sys.stderr,
            flush=True,
        )


def build_model(
    model: Model,
    config: PretrainedConfig,
    *,
    ds_config: Mapping[str, Any],
    seed: int,
    z_loss: float = 0.0,
    regularisation: ModelRegularisation = NO_REGULARISATION,
    adapter: Adapter | None = None,
) -> CausalLMWithEntropy:
    """Create or load the weights, under ZeRO-3 partitioned from the start.

    Args:
        ds_config: the joined DeepSpeed configuration. With ZeRO stage 3 in it, transformers
            partitions while it initialises; `deepspeed.zero.Init` around `from_config` would
            leave the weights at torch's defaults.
        seed: of the initial weights; rank 0's are broadcast.
        z_loss: of the loss in training.
        regularisation: likewise in training alone.
        adapter: what trains beside the weights, which are then frozen. ZeRO-3 partitions it later,
            with the engine.
    """
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    # transformers keeps only a weak reference: it must live until the weights exist
    keep_alive = HfDeepSpeedConfig(dict(ds_config))
    register_attention()
    use_attention(model)
    allow_construction(config)
    torch.manual_seed(seed)
    common = {"attn_implementation": ATTENTION_NAME, "dtype": config.dtype}
    if model.pretrained is not None:
        with without_report():
            lm = AutoModelForCausalLM.from_pretrained(
                model.pretrained,
                config=config,
                key_mapping=name_rules(config),
                trust_remote_code=model.trust_remote_code,
                **common,
            )
    elif shards_all(ds_config):
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **common)
    else:
        with no_init_weights():  # as under ZeRO-3, so that a seed's weights are the same
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **common)
        lm.init_weights()
    if adapter is not None:
        inject_adapter(lm, adapter, seed=seed)
    if model.kernels == "liger":
        fuse_layers(lm)
    if model.tiled_mlp:
        tile_mlps(decoder_layers(lm))
    del keep_alive
    # rows are packed, without padding; torch would not train the row of that id, often the end's
    lm.get_input_embeddings().padding_idx = None  # type: ignore[assignment]
    if model.activation_checkpointing:
        checkpoint_layers(lm, offloads=model.activation_offloading)
    model_of_run = CausalLMWithEntropy(lm, regularisation, z_loss=z_loss, seed=seed)
    return model_of_run.train()  # from_pretrained leaves it in evaluation: no checkpointing, say
