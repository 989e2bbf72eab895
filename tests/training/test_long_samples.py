"""Tiled MLPs and offloaded activations: the same numbers, less held at a time, and refusals.

B rows, S tokens, D hidden.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

from tests.distributed import run_ranks
from tests.grids import WHOLE
from tests.training.entrodrop.test_head import Operators
from tests.training.families import forget_shards
from tests.training.gates import SEQUENCE_TOKENS
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import LAYOUTS, make_engine, step_without_update
from tests.training.refusals import refused
from training.config.sections import Model
from training.model import offloading
from training.model.gate import find_other_numbers
from training.model.offloading import checkpoint_layers
from training.model.tiled_mlp import tile_mlps
from training.model.tiny import plain_model
from training.ranks.dist import init_layout
from training.run.fit import find_no_part

HIDDEN, INNER, TOKENS = 16, 96, 1000
LEVERS: dict[str, dict[str, Any]] = {
    "none": {},
    "tiled": {"model__tiled_mlp": True},
    "tiled, checkpointed, offloaded": {
        "model__tiled_mlp": True,
        "model__activation_checkpointing": True,
        "model__activation_offloading": True,
    },
}


class Layer(nn.Module):
    """What tiles are made for: a layer whose MLP has a name."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = AutoConfig.for_model("qwen3", hidden_size=HIDDEN, intermediate_size=INNER)
        self.mlp = Qwen3MLP(config).to(dtype)


