"""Which tokens are low, and which of them drop: the sets that the dropout acts on.

Shapes: any, as long as entropies and token indices agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from training.entrodrop.counter_rng import (
    DROP_STREAM,
    RATE_STREAM,
    TIE_STREAM,
    token_keys,
    uniform_from_keys,
)
from training.entrodrop.quantile import Quantile, global_quantile, last_key_inside

_EVERY_TIE = (1 << 63) - 1
_TINY = 1e-30


@dataclass(frozen=True)
class LowSet:
    """The tokens of lowest entropy, exactly `quantile.num_low` of the population."""

    quantile: Quantile
    last_tie_key: int
    """Among the tokens at the threshold, those with a tie key up to this one are inside."""
    seed: int

    def contains(self, entropy: Tensor, token_index: Tensor) -> Tensor:
        """Bool, whether each token is low. Tokens of infinite entropy never are.

        Args:
            entropy: fp32, in nats, at the token (not at the position that predicts it).
            token_index: int64 of the same shape; see `counter_rng.token_keys`.
        """
        threshold = self.quantile.threshold
        tie_keys = token_keys(token_index, seed=self.seed, stream=TIE_STREAM)
        is_tie_inside = (entropy == threshold) & (tie_keys <= self.last_tie_key)
        return ((entropy < threshold) | is_tie_inside) & torch.isfinite(entropy)


def select_low_tokens(
    entropy: Tensor,
    token_index: Tensor,
    *,
    q: float,
    seed: int,
    group: dist.ProcessGroup | None = None,
) -> LowSet:
    """The exactly `ceil(q * population)` tokens of lowest entropy over all ranks of `group`.

    Late in training a large share of tokens has entropy 0, so ties decide: they are broken by a
    hash of (seed, epoch, sample, position), the same on every layout.

    Args:
        entropy: fp32 `[N]` of this rank's part of the population; +inf marks a token that is
            not a target and leaves it out.
        token_index: int64 `[N]`.
        q: share of the population that is low.
    """
    quantile = global_quantile(entropy, q, valid=torch.isfinite(entropy), group=group)
    last_tie_key = _EVERY_TIE
    # the counts are global, so every rank takes the same branch
    if quantile.num_ties_inside < quantile.num_ties:
        at_threshold = entropy == quantile.threshold
        keys = token_keys(token_index[at_threshold], seed=seed, stream=TIE_STREAM)
        last_tie_key = last_key_inside(keys, quantile.num_ties_inside, group=group)
    return LowSet(quantile, last_tie_key, seed)


def masked_contexts(
    dropped_BS: Tensor, position_ids_BS: Tensor, *, sp_group: dist.ProcessGroup | None = None
) -> Tensor:
    """Bool `[B, S]`, whether a position's prediction depends on a dropped token of its document.

    Args:
        dropped_BS: bool `[B, S]`, tokens of this rank's shard whose embedding is replaced.
        position_ids_BS: int64 `[B, S]`, positions that restart at 0 in each document.
        sp_group: the ranks that share these rows, in sequence order; None when one has them all.

    Communicates one number per row and rank: where the last dropped token is.
    """
    num_before = dropped_BS.shape[1] * (dist.get_rank(sp_group) if sp_group is not None else 0)
    place_S = num_before + torch.arange(dropped_BS.shape[1], device=dropped_BS.device)
    last_drop_BS = torch.where(dropped_BS, place_S, -1).cummax(dim=1).values
    if sp_group is not None and dist.get_world_size(sp_group) > 1:
        last_B = last_drop_BS[:, -1].contiguous()
        gathered = [torch.empty_like(last_B) for _ in range(dist.get_world_size(sp_group))]
        dist.all_gather(gathered, last_B, group=sp_group)
        for earlier_B in gathered[: dist.get_rank(sp_group)]:
            last_drop_BS = torch.maximum(last_drop_BS, earlier_B[:, None])
    return last_drop_BS >= place_S - position_ids_BS


def draw_drops(is_low: Tensor, token_index: Tensor, *, rate: float | Tensor, seed: int) -> Tensor:
    """Bool: each low token drops with probability `rate`, by a draw from its own identity.

    Args:
        is_low: bool, any shape.
        token_index: int64 of the same shape.
        rate: gamma, in [0, 1]; one for all, or as a tensor one for each.
    """
    keys = token_keys(token_index, seed=seed, stream=DROP_STREAM)
    return is_low & (uniform_from_keys(keys) < rate)


@dataclass(frozen=True)
class DropRates:
    """Drop rates of low and other tokens; `gamma * q` on average, whatever the guidance."""

    gamma: float
    """Drop probability of a low token while all others are spared, in [0, 1]."""
    q: float
    """Share of the tokens that is low."""
    guidance: float = 1.0
    """How much entropy decides, in [0, 1]: 1 spares the others, 0 treats all alike."""

    @property
    def mean(self) -> float:
        return self.gamma * self.q

    @property
    def low(self) -> float:
        return self.guidance * self.gamma + (1 - self.guidance) * self.mean

    @property
    def other(self) -> float:
        """At most `low`."""
        return (1 - self.guidance) * self.mean


def draw_guided_drops(
    is_low: Tensor,
    is_known: Tensor,
    token_index: Tensor,
    *,
    rates: DropRates,
    seed: int,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Bool: as `draw_drops`, where tokens that are not low may drop as well.

    Args:
        is_low: bool, any shape.
        is_known: bool of the same shape; tokens without an entropy never drop.
        token_index: int64 of the same shape.
        scale: factor of the rates, up to 1.
    """
    uniform = uniform_from_keys(token_keys(token_index, seed=seed, stream=DROP_STREAM))
    is_under_low, is_under_other = uniform < rates.low * scale, uniform < rates.other * scale
    return (is_low & is_under_low) | (is_known & is_under_other)


