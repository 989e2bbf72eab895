"""The part of each trained weight of which a rank keeps the fp32 copy, at either stage of ZeRO.

Under ZeRO-3 it is all that a rank has of a weight between its uses; under ZeRO-1 every rank has all
weights in the dtype of the training, and shares out the optimizer alone. Parts are flat and follow
each other by rank: joined, and without padding behind the last, they are the flattened weight.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.utils import safe_get_local_fp32_param
from torch import Tensor, nn

from training.ranks.dist import Layout


class OwnParts(Protocol):
    """How a step and what runs beside it see the weights of an engine with an optimizer."""

    averages_over: int
    """Among how many ranks DeepSpeed averages gradients."""

    def begin(self, weight: Any) -> int:
        """Place of the part's first number within the flattened weight."""

    def of_weight(self, weight: Any) -> Tensor:
        """The part itself, in the dtype of the training; the model computes with what is written
        there after `publish`."""

    def of_master(self, weight: Any) -> Tensor:
        """The same part in fp32, on the device of the optimizer."""

    def publish(self, weights: Iterable[Any]) -> None:
        """Their parts were changed; every rank calls it."""

    def masters(self) -> list[Tensor]:
        """What the optimizer holds as its weights: the parts in fp32, joined in groups."""


def own_parts(ds: Any, layout: Layout) -> OwnParts:
    """Of a DeepSpeed engine with an optimizer."""
    return (
        PartsOfAll(ds, layout)
        if ds.zero_optimization_stage() == 3
        else PartsOfOptimizer(ds, layout)
    )


class PartsOfAll:
    """Under ZeRO-3."""

    def __init__(self, ds: Any, layout: Layout) -> None:
        """Of a DeepSpeed engine."""
        self._zero, self._rank = ds.optimizer, layout.rank
        self.averages_over = layout.world_size

    def begin(self, weight: Any) -> int:
        return int(self._rank * weight.ds_tensor.numel())

    def of_weight(self, weight: Any) -> Tensor:
        part: Tensor = weight.ds_tensor
        return part

    def of_master(self, weight: Any) -> Tensor:
        return safe_get_local_fp32_param(weight).detach().to(self.masters()[0].device)

    def publish(self, weights: Iterable[Any]) -> None:
        # weights that are still gathered would be used as they were
        self._zero.empty_partition_cache()
        for weight in weights:
            # with `zero_hpz_partition_size`: a copy of what it was in the last forward pass
            weight.ds_secondary_tensor = None

    def masters(self) -> list[Tensor]:
        flat: list[Tensor] = self._zero.fp32_partitioned_groups_flat
        return flat


class PartsOfOptimizer:
    """Under ZeRO-1, of whose optimizer DeepSpeed has one class for bf16 and one for fp32."""

    def __init__(self, ds: Any, layout: Layout) -> None:
        """Of a DeepSpeed engine, whose checkpoints become like those of stage 3."""
        zero = ds.optimizer
        # both would take the shards of a sequence for those of tensor parallelism
        ds.mpu = zero.mpu = None
        _leave_out_weights(ds)
        # the shards of a sequence add up their gradients
        self.averages_over = layout.dp_size
        self._rank = layout.rank
        self._weights: list[Tensor]
        self._masters: list[Tensor]
        if isinstance(zero, BF16_Optimizer):
            self._weights, self._masters = zero.bf16_groups_flat, zero.fp32_groups_flat_partition
            _name_stage(zero)
        else:
            self._weights = zero.bit16_groups_flat
            self._masters = zero.single_partition_of_fp32_groups

    def begin(self, weight: Any) -> int:
        found = weight._hp_mapping
        return 0 if found is None else int(found.lp_fragment_address.start)

    def of_weight(self, weight: Any) -> Tensor:
        found, flat = weight._hp_mapping, weight.detach().view(-1)
        if found is None:  # it lies in the parts of other ranks
            return flat[:0]
        return flat.narrow(0, found.lp_fragment_address.start, found.lp_fragment_address.numel)

    def of_master(self, weight: Any) -> Tensor:
        found = weight._hp_mapping
        part: Tensor = self._masters[0][:0] if found is None else found.get_hp_fragment()
        return part.detach()

    @torch.no_grad()
    def publish(self, weights: Iterable[Any]) -> None:
        for group, own in zip(self._weights, self._masters, strict=True):
            # equal shares: DeepSpeed pads each group
            begin = self._rank * own.numel()
            dist.all_gather_into_tensor(group, group[begin : begin + own.numel()].clone())

    def masters(self) -> list[Tensor]:
        return self._masters


def whole_shape(weight: Any) -> torch.Size:
    """Of a weight of which this rank may have a part; an adapter's is whole until the engine."""
    shape: torch.Size = getattr(weight, "ds_shape", weight.shape)
    return shape


def refuse_mixed_dtypes(model: nn.Module) -> None:
    """ZeRO-1 joins the weights that are trained into one tensor, of one dtype.

    Raises:
        ValueError: for a model that keeps some of them in another one.
    """
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    if len(found) > 1:
        raise ValueError(
            f"deepspeed: this model has weights in {' and '.join(sorted(found))}, which need "
            "zero_optimization.stage 3"
        )


def _leave_out_weights(ds: Any) -> None:
    """Of what is saved: they are the rounded masters, or frozen."""
    names = {name for name, _ in ds.module.named_parameters(remove_duplicate=False)}
    state_dict = ds.module_state_dict

    def others(**settings: Any) -> dict[str, Any]:
        return {n: value for n, value in state_dict(**settings).items() if n not in names}

    ds.module_state_dict = others


def _name_stage(zero: BF16_Optimizer) -> None:
    """In its files, as DeepSpeed's other optimizers do; `zero_to_fp32` asks for it."""
    state_dict = zero.state_dict
    zero.state_dict = lambda: state_dict() | {"zero_stage": 1}
