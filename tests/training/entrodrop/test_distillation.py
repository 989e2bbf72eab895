"""Cross-entropy to a teacher equals that of plain logits, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.entrodrop import distillation
from training.entrodrop.distillation import OutputLayer, soft_cross_entropy


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * 0.5).to(dtype)


def plain_loss(
    hidden: Tensor,
    layer: OutputLayer,
    teacher_hidden: Tensor,
    teacher_layer: OutputLayer,
    weights: Tensor,
    *,
    softcap: float,
) -> Tensor:
    """All logits at once, in fp64."""

    def logits(hidden: Tensor, layer: OutputLayer) -> Tensor:
        found = hidden.double() @ layer.weight_VD.double().T
        found = found if layer.bias_V is None else found + layer.bias_V.double()
        return softcap * torch.tanh(found / softcap) if softcap else found

    q = logits(teacher_hidden, teacher_layer).softmax(dim=1)
    log_p = logits(hidden, layer).log_softmax(dim=1)
    return (-(q * log_p).sum(dim=1) * weights).sum()


@pytest.mark.parametrize("chunk_logits", [1, 50 * 7, 1 << 20])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_values_and_gradients_are_those_of_plain_logits(
    monkeypatch, dtype, bound, has_bias, softcap, chunk_logits
):
    monkeypatch.setattr(distillation, "_CHUNK_LOGITS", chunk_logits)
    hidden, weight = (random(n, 16, seed=n, dtype=dtype).requires_grad_() for n in (23, 50))
    bias = random(50, seed=1, dtype=dtype).requires_grad_() if has_bias else None
    teacher_hidden = random(23, 16, seed=2, dtype=dtype)
    teacher = OutputLayer(random(50, 16, seed=3, dtype=dtype), bias)
    weights = torch.rand(23, generator=torch.Generator().manual_seed(4))
    weights[::4] = 0.0
    student = [hidden, weight, *([bias] if bias is not None else [])]
    given = (hidden, OutputLayer(weight, bias), teacher_hidden, teacher, weights)
    detached = (
        *given[:3],
        OutputLayer(*(t if t is None else t.detach() for t in teacher)),
        weights,
    )
    found = soft_cross_entropy(*given, softcap=softcap)
    expected = plain_loss(*detached, softcap=softcap)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(float(expected), rel=bound)
    gradients = torch.autograd.grad(3.0 * found, student)
    for gradient, reference in zip(
        gradients, torch.autograd.grad(3.0 * expected, student), strict=True
    ):
        assert gradient.dtype == dtype
        error = (gradient.double() - reference.double()).norm() / reference.double().norm()
        assert error < bound


def test_a_teacher_that_predicts_the_same_moves_nothing():
    hidden, weight = (random(n, 16, seed=n, dtype=torch.float32).requires_grad_() for n in (9, 50))
    layer = OutputLayer(weight.detach())
    loss = soft_cross_entropy(hidden, OutputLayer(weight), hidden.detach(), layer, torch.ones(9))
    p = (hidden @ weight.T).softmax(dim=1)
    assert float(loss) == pytest.approx(float(-(p * p.log()).sum()), rel=1e-6)  # their entropy
    assert all(float(g.abs().max()) < 1e-6 for g in torch.autograd.grad(loss, (hidden, weight)))
