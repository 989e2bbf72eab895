"""Checks of what only a GPU runs: kernels, flash attention, the head in bf16, a skipped step.

Each takes the device and whether shapes are small, returns figures by name, and raises
AssertionError where one is beyond its bound. C rows of a chunk, V vocabulary, T tokens, H heads,
E numbers a head.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from benchmarks.gpu_proof.rows import Figures, need_package
from tests.training.layouts import tiny_recipe
from tests.training.measured_layouts import make_engine
from tests.training.stand_in_liger import stand_in_liger
from training.config.sections import Model
from training.data.documents import find_documents
from training.entrodrop import softmax_rows, softmax_rows_triton
from training.entrodrop.head import weighted_linear_cross_entropy
from training.model.attention import document_attention
from training.model.causal_lm import resolve_model_config
from training.model.engine import Engine
from training.model.flash_choice import check_attention, choices_here, measure_attention
from training.model.fused_check import measure_errors
from training.model.fused_layers import FAMILIES
from training.model.inputs import ModelInputs
from training.ranks.dist import init_layout

_ONE_ROUNDING = 2**-8
"""Relative, of a number to bf16: what is compared in norms may be off by as much."""


def kernels(device: str, small: bool) -> Figures:
    """Triton's rows against torch's, in every shape that training uses."""
    vocabularies = (257,) if small else (151_936, 128_256)
    worst = 0.0
    for vocab, num_rows in (
        (v, c) for v in vocabularies for c in (1, 15, *(() if small else (220, 1024)))
    ):
        logits_CV = (torch.randn(num_rows, vocab) * 4).to(device, torch.bfloat16)
        worst = max(worst, _rows_differ(logits_CV))
    return {"relative_difference": worst}


def kernels_beyond_int32(device: str, small: bool) -> Figures:
    """Rows whose offset in memory needs more than 31 bits."""
    num_rows, vocab = (8, 257) if small else (15_000, 151_936)
    whole = torch.empty(num_rows, vocab, dtype=torch.bfloat16, device=device)
    whole[-4:] = torch.randn(4, vocab).to(whole)
    return {
        "relative_difference": _rows_differ(whole[-4:]),
        "offset": float((num_rows - 4) * vocab),
    }


def _rows_differ(logits_CV: Tensor) -> float:
    """The most that statistics or gradients differ by: each rounds once."""
    num_rows, vocab = logits_CV.shape
    targets_C = torch.arange(num_rows, device=logits_CV.device) % vocab
    found, expected = (
        rows.row_statistics(logits_CV, targets_C) for rows in (softmax_rows_triton, softmax_rows)
    )
    scale_C = torch.linspace(0.5, 1.5, num_rows, device=logits_CV.device)
    gradients = []
    for rows in (softmax_rows_triton, softmax_rows):
        gradient_CV = logits_CV.clone()
        rows.row_gradient_(
            gradient_CV,
            targets_C,
            expected,
            prob_scale_C=scale_C,
            target_scale_C=scale_C,
            uniform_C=torch.zeros_like(scale_C),
        )
        gradients.append(gradient_CV)
    pairs = [*zip(found, expected, strict=True), (gradients[0], gradients[1])]
    worst = max(_difference(*pair) for pair in pairs)
    assert worst < 2 * _ONE_ROUNDING, f"{num_rows} rows of {vocab}: {worst:.1e}"
    return worst


def attention(device: str, small: bool) -> Figures:
    """Documents with grouped queries in bf16 against plain attention in fp32, with gradients."""
    lengths = (5, 1, 10) if small else (700, 1, 90, 233)
    states = _states(lengths, num_heads=4 if small else 16, head_size=8 if small else 128)
    found = _attend(states, lengths, device=device)
    exact = [torch.cat(_plain(states, lengths), dim=1)]
    exact += torch.autograd.grad(exact[0].square().sum(), states)
    worst = max(_difference(f.cpu(), e) for f, e in zip(found, exact, strict=True))
    assert worst < 4 * _ONE_ROUNDING, f"context or a gradient differs by {worst:.1e}"
    figures = {"relative_difference": worst}
    here = torch.device(device)
    for name in choices_here(here):  # flash attention 3 and 4, where their packages are
        check_attention(Model(config={"model_type": "qwen3"}, attention=name), device=here)
        figures[name] = measure_attention(here, window=None)
    return figures


def documents(device: str, small: bool) -> Figures:
    """Another first document changes no bit behind it."""
    lengths = (6, 10) if small else (600, 424)
    states = _states(lengths, num_heads=4, head_size=8 if small else 64)
    others = [state.detach().clone().requires_grad_() for state in states]
    for other in others:
        other.data[:, :, : lengths[0]] = 3.0
    before, after = (_attend(each, lengths, device=device)[0] for each in (states, others))
    assert torch.equal(before[:, lengths[0] :], after[:, lengths[0] :]), "documents see each other"
    assert not torch.equal(before[:, : lengths[0]], after[:, : lengths[0]])
    return {"tokens_compared": float(lengths[1])}


def _states(lengths: tuple[int, ...], *, num_heads: int, head_size: int) -> list[Tensor]:
    """Query, key and value `[1, H, T, E]` in fp32 that bf16 holds exactly; two queries to a key."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, sum(lengths), head_size, generator=generator)
        .bfloat16()
        .float()
        .requires_grad_()
        for heads in (num_heads, num_heads // 2, num_heads // 2)
    ]


