"""Rows of logits: torch's and Triton's implementation against autograd in fp64.

Without a GPU the kernels run in Triton's interpreter (see tests/conftest.py): the same code.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="no Triton for this platform")
from training.entrodrop import softmax_rows, softmax_rows_triton
from training.entrodrop.softmax_rows import RowStatistics

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = {"torch": softmax_rows, "triton": softmax_rows_triton}
# what lies outside a row is -inf, and its products are left out
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in multiply")
# one block, a whole number of blocks, a part of one behind them
VOCABULARIES = (1, 300, 8192, 9001)


@pytest.fixture(params=BACKENDS)
def rows(request: pytest.FixtureRequest) -> ModuleType:
    return BACKENDS[request.param]


def make_logits(vocab_size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(5, vocab_size, generator=generator) * 4
    logits[1] += 40.0  # far from zero: sums of e^z would overflow in the end
    logits[2, vocab_size // 2] = 90.0  # all but certain
    logits[3] = logits[3].sort().values  # the largest comes last: every block moves the shift
    targets = torch.randint(0, vocab_size, (5,), generator=generator)
    return logits.to(dtype).to(DEVICE), targets.to(DEVICE)


def exact(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    log_probs = torch.log_softmax(logits.double(), dim=1)
    return {
        "entropy": -(log_probs.exp() * log_probs).sum(dim=1),
        "target_nll": -log_probs.gather(1, targets[:, None])[:, 0],
        "mean_nll": -log_probs.mean(dim=1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_statistics_are_those_of_double_precision(rows, vocab_size, dtype):
    logits, targets = make_logits(vocab_size, dtype)
    before = logits.clone()
    found = rows.row_statistics(logits, targets)
    assert torch.equal(logits, before)
    assert torch.equal(found.largest, logits.float().amax(dim=1))
    total = found.largest.double() + found.log_total.double()
    assert torch.allclose(total, torch.logsumexp(logits.double(), dim=1), rtol=1e-6)
    for name, expected in exact(logits, targets).items():
        value = getattr(found, name)
        assert value.dtype == torch.float32
        assert torch.allclose(value.double(), expected, rtol=1e-5, atol=2e-6), name
    assert (found.entropy >= 0).all()


def capped(logits: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(logits / softcap) if softcap else logits


@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_statistics_are_of_capped_logits(rows, softcap):
    logits, targets = make_logits(300, torch.float32)
    found = rows.row_statistics(logits, targets, softcap=softcap)
    for name, expected in exact(capped(logits.double(), softcap), targets).items():
        assert torch.allclose(getattr(found, name).double(), expected, rtol=1e-5, atol=5e-6), name


@pytest.mark.parametrize("softcap", [0.0, 30.0])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_gradient_is_that_of_autograd(rows, vocab_size, dtype, bound, softcap):
    """Of a loss with all its terms: smoothing 0.1 and z-loss 0.01, each row with its weight."""
    logits, targets = make_logits(vocab_size, dtype)
    upstream = torch.tensor([1.0, -0.5, 2.0, 0.0, 3.0], device=DEVICE)
    exact_logits = logits.double().requires_grad_()
    log_sum = torch.logsumexp(capped(exact_logits, softcap), dim=1)
    loss = torch.nn.functional.cross_entropy(
        capped(exact_logits, softcap), targets, reduction="none", label_smoothing=0.1
    )
    loss = loss + 0.01 * log_sum.square()
    (expected,) = torch.autograd.grad((loss * upstream).sum(), exact_logits)
    statistics = rows.row_statistics(logits, targets, softcap=softcap)
    assert isinstance(statistics, RowStatistics)
    rows.row_gradient_(
        logits,
        targets,
        statistics,
        prob_scale_C=upstream * (1.0 + 0.02 * log_sum.detach().float()),
        target_scale_C=upstream * 0.9,
        uniform_C=upstream * (0.1 / vocab_size),
        softcap=softcap,
    )
    assert logits.dtype == dtype
    difference = (logits.double() - expected).norm()
    assert difference <= bound * expected.norm() + 1e-5
    assert (logits[3] == 0).all()


def test_rows_may_be_a_part_of_a_larger_tensor(rows):
    """Chunks are slices: what lies beside them stays as it was."""
    logits, targets = make_logits(300, torch.float32)
    wide = torch.zeros(5, 310, device=DEVICE)
    wide[:, :300] = logits
    found, expected = (
        rows.row_statistics(wide[:, :300], targets),
        rows.row_statistics(logits, targets),
    )
    for value, reference in zip(found, expected, strict=True):
        assert torch.equal(value, reference)
    ones: Any = torch.ones(5, device=DEVICE)
    scales = {"prob_scale_C": ones, "target_scale_C": ones, "uniform_C": 0 * ones}
    rows.row_gradient_(wide[:, :300], targets, found, **scales)
    rows.row_gradient_(logits, targets, expected, **scales)
    assert torch.equal(wide[:, :300], logits)
    assert (wide[:, 300:] == 0).all()


def test_no_rows_are_no_trouble(rows):
    logits, targets = torch.zeros(0, 7, device=DEVICE), torch.zeros(0, device=DEVICE).long()
    statistics = rows.row_statistics(logits, targets)
    assert all(column.shape == (0,) for column in statistics)
    none = torch.zeros(0, device=DEVICE)
    rows.row_gradient_(
        logits, targets, statistics, prob_scale_C=none, target_scale_C=none, uniform_C=none
    )
