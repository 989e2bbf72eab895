"""Which of its flash attention kernels torch runs on GPUs (`model.attention`)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.config.sections import Model
from training.data.documents import find_documents
from training.model.attention import document_attention

_LENGTHS = (5, 130, 1, 250)
_MOST_ROUNDINGS = 4
"""Relative, of the context or a gradient in bf16, as flash attention 2 has them."""


class _Kernels(NamedTuple):
    name: str
    """That torch knows them by."""
    module: str
    package: str
    generations: tuple[int, ...]
    """Of GPUs, by the first number of their compute capability."""


_KERNELS = {
    "flash3": _Kernels("FA3", "flash_attn_interface", "flash-attn-3", (9,)),
    "flash4": _Kernels("FA4", "flash_attn.cute", "flash-attn-4", (9, 10)),
}


def refuse_attention(model: Model, *, generation: int | None) -> None:
    """Called at the start of a run, before the package is loaded.

    Args:
        generation: of the GPU; None on CPUs.

    Raises:
        ValueError: where the package, or a GPU that it runs on, is missing.
    """
    if model.attention == "flash2":
        return
    kernels, key = _KERNELS[model.attention], f"model.attention: {model.attention}"
    if generation not in kernels.generations:
        here = "CPUs" if generation is None else f"GPUs of compute capability {generation}"
        wanted = " or ".join(map(str, kernels.generations))
        raise ValueError(
            f"{key} needs GPUs of compute capability {wanted}, and this is a run on {here}: set "
            "flash2"
        )
    if not _is_there(kernels.module):
        raise ValueError(
            f"{key} needs the package {kernels.package}, whose module {kernels.module} is not "
            "installed: install it, or set flash2"
        )
    if not hasattr(torch.nn.attention, "activate_flash_attention_impl"):
        raise ValueError(f"{key} needs a newer torch (is {torch.__version__}): set flash2")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it would be in
        return False


def choices_here(device: torch.device) -> list[str]:
    """The values of `model.attention` beside flash2 that this machine can run."""
    generation = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else None
    return [
        name
        for name, kernels in _KERNELS.items()
        if generation in kernels.generations and _is_there(kernels.module)
    ]


def use_attention(model: Model) -> None:
    """From now on in this process; torch's variable-length attention calls them by itself."""
    if model.attention != "flash2":
        torch.nn.attention.activate_flash_attention_impl(_KERNELS[model.attention].name)


def check_attention(model: Model, *, device: torch.device) -> None:
    """Use the kernels of the recipe, and compare them with exact attention in fp32.

    Raises:
        ValueError: where they cannot be had, or compute something else.
    """
    is_cuda = device.type == "cuda"
    generation = torch.cuda.get_device_capability(device)[0] if is_cuda else None
    refuse_attention(model, generation=generation)
    if model.attention == "flash2":
        return
    use_attention(model)
    for window in (None, 16):
        worst = measure_attention(device, window=window)
        if not worst <= _MOST_ROUNDINGS * 2**-8:  # NaN, too
            raise ValueError(
                f"model.attention: {model.attention} is off by {worst:.1e} of the size of its "
                "context or a gradient, more than roundings explain: set flash2"
            )


def measure_attention(device: torch.device, *, window: int | None) -> float:
    """The largest relative difference of context and gradients in bf16 from those in fp32."""
    generator = torch.Generator().manual_seed(0)
    states = [  # two queries to a key
        torch.randn(1, heads, sum(_LENGTHS), 128, generator=generator).bfloat16()
        for heads in (4, 2, 2)
    ]
    positions_1T = torch.cat([torch.arange(length) for length in _LENGTHS])[None].to(device)
    documents = find_documents(positions_1T, device=device)

    def numbers(dtype: torch.dtype) -> list[Tensor]:
        inputs = [state.to(device, dtype).requires_grad_() for state in states]
        query, key, value = inputs
        context, _ = document_attention(
            nn.Module(), query, key, value, None, document_layout=documents, sliding_window=window
        )
        gradients = torch.autograd.grad(context.float().square().sum(), inputs)
        return [context.detach().float(), *(gradient.float() for gradient in gradients)]

    pairs = zip(numbers(torch.bfloat16), numbers(torch.float32), strict=True)
    return max(float((found - exact).norm() / exact.norm()) for found, exact in pairs)