def _attend(states: list[Tensor], lengths: tuple[int, ...], *, device: str) -> list[Tensor]:
    """Context and gradients of the attention that trains, in bf16."""
    inputs = [state.detach().to(device, torch.bfloat16).requires_grad_() for state in states]
    positions_BT = torch.cat([torch.arange(length) for length in lengths])[None]
    layout = find_documents(positions_BT, device=torch.device(device))
    context, _ = document_attention(nn.Module(), *inputs, None, document_layout=layout)
    return [context, *torch.autograd.grad(context.float().square().sum(), inputs)]


def _plain(states: list[Tensor], lengths: tuple[int, ...]) -> list[Tensor]:
    parts = zip(*(state.split(lengths, dim=2) for state in states), strict=True)
    return [
        scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        for q, k, v in parts
    ]


def fused_layers(device: str, small: bool) -> Figures:
    """Layers with Liger's kernels, of each family, as far from exact ones as plain ones are.

    Needs the extra [kernels]; on a CPU a stand-in in torch, of one family.
    """
    if device == "cuda":
        need_package("liger_kernel")
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "head_dim")
    sizes = dict(zip(names, (64, 96, 4, 16) if small else (2048, 5632, 16, 128), strict=True))
    families, kernels = (
        (FAMILIES, nullcontext()) if device == "cuda" else (("qwen3",), stand_in_liger())
    )
    worst = 0.0
    for family in families:
        named = {"model_type": family, "num_key_value_heads": 2, "pad_token_id": 0, **sizes}
        model = Model(config=named, kernels="liger")
        config = resolve_model_config(model, vocab_size=64, dtype=torch.bfloat16)
        with kernels:
            errors = measure_errors(model, config, device=torch.device(device))
        for name, (fused, plain, most) in errors.items():
            assert fused <= most, f"{family}: {name} is off by {fused:.1e}, plain by {plain:.1e}"
            worst = max(worst, fused / most)
    return {"of_the_bound": worst}


def head(device: str, small: bool) -> Figures:
    """Losses and gradients of the chunked head in bf16 against plain logits in fp32."""
    num_tokens, hidden_size, vocab = (48, 16, 300) if small else (2048, 1024, 151_936)
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(num_tokens, hidden_size, generator=generator)
    weight_VD = torch.randn(vocab, hidden_size, generator=generator) * 0.05
    hidden_ND, weight_VD = (
        x.to(device, torch.bfloat16).requires_grad_() for x in (hidden_ND, weight_VD)
    )
    targets_N = torch.randint(0, vocab, (num_tokens,), generator=generator).to(device)
    chunk = 8 if small else None
    loss, nll_N, _ = weighted_linear_cross_entropy(
        hidden_ND, weight_VD, targets_N, torch.ones_like(targets_N).float(), chunk_tokens=chunk
    )
    found = [nll_N, *torch.autograd.grad(loss, (hidden_ND, weight_VD))]
    logits_NV = hidden_ND.float() @ weight_VD.float().T
    expected_N = cross_entropy(logits_NV, targets_N, reduction="none")
    expected = [expected_N, *torch.autograd.grad(expected_N.sum(), (hidden_ND, weight_VD))]
    names = ("loss", "hidden", "weight")
    differences = {n: _difference(*pair) for n, *pair in zip(names, found, expected, strict=True)}
    assert max(differences.values()) < 2 * _ONE_ROUNDING, differences
    return differences


def skipped_step(device: str, small: bool) -> Figures:
    """A loss that is no number changes no weight, and the next step does."""
    layout = init_layout(sp_size=1)
    recipe = tiny_recipe(deepspeed="ds_configs/zero3.json", train__micro_batch_samples=8)
    capturing, stream = make_engine(recipe, layout)
    engine = Engine(**{name: getattr(capturing, name) for name in Engine.__dataclass_fields__})
    batch = stream.step(0)[0]
    sums = []
    for factor in (float("nan"), 1.0):
        before = _sum_of_weights(engine)
        loss, _ = engine.weighted_loss(ModelInputs.of(batch), batch.is_target_BS.float())
        engine.backward_and_step(loss * factor, divisor=100.0, lr=1e-2)
        sums.append((before, _sum_of_weights(engine), engine.updated))
    (before, after, was_updated), (_, later, is_updated) = sums
    assert not was_updated and before == after, "a step without a gradient changed weights"
    assert is_updated and later != after, "the step after it did not"
    return {"sum_of_weights": before, "after_a_step": later}


def _sum_of_weights(engine: Engine) -> float:
    from deepspeed import zero

    weights: Any = list(engine.trained.values())
    with zero.GatheredParameters(weights):
        return sum(float(weight.detach().double().abs().sum()) for weight in weights)


def _difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
