"""Weights of domains, in whole samples and tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.packing.manifest import PackWeight
from data_prep.packing.mixture import Mixture, describe, mix, with_replay


def domain(name: str, tokens: int, *, samples: int | None = None) -> SimpleNamespace:
    samples = -(-tokens // 10) if samples is None else samples
    return SimpleNamespace(
        name=name, num_samples=samples, num_tokens=tokens, num_targets=max(tokens - samples, 0)
    )


def by_epochs(value: float) -> PackWeight:
    return PackWeight(epochs=value)


def by_proportion(value: float) -> PackWeight:
    return PackWeight(proportion=value)


def tokens_of(mixture: Mixture) -> dict[str, int]:
    return {share.name: share.tokens_per_epoch for share in mixture}


def test_without_weights_every_domain_is_seen_once():
    mixture = mix([domain("a", 100), domain("b", 55)], {})
    assert tokens_of(mixture) == {"a": 100, "b": 55}
    assert [share.samples for share in mixture] == [range(10), range(10, 16)]


def test_epochs_and_proportions_together():
    # The second is three quarters of 400 tokens, the first the other 100.
    mixture = mix([domain("a", 100), domain("b", 100)], {"b": by_proportion(0.75)})
    assert tokens_of(mixture) == {"a": 100, "b": 300}
    mixture = mix(
        [domain("a", 100), domain("b", 1000), domain("c", 50)],
        {"a": by_epochs(4), "b": by_proportion(0.1)},
    )
    assert tokens_of(mixture) == {"a": 400, "b": 50, "c": 50}


def test_proportions_alone_make_an_epoch_as_long_as_what_they_take():
    domains = [domain("a", 100), domain("b", 300), domain("c", 999)]
    weights = {"a": by_proportion(0.5), "b": by_proportion(0.5), "c": by_epochs(0)}
    assert tokens_of(mix(domains, weights)) == {"a": 200, "b": 200, "c": 0}


@given(
    sizes=st.lists(st.integers(1000, 10**9), min_size=2, max_size=5),
    share=st.floats(0.01, 0.9),
    times=st.floats(0.5, 20),
)
@settings(max_examples=100, deadline=None)
def test_a_proportion_is_met_to_half_a_sample(sizes, share, times):
    domains = [domain(str(i), size) for i, size in enumerate(sizes)]
    mixture = mix(domains, {"0": by_epochs(times), "1": by_proportion(share)})
    total = sum(share.tokens_per_epoch for share in mixture)
    # Half a sample of each domain, of at most 10 tokens, and the rounding of tokens.
    assert abs(mixture[1].tokens_per_epoch - share * total) <= 6 * len(sizes)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"notse": by_epochs(2)}, "no domain 'notse' in this corpus; did you mean notes"),
        ({"notes": by_proportion(1.0)}, "leaves nothing for web"),
        ({"notes": by_proportion(0.5), "web": by_proportion(0.4)}, "sum to 0.9, not 1"),
        ({"notes": by_epochs(0), "web": by_epochs(0)}, "leave nothing to train on"),
        ({"notes": PackWeight()}, "exactly one of epochs and proportion"),
        ({"notes": PackWeight(epochs=1, proportion=0.1)}, "exactly one"),
        ({"notes": by_epochs(0.001), "web": by_epochs(0.001)}, "leave nothing to train on"),
    ],
)
def test_weights_that_cannot_be_met_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        mix([domain("notes", 100), domain("web", 300)], weights)


def test_a_domain_without_tokens_cannot_be_a_share():
    with pytest.raises(ValueError, match="empty has no tokens"):
        mix([domain("empty", 0), domain("web", 300)], {"empty": by_proportion(0.5)})


def test_what_a_weight_means_is_said_in_tokens():
    mixture = mix([domain("notes", 100), domain("web", 300)], {"notes": by_epochs(3)})
    assert describe(mixture) == [
        "notes  300 tokens per epoch (50.0%): 3 x its 10 samples",
        "web    300 tokens per epoch (50.0%): 1 x its 30 samples",
    ]


@given(
    own=st.lists(st.integers(1000, 10**9), min_size=1, max_size=4),
    other=st.lists(st.integers(1000, 10**9), min_size=1, max_size=4),
    share=st.floats(0.05, 0.95),
)
def test_replay_is_added_to_a_mixture_that_stays_as_it_is(own, other, share):
    mixture = mix([domain(f"d{i}", tokens) for i, tokens in enumerate(own)], {})
    others = [domain(f"o{i}", tokens) for i, tokens in enumerate(other)]
    *kept, replay = with_replay(mixture, others, share=share)
    assert tuple(kept) == mixture
    assert replay.samples.start == mixture[-1].samples.stop
    assert len(replay.samples) == sum(part.num_samples for part in others)
    own_tokens = sum(part.tokens_per_epoch for part in mixture)
    wanted = share * (own_tokens + replay.tokens_per_epoch)
    assert abs(replay.tokens_per_epoch - wanted) <= 10 * (1 - share) + 2  # a sample has 10


def test_a_share_of_less_than_a_sample_and_a_pack_without_tokens_are_refused():
    mixture = mix([domain("a", 100)], {})
    with pytest.raises(ValueError, match=r"share 0\.01 of an epoch of 100 other tokens is less"):
        with_replay(mixture, [domain("b", 1000)], share=0.01)
    with pytest.raises(ValueError, match="its train split has no tokens"):
        with_replay(mixture, [domain("b", 0)], share=0.5)
