"""Whether fused layers compute what plain ones do, tried at the start on the device of the run.

T tokens of two documents, D hidden.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from training.config.sections import Model
from training.data.documents import DocumentLayout, find_documents
from training.model.attention import ATTENTION_NAME, register_attention
from training.model.fused_layers import fuse_layers, refuse_fused
from training.model.tiny import one_layer_config, plain_model

_LENGTHS = (37, 91)
_SEED = 0


def check_fused(model: Model, config: PretrainedConfig, *, device: torch.device) -> None:
    """Compare a layer of the model's own size, with random weights; takes seconds on a GPU.

    Raises:
        ValueError: where the recipe asks for fused layers that cannot be had, or that are wrong.
    """
    refuse_fused(model, config, has_gpu=device.type == "cuda")
    if model.kernels == "plain":
        return
    for name, (fused, plain, most) in measure_errors(model, config, device=device).items():
        if not fused <= most:  # NaN, too
            raise ValueError(
                f"model.kernels: liger computes another {name} than transformers here: off by "
                f"{fused:.1e} of its size, where rounding puts plain layers off by {plain:.1e}; "
                "set it to plain"
            )


def measure_errors(
    model: Model, config: PretrainedConfig, *, device: torch.device
) -> dict[str, tuple[float, float, float]]:
    """How far a fused layer, and a plain one, are from the same in double precision.

    Returns:
        For its output and each gradient, both errors relative to its norm, and the most that the
        first may be: a fused layer rounds at no more places than a plain one, so three times that
        one's error, since sums have another order, and one rounding where that one has none.
    """
    register_attention()
    generator = torch.Generator().manual_seed(_SEED)
    with torch.device(device), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(_SEED)
        plain = plain_model(model, one_layer_config(config), attention=ATTENTION_NAME)
        with torch.no_grad():
            for weight in plain.parameters():  # norms and biases begin with numbers all alike
                weight.add_(
                    torch.randn_like(weight), alpha=0.1 * max(0.1, float(weight.abs().mean()))
                )
    exact, fused = (copy.deepcopy(plain) for _ in range(2))
    fuse_layers(fused)
    positions_1T = torch.cat([torch.arange(length) for length in _LENGTHS])[None].to(device)
    documents = find_documents(positions_1T, device=device)
    shape = (*positions_1T.shape, config.get_text_config().hidden_size)
    hidden, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    dtype = next(plain.parameters()).dtype
    states = [x.to(device, dtype) for x in (hidden, gradient)]
    found, rounded, expected = (
        _numbers(lm, [x.to(wide) for x in states], positions_1T, documents)
        for lm, wide in ((fused, dtype), (plain, dtype), (exact.double(), torch.float64))
    )
    rounding = torch.finfo(dtype).eps / 2
    errors = {}
    for name, exact_one in expected.items():
        of_fused, of_plain = (_error(each[name], exact_one) for each in (found, rounded))
        errors[name] = (of_fused, of_plain, 3 * of_plain + rounding)
    return errors


def _numbers(
    lm: PreTrainedModel, states: list[Tensor], positions_1T: Tensor, documents: DocumentLayout
) -> dict[str, Tensor]:
    """The output `[1, T, D]`, and the gradients of its product with one."""
    hidden, gradient = states
    hidden = hidden.clone().requires_grad_()
    output = lm.base_model(
        inputs_embeds=hidden,
        position_ids=positions_1T,
        use_cache=False,
        document_layout=documents,
    ).last_hidden_state
    ends = [lm.get_input_embeddings(), lm.get_output_embeddings()]
    outside = {id(weight) for end in ends for weight in end.parameters()}
    weights = {name: w for name, w in lm.named_parameters() if id(w) not in outside}
    gradients = torch.autograd.grad(output, [hidden, *weights.values()], gradient)
    names = ("output", "gradient of its input", *(f"gradient of {name}" for name in weights))
    return dict(zip(names, (output.detach(), *gradients), strict=True))


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
