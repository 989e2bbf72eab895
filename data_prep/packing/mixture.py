"""How much of each domain an epoch takes, in whole samples and in tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.hints import did_you_mean

_TOLERANCE = 1e-6


class Weight(Protocol):
    """Exactly one of the two is set."""

    @property
    def epochs(self) -> float | None:
        """Passes over the domain per epoch of the run; 0 leaves it out."""

    @property
    def proportion(self) -> float | None:
        """Fraction of the epoch's tokens."""


class DomainCounts(Protocol):
    """Counts of a domain, from packing."""

    @property
    def name(self) -> str: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_targets(self) -> int: ...


@dataclass(frozen=True)
class DomainShare:
    """One domain's part of every epoch."""

    name: str
    samples: range
    """Numbers of its samples in the pack."""
    samples_per_epoch: int
    tokens_per_epoch: int
    """Exact if an epoch makes a whole number of passes over the domain, otherwise the mean."""
    targets_per_epoch: int

    @property
    def epochs(self) -> float:
        """Passes over the domain per epoch of the run."""
        return self.samples_per_epoch / max(len(self.samples), 1)


Mixture = tuple[DomainShare, ...]


def mix(domains: Sequence[DomainCounts], weights: Mapping[str, Weight]) -> Mixture:
    """Whole samples of each domain in an epoch.

    A domain without a weight is seen once. Domains weighted by `epochs` contribute that many
    passes; those weighted by `proportion` p make up the fraction p of the epoch, which has the
    tokens of the former / (1 - the sum of p). If all domains are weighted by proportion, the
    epoch is as long as one pass over those it includes.

    Example: domains of 100 and 100 tokens, the second with proportion 0.75: the epoch takes 100
    tokens of the first, 300 of the second.

    Raises:
        ValueError: for an unknown domain, or weights that cannot be met.
    """
    check_weights([domain.name for domain in domains], weights)
    # Left out either way: 0 times is a share of 0.
    proportions = {
        name: weight.proportion or 0.0 for name, weight in weights.items() if not weight.epochs
    }
    times = {d.name: _epochs_of(weights.get(d.name)) for d in domains if d.name not in proportions}
    tokens_by_epochs = sum(d.num_tokens * times[d.name] for d in domains if d.name in times)
    total = _epoch_tokens(domains, proportions=proportions, tokens_by_epochs=tokens_by_epochs)
    shares, first = [], 0
    for domain in domains:
        if domain.name in times:
            passes = times[domain.name]
        else:
            passes = _passes(domain, tokens=proportions[domain.name] * total)
        shares.append(_share(domain, first=first, passes=passes))
        first += domain.num_samples
    if not any(share.samples_per_epoch for share in shares):
        raise ValueError("mixture: the weights leave nothing to train on")
    return tuple(shares)


def with_replay(mixture: Mixture, replay: Sequence[DomainCounts], *, share: float) -> Mixture:
    """The same and, as a last domain, samples of another pack for the share `share` of an epoch.

    The other domains stay as they are, so the epoch has their tokens / (1 - share), but for
    rounding to whole samples. All domains of the other pack are one, and its samples are numbered
    after those of the mixture's own.

    Example: 300 tokens an epoch and a share of 0.25: 100 tokens of replay.

    Raises:
        ValueError: for a share of less than a sample, or a pack without tokens.
    """
    num_samples = sum(domain.num_samples for domain in replay)
    num_tokens = sum(domain.num_tokens for domain in replay)
    if num_tokens == 0:
        raise ValueError("corpus: its train split has no tokens")
    own_tokens = sum(part.tokens_per_epoch for part in mixture)
    wanted_tokens = own_tokens * share / (1 - share)
    samples_per_epoch = round(wanted_tokens * num_samples / num_tokens)
    if samples_per_epoch == 0:
        raise ValueError(
            f"share {share:g} of an epoch of {own_tokens:,} other tokens is less than one sample"
        )
    first = mixture[-1].samples.stop

    def of_an_epoch(count: int) -> int:
        return round(count * samples_per_epoch / num_samples)

    last = DomainShare(
        name="replay",
        samples=range(first, first + num_samples),
        samples_per_epoch=samples_per_epoch,
        tokens_per_epoch=of_an_epoch(num_tokens),
        targets_per_epoch=of_an_epoch(sum(domain.num_targets for domain in replay)),
    )
    return (*mixture, last)


def check_weights(names: Sequence[str], weights: Mapping[str, Weight]) -> None:
    """Raise for an unknown domain, or a weight that does not set exactly one of the two."""
    for name, weight in weights.items():
        if name not in names:
            hint = did_you_mean(name, names, otherwise=f"there are {', '.join(names)}")
            raise ValueError(f"mixture: no domain {name!r} in this corpus{hint}")
        if (weight.epochs is None) == (weight.proportion is None):
            raise ValueError(f"mixture: {name}: set exactly one of epochs and proportion")


def describe(mixture: Mixture) -> list[str]:
    """Human-readable lines: what each weight means in tokens."""
    total = max(1, sum(share.tokens_per_epoch for share in mixture))
    width = max(len(share.name) for share in mixture)
    return [
        f"{share.name:<{width}}  {share.tokens_per_epoch:,} tokens per epoch "
        f"({share.tokens_per_epoch / total:.1%}): {share.epochs:.4g} x its "
        f"{len(share.samples):,} samples"
        for share in mixture
    ]


def _epochs_of(weight: Weight | None) -> float:
    return 1.0 if weight is None or weight.epochs is None else weight.epochs


def _epoch_tokens(
    domains: Sequence[DomainCounts], *, proportions: Mapping[str, float], tokens_by_epochs: float
) -> float:
    whole = math.fsum(proportions.values())
    if len(proportions) == len(domains) and whole:
        if abs(whole - 1) > _TOLERANCE:
            raise ValueError(
                f"mixture: every domain has a proportion and they sum to {whole:g}, not 1"
            )
        return sum(domain.num_tokens for domain in domains if proportions[domain.name])
    if whole > 1 - _TOLERANCE:
        rest = ", ".join(domain.name for domain in domains if domain.name not in proportions)
        raise ValueError(
            f"mixture: proportions sum to {whole:g}, which leaves nothing for {rest}; lower them, "
            "or give those domains `proportion: 0`"
        )
    return tokens_by_epochs / (1 - whole)


def _passes(domain: DomainCounts, *, tokens: float) -> float:
    if tokens and not domain.num_tokens:
        raise ValueError(f"mixture: {domain.name} has no tokens, so it cannot be part of the epoch")
    return tokens / max(domain.num_tokens, 1)


def _share(domain: DomainCounts, *, first: int, passes: float) -> DomainShare:
    samples_per_epoch = round(passes * domain.num_samples)

    def of_an_epoch(count: int) -> int:
        return round(count * samples_per_epoch / max(domain.num_samples, 1))

    return DomainShare(
        name=domain.name,
        samples=range(first, first + domain.num_samples),
        samples_per_epoch=samples_per_epoch,
        tokens_per_epoch=of_an_epoch(domain.num_tokens),
        targets_per_epoch=of_an_epoch(domain.num_targets),
    )
