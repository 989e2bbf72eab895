"""Cross-entropy to a teacher equals that of plain logits, in value and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from training.entrodrop import distillation
from training.entrodrop.distillation import (
    OutputLayer,
    TopK,
    likeliest_tokens,
    soft_cross_entropy,
    top_k_cross_entropy,
)


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
    assert found.item() == pytest.approx(expected.item(), rel=bound)
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
    assert loss.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-6)  # their entropy
    assert all(float(g.abs().max()) < 1e-6 for g in torch.autograd.grad(loss, (hidden, weight)))


def plain_top_k_loss(
    hidden: Tensor, layer: OutputLayer, teacher: TopK, weights: Tensor, *, softcap: float
) -> Tensor:
    """All logits at once, in fp64; what is not kept is named id by id."""
    logits = hidden.double() @ layer.weight_VD.double().T
    logits = logits if layer.bias_V is None else logits + layer.bias_V.double()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    log_p, q = logits.log_softmax(dim=1), teacher.log_probs_NJ.double().softmax(dim=1)
    losses = []
    for row, ids in enumerate(teacher.ids_NK.tolist()):
        others = [i for i in range(logits.shape[1]) if i not in ids]
        of_kept = (q[row, :-1] * log_p[row, ids]).sum()
        losses.append(-of_kept - q[row, -1] * log_p[row, others].logsumexp(dim=0))
    return (torch.stack(losses) * weights).sum()


@pytest.mark.parametrize(
    ("dtype", "bound", "has_bias", "softcap", "chunk_logits"),
    [
        (torch.float32, 1e-5, False, 0.0, 50 * 7),
        (torch.float32, 1e-5, True, 2.0, 1 << 20),
        (torch.bfloat16, 2e-2, True, 0.0, 1),
    ],
)
def test_the_likeliest_tokens_teach_as_plain_logits_say(
    monkeypatch, dtype, bound, has_bias, softcap, chunk_logits
):
    monkeypatch.setattr(distillation, "_CHUNK_LOGITS", chunk_logits)
    hidden, weight = (random(n, 16, seed=n, dtype=dtype).requires_grad_() for n in (23, 50))
    bias = random(50, seed=1, dtype=dtype).requires_grad_() if has_bias else None
    layer = OutputLayer(weight, bias)
    theirs = OutputLayer(random(50, 16, seed=3, dtype=dtype))
    teacher = likeliest_tokens(random(23, 16, seed=2, dtype=dtype), theirs, k=6, num_ids=50)
    teacher = TopK(teacher.ids_NK, teacher.log_probs_NJ.half())
    weights = torch.rand(23, generator=torch.Generator().manual_seed(4))
    weights[::4] = 0.0
    found = top_k_cross_entropy(hidden, layer, teacher, weights, softcap=softcap)
    expected = plain_top_k_loss(hidden, layer, teacher, weights, softcap=softcap)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=bound)
    student = [hidden, weight, *([bias] if bias is not None else [])]
    gradients = torch.autograd.grad(3.0 * found, student)
    references = torch.autograd.grad(3.0 * expected, student)
    for gradient, reference in zip(gradients, references, strict=True):
        error = (gradient.double() - reference.double()).norm() / reference.double().norm()
        assert error < bound


def test_a_student_that_is_sure_of_the_kept_tokens_learns_of_the_others():
    """What is left of 1 would be 0 in fp32, its logarithm infinite."""
    weight = random(50, 16, seed=50, dtype=torch.float32)
    hidden = (60.0 * random(9, 16, seed=9, dtype=torch.float32)).requires_grad_()
    layer, weights = OutputLayer(weight), torch.ones(9)
    teacher = likeliest_tokens(hidden.detach() / 60.0, layer, k=6, num_ids=50)
    kept = (hidden @ weight.T).softmax(dim=1).gather(1, teacher.ids_NK.long())
    assert ((1.0 - kept.sum(dim=1)) <= 0.0).sum() > 4
    found = top_k_cross_entropy(hidden, layer, teacher, weights)
    expected = plain_top_k_loss(hidden, layer, teacher, weights, softcap=0.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, hidden)[0].double() for loss in (found, expected)]
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_all_tokens_kept_are_the_whole_teacher():
    """Also those of a larger vocabulary, of which a part is left that the student does not have."""
    hidden, weight = (random(n, 16, seed=n, dtype=torch.float32).requires_grad_() for n in (9, 50))
    theirs = random(9, 16, seed=2, dtype=torch.float32)
    larger = random(57, 16, seed=3, dtype=torch.float32)
    layer, weights = OutputLayer(weight), torch.rand(9)
    losses = [soft_cross_entropy(hidden, layer, theirs, OutputLayer(larger[:50]), weights)]
    for rows in (50, 57):
        teacher = likeliest_tokens(theirs, OutputLayer(larger[:rows]), k=50, num_ids=50)
        assert teacher.log_probs_NJ.exp().sum(dim=1).tolist() == pytest.approx([1.0] * 9)
        losses.append(top_k_cross_entropy(hidden, layer, teacher, weights))
    whole, *others = ((loss, *torch.autograd.grad(loss, (hidden, weight))) for loss in losses)
    for other in others:
        for found, expected in zip(other, whole, strict=True):
            assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_likeliest_are_the_first_of_all_by_their_probability(monkeypatch):
    monkeypatch.setattr(distillation, "_CHUNK_LOGITS", 50 * 4)
    hidden, weight = (random(n, 16, seed=n, dtype=torch.float32) for n in (9, 50))
    found = likeliest_tokens(hidden, OutputLayer(weight), k=5, num_ids=40, softcap=3.0)
    log_p = (3.0 * torch.tanh(hidden.double() @ weight.double().T / 3.0)).log_softmax(dim=1)
    expected = log_p[:, :40].sort(dim=1, descending=True)
    assert torch.equal(found.ids_NK, expected.indices[:, :5].int())
    assert torch.allclose(found.log_probs_NJ[:, :5].double(), expected.values[:, :5], atol=1e-5)
    rest = 1.0 - expected.values[:, :5].exp().sum(dim=1)
    assert torch.allclose(found.log_probs_NJ[:, 5].double(), rest.log(), atol=1e-5)