def soft_drop_rates(
    entropy: Tensor, *, threshold: float, softness: float, rates: DropRates
) -> Tensor:
    """Drop probabilities that fall smoothly with entropy, fp64; their mean is `rates.mean`.

    sigmoid((threshold - e) / (softness * mean e)), times one number for all tokens, which is also
    right for the other side, where `entropy` is negative. At most 2 gamma: half of the tokens or
    more that are low have a sigmoid of 1/2 or more. As softness goes to 0 these are the two steps
    of `draw_guided_drops`.

    Args:
        entropy: fp32 `[R, P]`, rows of P - 1 tokens of this rank and the one after them; +inf marks
            a token that is not a target, whose rate is 0.
        threshold: the global quantile `rates.q` of the entropies.
    """
    is_known, is_own = entropy.isfinite(), entropy.isfinite()
    is_own[:, 0] = False  # the rank before has counted it
    value = entropy.double().masked_fill(~is_known, 0.0)
    size, num_known = _sums_over_ranks(value[is_own].abs().sum(), is_own.sum())
    if num_known == 0:
        return torch.zeros_like(value)
    width = max(softness * size / num_known, _TINY)
    weight = torch.sigmoid((threshold - value) / width)
    (total,) = _sums_over_ranks(weight[is_own].sum())
    soft = rates.mean * num_known / total * weight
    rate = rates.guidance * soft + (1 - rates.guidance) * rates.mean
    return rate.masked_fill(~is_known, 0.0)


def _sums_over_ranks(*sums: Tensor) -> list[float]:
    """Of a number each, in fp64."""
    total = torch.stack([each.double() for each in sums])
    if dist.is_initialized():
        dist.all_reduce(total)
    found: list[float] = total.tolist()
    return found


def sample_scales(visits: Tensor, *, seed: int) -> Tensor:
    """A number from U(0, 1) for each visit of a sample, fp64 of the same shape."""
    return uniform_from_keys(token_keys(visits, seed=seed, stream=RATE_STREAM))
