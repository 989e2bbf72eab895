"""The chunked head equals plain logits in values and gradients, and never holds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from training.entrodrop.head import (
    linear_cross_entropy_with_entropy,
    weighted_linear_cross_entropy,
)

IGNORE = -100


def plain_head(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The reference: all logits at once, in fp32."""
    logits = hidden.float() @ weight.float().T
    log_probs = torch.log_softmax(logits, dim=1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=1)
    return cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none"), entropy


def make_inputs(
    dtype: torch.dtype, num_tokens: int = 37, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = (torch.randn(num_tokens, 24, generator=generator) * scale).to(dtype)
    weight = (torch.randn(211, 24, generator=generator) * 0.3).to(dtype)
    targets = torch.randint(0, 211, (num_tokens,), generator=generator)
    targets[::5] = IGNORE
    upstream = torch.randn(num_tokens, generator=generator)
    upstream[1::3] = 0.0
    return hidden.requires_grad_(), weight.requires_grad_(), targets, upstream


class Operators(TorchDispatchMode):
    """Those of torch that ran, and the numbers of the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.add(function.name().partition(".")[0])
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def relative_difference(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 100, None])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_head_agrees_with_plain_logits(dtype, bound, chunk_tokens):
    hidden, weight, targets, upstream = make_inputs(dtype)
    nll, entropy = linear_cross_entropy_with_entropy(
        hidden, weight, targets, chunk_tokens=chunk_tokens
    )
    found = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    expected_nll, expected_entropy = plain_head(hidden, weight, targets)
    expected = torch.autograd.grad((expected_nll * upstream).sum(), (hidden, weight))
    assert nll.dtype == entropy.dtype == torch.float32
    assert relative_difference(nll, expected_nll) < bound
    assert relative_difference(entropy, expected_entropy) < bound
    for gradient, reference in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        assert relative_difference(gradient, reference) < bound


@pytest.mark.parametrize("chunk_tokens", [1, 8, 37, 100, None])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_one_pass_gives_what_two_passes_give(dtype, bound, chunk_tokens):
    """Loss and gradients for weights known before, some of them zero, under a later factor."""
    hidden, weight, targets, token_weights = make_inputs(dtype)
    expected_nll, expected_entropy = plain_head(hidden, weight, targets)
    expected_loss = (expected_nll * token_weights).sum()
    expected = torch.autograd.grad(expected_loss * 7.0, (hidden, weight))
    loss, nll, entropy = weighted_linear_cross_entropy(
        hidden, weight, targets, token_weights, chunk_tokens=chunk_tokens
    )
    assert loss.requires_grad and not nll.requires_grad and not entropy.requires_grad
    assert loss.dtype == nll.dtype == entropy.dtype == torch.float32
    found = torch.autograd.grad(loss * 7.0, (hidden, weight))
    assert loss.item() == pytest.approx(expected_loss.item(), rel=10 * bound)
    assert relative_difference(nll, expected_nll) < bound
    assert relative_difference(entropy, expected_entropy) < bound
    for gradient, reference in zip(found, expected, strict=True):
        assert gradient.dtype == dtype
        assert relative_difference(gradient, reference) < bound


@pytest.mark.parametrize("num_passes", [1, 2])
def test_many_chunks_round_the_gradient_of_the_weight_hardly_more_than_one(num_passes):
    """Each product is rounded, their sum is not: at most another rounding of the same size."""
    hidden, weight, targets, _ = make_inputs(torch.bfloat16, num_tokens=512)
    (expected,) = torch.autograd.grad(plain_head(hidden, weight, targets)[0].sum(), weight)
    error = {}
    for chunk_tokens in (4, 512):
        if num_passes == 1:
            loss, *_ = weighted_linear_cross_entropy(
                hidden, weight, targets, torch.ones(512), chunk_tokens=chunk_tokens
            )
        else:
            nll, _ = linear_cross_entropy_with_entropy(
                hidden, weight, targets, chunk_tokens=chunk_tokens
            )
            loss = nll.sum()
        (found,) = torch.autograd.grad(loss, weight)
        error[chunk_tokens] = relative_difference(found, expected)
    assert error[4] < 2**0.5 * error[512]


@pytest.mark.parametrize("num_passes", [1, 2])
def test_rows_announced_beforehand_give_the_same_without_asking_the_device(num_passes):
    """Exactly as many as have a weight: bit for bit; more: those add zeros; fewer: refused."""
    hidden, weight, targets, weights = make_inputs(torch.float32)
    num_weighted = int(((weights != 0) & (targets != IGNORE)).sum())

    def gradients(max_weighted: int | None) -> tuple[Tensor, ...]:
        terms = {"chunk_tokens": 8, "max_weighted": max_weighted}
        if num_passes == 1:
            loss = weighted_linear_cross_entropy(hidden, weight, targets, weights, **terms)[0]
        else:
            nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets, **terms)
            loss = nll @ weights
        return torch.autograd.grad(loss, (hidden, weight))

    expected = gradients(None)
    with Operators() as operators:
        found = gradients(num_weighted)
    assert "aten::mm" in operators.names
    assert "aten::nonzero" not in operators.names  # on a GPU it waits for all that came before
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))
    for more in (num_weighted + 3, 37):
        for f, e in zip(gradients(more), expected, strict=True):
            assert relative_difference(f, e) < 1e-6
    with pytest.raises(RuntimeError, match="more rows have a weight than were announced"):
        gradients(num_weighted - 1)


def test_a_second_backward_of_one_pass_is_refused():
    """Its gradients are scaled in place: a second use would scale them twice."""
    hidden, weight, targets, token_weights = make_inputs(torch.float32)
    loss, _, _ = weighted_linear_cross_entropy(hidden, weight, targets, token_weights)
    torch.autograd.grad(loss, hidden, retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, hidden)


@pytest.mark.parametrize("chunk_tokens", [1, 8, None])
@pytest.mark.parametrize(
    ("smoothing", "z_loss", "softcap"),
    [(0.1, 0.0, 0.0), (0.9, 0.0, 0.0), (0.0, 1e-2, 0.0), (0.1, 0.1, 0.0), (0.1, 0.1, 1.5)],
)
def test_terms_of_the_loss_are_those_of_torch(smoothing, z_loss, softcap, chunk_tokens):
    hidden, weight, targets, upstream = make_inputs(torch.float32)
    terms = {"label_smoothing": smoothing, "z_loss": z_loss, "softcap": softcap}
    terms["chunk_tokens"] = chunk_tokens
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    expected_nll = cross_entropy(
        logits, targets, ignore_index=IGNORE, reduction="none", label_smoothing=smoothing
    )
    expected_nll = expected_nll + z_loss * (targets != IGNORE) * logits.logsumexp(1).square()
    expected = torch.autograd.grad((expected_nll * upstream).sum(), (hidden, weight))

    nll, entropy = linear_cross_entropy_with_entropy(hidden, weight, targets, **terms)
    found = torch.autograd.grad((nll * upstream).sum(), (hidden, weight))
    loss, nll_once, entropy_once = weighted_linear_cross_entropy(
        hidden, weight, targets, upstream, **terms
    )
    found_once = torch.autograd.grad(loss, (hidden, weight))
    for value in (nll, nll_once):
        assert relative_difference(value, expected_nll) < 1e-6
    for value in (entropy, entropy_once):
        log_probs = logits.log_softmax(1)
        assert relative_difference(value, -(log_probs.exp() * log_probs).sum(1)) < 1e-6
    for gradients in (found, found_once):
        for gradient, reference in zip(gradients, expected, strict=True):
            assert relative_difference(gradient, reference) < 1e-5


@pytest.mark.parametrize("chunk_tokens", [8, None])
def test_a_bias_of_the_output_layer_is_that_of_torch(chunk_tokens):
    hidden, weight, targets, upstream = make_inputs(torch.float32)
    bias = torch.linspace(-1, 1, 211).requires_grad_()
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected_nll = cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")
    inputs = (hidden, weight, bias)
    expected = torch.autograd.grad((expected_nll * upstream).sum(), inputs)
    terms = {"bias": bias, "chunk_tokens": chunk_tokens}
    nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets, **terms)
    found = torch.autograd.grad((nll * upstream).sum(), inputs)
    loss, nll_once, _ = weighted_linear_cross_entropy(hidden, weight, targets, upstream, **terms)
    found_once = torch.autograd.grad(loss, inputs)
    for value in (nll, nll_once):
        assert relative_difference(value, expected_nll) < 1e-6
    for gradients in (found, found_once):
        for gradient, reference in zip(gradients, expected, strict=True):
            assert relative_difference(gradient, reference) < 1e-5


def test_ignored_targets_have_no_loss_and_no_gradient():
    hidden, weight, targets, _ = make_inputs(torch.float32)
    nll, entropy = linear_cross_entropy_with_entropy(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(nll.sum(), hidden)
    is_ignored = targets == IGNORE
    assert (nll[is_ignored] == 0).all()
    assert (gradient[is_ignored] == 0).all()
    assert (gradient[~is_ignored] != 0).any(dim=1).all()
    assert (entropy > 0).all()  # of every position, target or not


@pytest.mark.parametrize("num_passes", [1, 2])
def test_a_frozen_weight_has_no_gradient_and_takes_no_memory_for_one(num_passes):
    hidden, weight, targets, upstream = make_inputs(torch.float32)

    def gradient_of_hidden() -> Tensor:
        if num_passes == 1:
            loss = weighted_linear_cross_entropy(hidden, weight, targets, upstream)[0]
        else:
            loss = linear_cross_entropy_with_entropy(hidden, weight, targets)[0] @ upstream
        saved = [t for t in loss.grad_fn.saved_tensors if t is not None] if num_passes == 1 else []
        assert any(t.shape == weight.shape for t in saved) is (
            num_passes == 1 and weight.requires_grad
        )
        return torch.autograd.grad(loss, hidden)[0]

    expected = gradient_of_hidden()
    weight.requires_grad_(False)
    assert torch.equal(gradient_of_hidden(), expected)


def test_zero_upstream_gradient_gives_zero_gradients():
    hidden, weight, targets, _ = make_inputs(torch.float32)
    nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets)
    for gradient in torch.autograd.grad((nll * 0).sum(), (hidden, weight)):
        assert (gradient == 0).all()


def test_entropy_carries_no_gradient():
    hidden, weight, targets, _ = make_inputs(torch.float32)
    nll, entropy = linear_cross_entropy_with_entropy(hidden, weight, targets)
    assert nll.requires_grad
    assert not entropy.requires_grad


def test_certain_predictions_have_entropy_zero_and_finite_loss():
    hidden, weight, targets, upstream = make_inputs(torch.float32, scale=1e4)
    nll, entropy = linear_cross_entropy_with_entropy(hidden, weight, targets)
    (gradient,) = torch.autograd.grad((nll * upstream).sum(), hidden)
    assert torch.isfinite(nll).all()
    assert torch.isfinite(gradient).all()
    assert (entropy >= 0).all()
    assert (entropy == 0).any()


def test_no_tokens_are_no_trouble():
    hidden, weight = torch.zeros(0, 4, requires_grad=True), torch.ones(9, 4, requires_grad=True)
    nll, entropy = linear_cross_entropy_with_entropy(hidden, weight, torch.zeros(0).long())
    nll.sum().backward()
    assert nll.shape == entropy.shape == (0,)
    loss, *_ = weighted_linear_cross_entropy(hidden, weight, torch.zeros(0).long(), torch.zeros(0))
    loss.backward()
    assert loss == 0
    assert (weight.grad == 0).all()


def test_no_tensor_holds_the_logits_of_all_tokens():
    """The largest tensor that forward and backward make is a chunk of logits or a gradient."""
    hidden = torch.randn(512, 8, requires_grad=True)
    weight = torch.randn(1000, 8, requires_grad=True)
    targets = torch.randint(0, 1000, (512,))
    with Operators() as operators:
        nll, _ = linear_cross_entropy_with_entropy(hidden, weight, targets, chunk_tokens=16)
        nll.sum().backward()
    assert operators.largest == 16 * 1000
