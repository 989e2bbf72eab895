"""Dropout inside layers: where it acts, on what, and the same when a layer is computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from training.model.causal_lm import CausalLMWithEntropy, decoder_layers
from training.model.inputs import ModelRegularisation
from training.model.layer_parts import attention_of, last_matrix_of_mlp

ROWS, LENGTH, HIDDEN, INNER, LAYERS = 60, 20, 32, 48, 3
RATE = 0.25


def model_of(kind: str) -> PreTrainedModel:
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 50}
    config = AutoConfig.for_model(kind, **sizes)
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    assert isinstance(lm, PreTrainedModel)
    return lm


@pytest.mark.parametrize(
    ("kind", "attention", "matrix"),
    [
        ("qwen3", "self_attn", "mlp.down_proj"),
        ("gpt2", "attn", "mlp.c_proj"),
        ("opt", "self_attn", "fc2"),
    ],
)
def test_the_parts_of_a_layer_are_found(kind, attention, matrix):
    for layer in decoder_layers(model_of(kind)):
        assert attention_of(layer) is layer.get_submodule(attention)
        assert last_matrix_of_mlp(layer) is layer.get_submodule(matrix)


def test_a_layer_without_such_parts_is_refused_by_name():
    experts, bloom = (decoder_layers(model_of(kind))[0] for kind in ("mixtral", "bloom"))
    with pytest.raises(ValueError, match="mlp_dropout: no plain MLP is known in MixtralDecoder"):
        last_matrix_of_mlp(experts)
    with pytest.raises(ValueError, match=r"attention_output_dropout: no attention .* BloomBlock"):
        attention_of(bloom)  # its output holds the residual stream


class Seen:
    """What goes into and comes out of the parts of each layer, as hooks meet it."""

    def __init__(self, lm: PreTrainedModel) -> None:
        self.inner: list[Tensor] = []
        self.attended: list[Tensor] = []
        self.given: list[Tensor] = []
        self.found: list[Tensor] = []
        for layer in decoder_layers(lm):
            attention_of(layer).register_forward_hook(
                lambda module, inputs, output: self.attended.append(output[0].detach())
            )
            last_matrix_of_mlp(layer).register_forward_pre_hook(
                lambda module, inputs: self.inner.append(inputs[0].detach())
            )
            layer.register_forward_hook(self._layer)

    def _layer(self, module: Any, inputs: Any, output: Tensor) -> None:
        self.given.append(inputs[0].detach())
        self.found.append(output.detach())


def run(rates: ModelRegularisation, *, checkpointing: bool = False) -> Any:
    """One forward and backward pass: what hooks saw before and after ours, and gradients."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "qwen3",
        **{"vocab_size": 50, "hidden_size": HIDDEN, "intermediate_size": INNER},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1},
        **{"head_dim": 16, "initializer_range": 0.2},
    )
    lm = AutoModelForCausalLM.from_config(config)
    if checkpointing:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    before = Seen(lm)
    model = CausalLMWithEntropy(lm, rates, seed=5)
    after = Seen(lm)
    index = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) + 7 * LENGTH
    model.layer_dropout.begin(index, tuple(range(7, ROWS + 7)))
    model.train()
    embeds = torch.randn(ROWS, LENGTH, HIDDEN, requires_grad=True)
    lm.base_model(inputs_embeds=embeds).last_hidden_state.square().mean().backward()
    gradients = {name: w.grad for name, w in lm.named_parameters() if w.grad is not None}
    return before, after, gradients


def test_channels_of_mlp_and_attention_drop_in_each_layer_on_their_own():
    rates = ModelRegularisation(mlp_dropout=RATE, attention_output_dropout=0.5)
    before, after, _ = run(rates)
    masks = []
    for name, rate in (("inner", RATE), ("attended", 0.5)):
        pairs = zip(getattr(before, name), getattr(after, name), strict=True)
        for given, found in pairs:
            is_kept = found != 0
            torch.testing.assert_close(found, given * is_kept / (1 - rate))
            assert float(is_kept.double().mean()) == pytest.approx(1 - rate, abs=0.01)
            masks.append(is_kept[..., :HIDDEN].double())
    assert len(masks) == 2 * LAYERS
    independent = 2 * RATE * (1 - RATE)
    assert float((masks[0] != masks[1]).double().mean()) == pytest.approx(independent, abs=0.02)


def test_layers_are_skipped_by_sample_and_later_ones_more_often():
    rate = 0.6
    before, after, _ = run(ModelRegularisation(stochastic_depth=rate))
    skipped = []
    for number in range(LAYERS):
        given, found = before.given[number], after.found[number]
        own = rate * (number + 1) / LAYERS
        is_skipped = (found == given).flatten(1).all(dim=1)
        whole = given + (before.found[number] - given) / (1 - own)
        torch.testing.assert_close(found[~is_skipped], whole[~is_skipped])
        torch.testing.assert_close(found[is_skipped], given[is_skipped])
        skipped.append(float(is_skipped.double().mean()))
    assert skipped == pytest.approx([0.2, 0.4, 0.6], abs=0.16)  # of 60 samples


def test_checkpointing_draws_the_same_again():
    rates = ModelRegularisation(
        mlp_dropout=RATE, attention_output_dropout=RATE, stochastic_depth=0.5, hidden_dropout=RATE
    )
    _, _, expected = run(rates)
    _, _, found = run(rates, checkpointing=True)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