def numbers(layer: Layer) -> dict[str, Tensor]:
    """Output and gradients of two rows."""
    generator = torch.Generator().manual_seed(1)
    dtype = layer.mlp.down_proj.weight.dtype
    hidden_BSD = torch.randn(2, TOKENS // 2, HIDDEN, generator=generator).to(dtype)
    hidden_BSD.requires_grad_()
    output = layer.mlp(hidden_BSD)
    weights = dict(layer.mlp.named_parameters())
    found = torch.autograd.grad(output.float().square().sum(), [hidden_BSD, *weights.values()])
    return {"output": output.detach(), "hidden": found[0]} | dict(
        zip(weights, found[1:], strict=True)
    )


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tiles_change_no_number_and_sums_over_them_round_once(dtype):
    """The last of the 63 tiles is shorter. In bf16 sums of as many would be off by more."""
    plain, tiled = Layer(dtype), Layer(dtype)
    tile_mlps([tiled])
    before, after = numbers(plain), numbers(tiled)
    if dtype == torch.float64:
        for name, expected in before.items():
            assert relative(after[name], expected) < 1e-12, name
        return
    exact = Layer(dtype).double()
    expected = numbers(exact)
    for name, number in expected.items():
        rounding = torch.finfo(dtype).eps / 2
        assert relative(after[name], number) <= relative(before[name], number) + rounding, name


def test_inner_channels_exist_for_one_tile_at_a_time():
    layer = Layer(torch.float32)
    with Operators() as operators:
        numbers(layer)
    assert operators.largest == TOKENS * INNER
    tile_mlps([layer])
    with Operators() as operators:
        numbers(layer)
    assert operators.largest == TOKENS * HIDDEN
    kept: list[int] = []
    with saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        layer.mlp(torch.randn(1, TOKENS, HIDDEN, requires_grad=True))
    assert kept == [TOKENS * HIDDEN]


def test_a_layer_may_change_the_output_in_place():
    """As Falcon's does."""
    layer = Layer(torch.float32)
    tile_mlps([layer])
    hidden = torch.randn(1, TOKENS, HIDDEN, requires_grad=True)
    output = layer.mlp(hidden)
    output += hidden
    output.sum().backward()
    assert hidden.grad is not None


def test_few_tokens_are_one_tile_as_before():
    layer = Layer(torch.float32)
    tile_mlps([layer])
    output = layer.mlp(torch.randn(1, HIDDEN, HIDDEN))
    assert "Tiled" not in type(output.grad_fn).__name__


def test_only_the_inputs_of_layers_are_offloaded(monkeypatch):
    class Counted(saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(lambda x: packed.append(tuple(x.shape)) or x, lambda x: x)

    packed: list[tuple[int, ...]] = []
    monkeypatch.setattr(offloading, "save_on_cpu", Counted)
    model = tiny_recipe().model
    lm = plain_model(model, AutoConfig.for_model(**model.config)).train()
    ids = torch.zeros(1, 32, dtype=torch.long)
    checkpoint_layers(lm, offloads=False)
    lm(input_ids=ids)
    assert not packed
    checkpoint_layers(lm, offloads=True)
    lm(input_ids=ids).logits.sum().backward()
    assert packed == [(1, 32, HIDDEN)] * 2


def steps_with_levers(sp_size: int, micro_batch_samples: int) -> list[dict[str, Any]]:
    """A step of one model with none of them, and with each."""
    layout = init_layout(sp_size=sp_size)
    found = []
    for name, changes in LEVERS.items():
        if name == "tiled" and not WHOLE:
            continue
        recipe = tiny_recipe(
            regulariser="none",
            train__micro_batch_samples=micro_batch_samples,
            train__sequence_parallel_size=sp_size,
            **changes,
        )
        engine, stream = make_engine(recipe, layout)
        found.append(step_without_update(recipe, engine, stream))
        engine.ds.destroy()
        forget_shards()
    return found


@pytest.mark.parametrize("layout", LAYOUTS if WHOLE else ["sp_2"])
def test_a_step_has_the_same_loss_and_gradients(layout):
    world_size, sp_size, rows = LAYOUTS[layout]
    for plain, *others in run_ranks(steps_with_levers, sp_size, rows, world_size=world_size):
        for other in others:
            assert other["row"]["loss"] == pytest.approx(plain["row"]["loss"], rel=1e-6)
            for name, expected in plain["gradients"].items():
                assert relative(other["gradients"][name], expected) < 1e-5, name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"model__activation_offloading": True},
            "model.activation_offloading moves what model.activation_checkpointing keeps: set that",
        ),
        (
            {"model__tiled_mlp": True, "regulariser": "mlp_dropout"},
            "regularisers: mlp_dropout draws for whole rows, of which model.tiled_mlp gives",
        ),
        (
            {
                "model": {"pretrained": "org/base", "tiled_mlp": True},
                "adapter": {"kind": "lora", "dropout": 0.1},
            },
            "adapter.dropout: 0.1 draws for whole rows, of which model.tiled_mlp gives",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, told):
    assert told in refused(lambda: tiny_recipe(**changes))


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("qwen3_moe", "no plain MLP is known in Qwen3MoeDecoderLayer (it has self_attn, mlp"),
        ("opt", "no plain MLP is known in OPTDecoderLayer"),
        ("bloom", "no plain MLP is known in BloomBlock"),
        ("llama", None),
        ("gpt_neox", None),
    ],
)
def test_layers_without_a_plain_mlp_are_refused_by_name(family, told):
    config = AutoConfig.for_model(family)
    recipe = tiny_recipe(model={"config": {"model_type": family}, "tiled_mlp": True})
    found = find_no_part(recipe, config)
    assert (found is None) if told is None else f"model.tiled_mlp: {told}" in found


def test_layers_that_hide_their_input_are_found(monkeypatch):
    def by_keyword(lm: Any, *, offloads: bool) -> None:
        checkpoint_layers(lm, offloads=offloads)
        for layer in lm.model.layers:
            run = layer.forward
            layer.forward = lambda hidden, run=run, **named: run(hidden_states=hidden, **named)

    monkeypatch.setattr("training.model.gate.checkpoint_layers", by_keyword)
    keys = {"activation_checkpointing": True, "activation_offloading": True}
    model = Model(config={"model_type": "llama"}, **keys)
    config = AutoConfig.for_model("llama")
    message = find_other_numbers(model, config, sequence_tokens=SEQUENCE_TOKENS)
    assert message is not None and "its layers take hidden states by keyword" in message
