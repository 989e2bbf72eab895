"""Flash attention with sinks: the correction of its context, and gradients by its own backward.

T tokens, H heads, E numbers a head.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import run_ranks
from tests.training.entrodrop.test_head import Operators
from training.data.documents import find_documents
from training.model import attention
from training.model.attention import document_attention
from training.model.flash_sinks import add_sinks, grad_of_sinks


def tensors(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def test_a_backward_of_flash_attention_needs_only_the_corrected_sums():
    """dS = P (dO V - rowsum(dO O)), with P = e^(S - lse): of O and lse with the sinks in them."""
    scores_HTT, value_HTE, sinks_H, grad_HTE = tensors((3, 6, 6), (3, 6, 4), (3,), (3, 6, 4))
    columns_HT1 = sinks_H[:, None, None].expand(3, 6, 1)
    weights_HTT = torch.cat([scores_HTT, columns_HT1], dim=-1).softmax(-1)[..., :-1]
    context_HTE = weights_HTT @ value_HTE
    context_HTE.backward(grad_HTE)
    with torch.no_grad():
        lse_HT = scores_HTT.logsumexp(-1)
        plain_THE = (scores_HTT.softmax(-1) @ value_HTE).transpose(0, 1)
        found_THE, all_HT = add_sinks(plain_THE, lse_HT, sinks_H)
        torch.testing.assert_close(found_THE.transpose(0, 1), context_HTE, check_dtype=False)
        weights = (scores_HTT - all_HT[..., None]).exp()
        products = (grad_HTE * found_THE.transpose(0, 1)).sum(-1, keepdim=True)
        grad_scores = weights * (grad_HTE @ value_HTE.transpose(1, 2) - products)
        torch.testing.assert_close(grad_scores, scores_HTT.grad, rtol=1e-5, atol=1e-6)
        grad_sinks = grad_of_sinks(grad_HTE.transpose(0, 1), found_THE, all_HT, sinks_H)
        torch.testing.assert_close(grad_sinks, sinks_H.grad, rtol=1e-5, atol=1e-6)


def attend(device: str, dtype: torch.dtype, window: int | None) -> list[Tensor]:
    """Context and gradients of queries, keys, values and sinks."""
    inputs = [
        tensor.detach().to(device).requires_grad_()
        for tensor in tensors((1, 8, 96, 64), (1, 2, 96, 64), (1, 2, 96, 64), (8,), dtype=dtype)
    ]
    positions_BT = torch.cat([torch.arange(n) for n in (5, 70, 21)])[None]
    layout = find_documents(positions_BT, device=torch.device(device))
    *states, sinks = inputs
    module: Any = None
    context, _ = document_attention(
        module, *states, None, document_layout=layout, sliding_window=window, s_aux=sinks
    )
    context.float().square().sum().backward()
    return [context.detach().cpu(), *[tensor.grad.cpu() for tensor in inputs]]


def compare_on_a_gpu() -> None:
    for window in (None, 16):
        exact = attend("cpu", torch.float32, window)
        for found, expected in zip(attend("cuda", torch.bfloat16, window), exact, strict=True):
            difference = (found.float() - expected).norm() / expected.norm()
            assert difference < 0.02, (window, float(difference))


@pytest.mark.gpu
def test_flash_attention_with_sinks_has_the_numbers_of_the_exact_one():
    run_ranks(compare_on_a_gpu, world_size=1, gpus=True)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_flash_attention_takes_grouped_keys_as_they_are(has_sinks):
    """Of the calls a GPU would get, their shapes: nobody repeats keys and values for each query."""
    shapes = ((16, 8, 64), (16, 2, 64), (16, 2, 64), (8,))
    *states, sinks = (x.to("meta").detach().requires_grad_() for x in tensors(*shapes))
    layout = find_documents(torch.arange(16)[None] % 10, device=torch.device("meta"))
    scores = attention._Scores(0.125, None, None, sinks if has_sinks else None, None)
    with Operators() as operators:
        context = attention._flash(*states, layout, scores)
        gradients = torch.autograd.grad(context.float().sum(), states)
    assert context.shape == shapes[0]
    assert [gradient.shape for gradient in gradients] == [*shapes[:3]]
    assert operators.largest == 16 * 8 * 64
    assert not operators.names & {"aten::repeat_interleave", "aten::index_select", "aten::clone"}
