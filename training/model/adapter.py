"""Adapters by peft, within the decoder layers of a model whose own weights are frozen.

B rows, S tokens of this rank's sequence shard, D channels.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.hints import did_you_mean
from training.config.adapter import ALL_LINEAR, Adapter
from training.entrodrop.counter_rng import ADAPTER_STREAM
from training.model.layer_dropout import drop_channels
from training.model.layers import decoder_layers

if TYPE_CHECKING:
    from peft import LoraConfig

_NAME = "default"
"""Of the adapter, peft's own."""
_OF_AN_ADAPTER = re.compile(rf"\.lora_\w+\.{_NAME}\.")
_FROZEN = ".base_layer."


class AdapterError(ValueError):
    """The section `adapter` asks for what this model does not have."""


class AdapterDropout(nn.Module):
    """Channels of an adapter's input, by counter, in the place of peft's own random numbers."""

    def __init__(self, *, rate: float, seed: int, number: int) -> None:
        """`number`: of the adapted layer."""
        super().__init__()
        self.rate, self._seed, self._number = rate, seed, number
        self._token_index_BS: Tensor | None = None

    def begin(self, token_index_BS: Tensor | None) -> None:
        """Set the tokens of the coming forward pass."""
        self._token_index_BS = token_index_BS

    def forward(self, x_BSD: Tensor) -> Tensor:
        if not self.training or self._token_index_BS is None:
            return x_BSD
        if x_BSD.shape[:-1] != self._token_index_BS.shape:
            raise AdapterError(
                f"adapter.dropout {self.rate:g} needs adapters that see every token in its place, "
                "as those within experts do not: set adapter.dropout: 0, or name other targets"
            )
        return drop_channels(
            x_BSD,
            self._token_index_BS,
            rate=self.rate,
            seed=self._seed,
            use=(ADAPTER_STREAM, self._number),
        )


def require_peft() -> None:
    """Called before peft is loaded, and at the start of a run that will load it.

    Raises:
        AdapterError: where the extra is missing.
    """
    found = find_spec("peft")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise AdapterError("adapter needs peft: pip install '.[adapters]' in the checkout")


def lora_config(lm: PreTrainedModel, adapter: Adapter, *, base: str | None = None) -> LoraConfig:
    """As peft takes it, and keeps it in a folder.

    Args:
        lm: whose layers are adapted.
        base: what the folder says that it belongs to.

    Raises:
        AdapterError: for targets that the model does not have, or without peft.
    """
    require_peft()
    from peft import LoraConfig  # takes a second, in runs with adapters alone

    return LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=_targets(lm, adapter),
        use_dora=adapter.kind == "dora",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )


def inject_adapter(lm: PreTrainedModel, adapter: Adapter, *, seed: int) -> None:
    """Freeze the weights and put adapters beside them; the model computes what it did before.

    Args:
        seed: of the adapters' own weights and of their dropout.

    Raises:
        AdapterError: for targets that the model does not have, or without peft.
    """
    config = lora_config(lm, adapter)
    from peft import inject_adapter_in_model

    torch.manual_seed(seed)
    inject_adapter_in_model(config, lm, adapter_name=_NAME)
    for name, weight in lm.named_parameters():
        weight.requires_grad_(is_of_adapter(name))
    for number, layer in enumerate(adapted_layers(lm)):
        if adapter.dropout:
            layer.lora_dropout[_NAME] = AdapterDropout(
                rate=adapter.dropout, seed=seed, number=number
            )


def _targets(lm: PreTrainedModel, adapter: Adapter) -> list[str]:
    """Whole names of the linear layers to adapt."""
    within = {id(module) for module in decoder_layers(lm).modules()}
    linear = [
        name
        for name, module in lm.named_modules()
        if id(module) in within and isinstance(module, (nn.Linear, Conv1D))
    ]
    if adapter.targets == ALL_LINEAR:
        return linear
    there = sorted({_last(name) for name in linear})
    for name in adapter.targets:
        if name not in there:
            hint = did_you_mean(name, there, otherwise=f"there are {', '.join(there)}")
            raise AdapterError(
                f"adapter.targets: no linear layer of this model's decoder layers is called "
                f"{name}{hint}"
            )
    return [name for name in linear if _last(name) in adapter.targets]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def adapted_layers(lm: nn.Module) -> Iterator[Any]:
    """peft's layers, each with the one that it has replaced inside."""
    return (module for module in lm.modules() if hasattr(module, "lora_A"))


def is_of_adapter(name: str) -> bool:
    """Whether it is the name of one of its weights."""
    return _OF_AN_ADAPTER.search(name) is not None


def base_weights(lm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those that are not an adapter's, by the names that they have without one."""
    for name, weight in lm.named_parameters():
        if not is_of_adapter(name):
            yield base_name(name), weight


def base_name(name: str) -> str:
    """Of a weight that peft has moved into its own layer."""
    return name.replace(_FROZEN, ".")


@contextmanager
def switched_off(lm: nn.Module) -> Iterator[None]:
    """Within it the model is its base. For passes without gradient: peft freezes what is off."""
    layers = list(adapted_layers(lm))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge_adapter(
    base: PreTrainedModel, adapter: Adapter, trained: Mapping[str, Tensor], *, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The weights of one model that computes what base and adapter do together, in fp32.

    Args:
        base: in fp32; becomes another model, not to be used afterwards.
        trained: the adapter's weights, by their names in an engine.
        dtype: of the training, to which weights of both are rounded there.
    """
    for weight in base.parameters():
        weight.copy_(weight.to(dtype))
    inject_adapter(base, adapter, seed=0)
    put_adapter(base, {name: weight.to(dtype).float() for name, weight in trained.items()})
    for layer in adapted_layers(base):
        layer.merge()
    return {
        base_name(name): weight
        for name, weight in base.state_dict().items()
        if not is_of_adapter(name)
    }


def put_adapter(lm: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Load the weights of an adapter that has been injected; others are left out."""
    own = {name: weight for name, weight in trained.items() if is_of_adapter(name)}
    _, unknown = lm.load_state_dict(own, strict=False, assign=True)
    missing = {name for name, _ in lm.named_parameters() if is_of_adapter(name)} - own.keys()
    assert not unknown and not missing, (unknown, missing)
