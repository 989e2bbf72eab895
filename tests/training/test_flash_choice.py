"""`model.attention`: what it refuses, what it asks torch for, and the check of its numbers."""

from __future__ import annotations

import pytest
import torch

from tests.training.layouts import tiny_recipe
from training.model import flash_choice
from training.model.flash_choice import check_attention, measure_attention, refuse_attention


@pytest.mark.parametrize(
    ("attention", "generation", "told"),
    [
        ("flash3", None, "needs GPUs of compute capability 9, and this is a run on CPUs: set"),
        ("flash3", 10, "needs GPUs of compute capability 9, and this is a run on GPUs of compute"),
        ("flash4", 8, "compute capability 9 or 10, and this is a run on GPUs of compute capabili"),
        ("flash3", 9, "needs the package flash-attn-3, whose module flash_attn_interface is not"),
        ("flash4", 10, "needs the package flash-attn-4, whose module flash_attn.cute is not"),
        ("flash2", None, None),
    ],
)
def test_what_cannot_run_is_refused_in_a_sentence(attention, generation, told):
    model = tiny_recipe(model__attention=attention).model
    if told is None:
        refuse_attention(model, generation=generation)
        return
    with pytest.raises(ValueError, match=rf"^model\.attention: {attention} ") as caught:
        refuse_attention(model, generation=generation)
    assert told in str(caught.value)


@pytest.mark.parametrize(("attention", "name"), [("flash3", "FA3"), ("flash4", "FA4")])
def test_torch_is_asked_for_kernels_that_it_knows(monkeypatch, attention, name):
    """Their packages are imported only then, so that asking fails here with the module's name."""
    assert name in torch.nn.attention.list_flash_attention_impls()
    model = tiny_recipe(model__attention=attention).model
    module = {"flash3": "flash_attn_interface", "flash4": "flash_attn"}[attention]
    with pytest.raises(ModuleNotFoundError, match=module):
        flash_choice.use_attention(model)


def test_kernels_beyond_rounding_are_refused(monkeypatch):
    monkeypatch.setattr(flash_choice, "refuse_attention", lambda *args, **named: None)
    monkeypatch.setattr(flash_choice, "use_attention", lambda model: None)
    model = tiny_recipe(model__attention="flash3").model
    check_attention(model, device=torch.device("cpu"))
    right = flash_choice.document_attention

    def sees_all(*args, sliding_window, **named):
        is_bf16 = args[1].dtype == torch.bfloat16
        return right(*args, sliding_window=None if is_bf16 else sliding_window, **named)

    monkeypatch.setattr(flash_choice, "document_attention", sees_all)
    assert measure_attention(torch.device("cpu"), window=None) < 2 * 2**-8
    with pytest.raises(ValueError, match=r"model\.attention: flash3 is off by .*: set flash2"):
        check_attention(model, device=torch.device("cpu"))
