"""MLPs in tiles of tokens: their inner channels exist for one tile at a time (`model.tiled_mlp`).

The idea is that of Arctic Long Sequence Training (arXiv 2506.13996), as in DeepSpeed's `TiledMLP`,
which adds up the tiles' weight gradients in their own dtype; here they add up in fp32, and each
weight gets its gradient once, as without tiles.

N tokens of all rows, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from training.model.layer_parts import mlp_of

Forward = Callable[[Tensor], Tensor]


def tile_mlps(layers: Iterable[nn.Module]) -> None:
    """From now on each layer's MLP takes as many tokens at a time as it has hidden channels.

    Its backward pass computes each tile again. Hooks within it see tiles.

    Raises:
        ValueError: naming a layer without a plain MLP.
    """
    for layer in layers:
        mlp = mlp_of(layer)
        mlp.forward = functools.partial(_run, mlp, mlp.forward)


def _run(mlp: nn.Module, forward: Forward, hidden_BSD: Tensor) -> Tensor:
    tile_tokens = hidden_BSD.shape[-1]
    if hidden_BSD.shape[:-1].numel() <= tile_tokens:
        return forward(hidden_BSD)
    # as arguments, so that autograd hands each its gradient; under ZeRO-3 they are whole meanwhile
    weights = [weight for weight in mlp.parameters() if weight.requires_grad]
    tiled: Tensor = _Tiled.apply(forward, tile_tokens, hidden_BSD, *weights)
    return tiled.view_as(hidden_BSD)  # here: Falcon's layer adds to it in place


def _tiles(x_BSD: Tensor, tile_tokens: int) -> tuple[Tensor, ...]:
    """`[1, tile_tokens, D]` each, the last one shorter."""
    return x_BSD.reshape(1, -1, x_BSD.shape[-1]).split(tile_tokens, dim=1)


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, forward: Forward, tile_tokens: int, hidden_BSD: Tensor, *weights: Tensor
    ) -> Tensor:
        ctx.forward, ctx.tile_tokens, ctx.weights = forward, tile_tokens, weights
        ctx.save_for_backward(hidden_BSD)
        outputs = [forward(tile) for tile in _tiles(hidden_BSD, tile_tokens)]
        return torch.cat(outputs, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (hidden_BSD,) = ctx.saved_tensors
        of_hidden = []
        sums: list[Tensor | None] = [None] * len(ctx.weights)
        tiles = (_tiles(x, ctx.tile_tokens) for x in (hidden_BSD, gradients[0]))
        for tile, gradient in zip(*tiles, strict=True):
            tile = tile.detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.forward(tile)
            # not `backward`: ZeRO-3 would take the gradient of a tile for the whole
            of_tile, *found = torch.autograd.grad(
                output, (tile, *ctx.weights), gradient, allow_unused=True
            )
            of_hidden.append(of_tile)
            for number, each in enumerate(found):
                if each is not None:
                    so_far = sums[number]
                    if so_far is None:
                        sums[number] = each.to(torch.promote_types(each.dtype, torch.float32))
                    else:
                        so_far.add_(each)
        of_weights = (
            total if total is None else total.to(weight.dtype)
            for total, weight in zip(sums, ctx.weights, strict=True)
        )
        return None, None, torch.cat(of_hidden, dim=1).view_as(hidden_BSD), *of_weights
