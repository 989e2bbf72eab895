"""The section of a recipe on adapters: small matrices that train beside frozen weights."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from training.config.sections import STRICT, Positive

ALL_LINEAR: Literal["all-linear"] = "all-linear"


def _as_targets(given: Any) -> Any:
    """One message, where a union of types would give one for each."""
    is_list = isinstance(given, (list, tuple)) and all(
        isinstance(name, str) and name for name in given
    )
    if given != ALL_LINEAR and not (is_list and given):
        raise ValueError(f"expected {ALL_LINEAR}, or names such as [q_proj, v_proj] (is {given!r})")
    return given


def _no_qlora(given: Any) -> Any:
    if given == "qlora":
        raise ValueError(
            "qlora is not supported: ZeRO-3 shards plain numbers, without the scales by which "
            "quantized ones are read; lora beside weights in bf16 is"
        )
    return given


Targets = Annotated[Literal["all-linear"] | tuple[str, ...], BeforeValidator(_as_targets)]


@dataclass(config=STRICT)
class Adapter:
    """Low-rank matrices beside the weights of `model.pretrained`, which stay as they are
    (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353). See docs/adapters.md."""

    kind: Annotated[Literal["lora", "dora"], BeforeValidator(_no_qlora)] = "lora"
    """dora: the size of each row of a weight is learnt apart from its direction."""
    rank: Positive = 16
    alpha: Positive = 32
    """What the adapter adds is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate at which channels are dropped before each adapter, in training."""
    targets: Targets = ALL_LINEAR
    """Which linear layers get one: all within the decoder layers, or those of these names, such as
    `[q_proj, v_proj]`."""
