"""The output layer that gives losses and entropies, and no logits.

B rows, S tokens of this rank's sequence shard, N = B * S, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from training.data.stream import IGNORE
from training.entrodrop.distillation import OutputLayer, likeliest_tokens
from training.entrodrop.head import (
    linear_cross_entropy_with_entropy,
    weighted_linear_cross_entropy,
)
from training.model.inputs import TeacherView


class EntropyHead(nn.Module):
    """ZeRO-3 gathers `weight` and `bias` around this module's forward and backward."""

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None = None,
        *,
        scale: float = 1.0,
        softcap: float = 0.0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        self.scale, self.softcap = scale, softcap
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def forward(
        self,
        hidden_BSD: Tensor,
        targets_BS: Tensor | None = None,
        token_weights_BS: Tensor | None = None,
        teacher: TeacherView | None = None,
        as_teacher: bool = False,
        top_k: tuple[int, int] | None = None,
        max_weighted: int | None = None,
    ) -> tuple[Tensor | None, ...] | Tensor:
        """(nll, entropy), or with token weights (their loss, nll, entropy) in one pass.

        As a teacher: what makes its predictions, (hidden, weight, bias). With `top_k`, how many
        of how many ids: (nll, entropy, ids, log-probabilities). Without targets: the likeliest
        token behind each of a few hidden states `[K, D]`.
        """
        bias_V: Any = self.bias
        if targets_BS is None:  # neither a scale above 0 nor a softcap changes which it is
            return functional.linear(hidden_BSD, self.weight, bias_V).argmax(dim=-1)
        if self.scale != 1.0:
            hidden_BSD = hidden_BSD * self.scale
        if as_teacher:  # copies: behind this module the gathered weight is gone
            bias_V = None if bias_V is None else bias_V.detach().clone()
            return hidden_BSD, self.weight.detach().clone(), bias_V
        hidden_ND, targets_N = hidden_BSD.flatten(0, 1), targets_BS.flatten()
        terms: dict[str, Any] = {
            "bias": bias_V,
            "softcap": self.softcap,
            "max_weighted": max_weighted,
        }
        if self.training:
            terms |= {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        if token_weights_BS is None:
            nll_N, entropy_N = linear_cross_entropy_with_entropy(
                hidden_ND, self.weight, targets_N, **terms
            )
            scored = (nll_N.view_as(targets_BS), entropy_N.view_as(targets_BS))
            if top_k is None:
                return scored
            k, num_ids = top_k
            found = likeliest_tokens(
                hidden_ND,
                OutputLayer(self.weight, bias_V),
                k=k,
                num_ids=num_ids,
                softcap=self.softcap,
            )
            return *scored, *(column.unflatten(0, targets_BS.shape) for column in found)
        weights_N = token_weights_BS.flatten()
        soft_loss: Tensor | None = None
        if teacher is not None:
            soft_weights_N = weights_N * teacher.weights_BS.flatten()
            weights_N = weights_N - soft_weights_N
            soft_loss = teacher.cross_entropy(
                hidden_ND,
                OutputLayer(self.weight, bias_V),
                soft_weights_N.masked_fill(targets_N == IGNORE, 0.0),
                softcap=self.softcap,
            )
        loss, nll_N, entropy_N = weighted_linear_cross_entropy(
            hidden_ND, self.weight, targets_N, weights_N, **terms
        )
        if soft_loss is not None:
            loss = loss + soft_loss
        return loss, nll_N.view_as(targets_BS), entropy_N.view_as(targets_BS)


def entropy_head(lm: PreTrainedModel, *, label_smoothing: float, z_loss: float) -> EntropyHead:
    """In the place of the model's own output layer, with its weights.

    Raises:
        ValueError: for an output layer that is not a linear one behind the layers.
    """
    if lm.base_model is lm:
        raise ValueError(f"{type(lm).__name__} has no layers apart from its output layer")
    output: Any = lm.get_output_embeddings()
    if not isinstance(output, nn.Linear):
        kind = type(output).__name__
        raise ValueError(f"an output layer of the kind {kind} is not supported")
    scale, softcap = _logits_of(lm.config.get_text_config())
    if output.bias is not None and scale != 1.0:
        raise ValueError("an output layer with a bias and scaled logits is not supported")
    weight: Any = output.weight  # a Parameter, which torch's own stubs do not say
    return EntropyHead(
        weight,
        output.bias,
        scale=scale,
        softcap=softcap,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )


def _logits_of(config: PretrainedConfig) -> tuple[float, float]:
    """Factor and softcap of the logits (Cohere; Granite; Gemma); the gate tries them."""
    factor = getattr(config, "logit_scale", None)
    divisor = getattr(config, "logits_scaling", None)
    softcap = getattr(config, "final_logit_softcapping", None)
    return (1.0 if factor is None else factor) / (divisor or 1.0), softcap or 0.0
