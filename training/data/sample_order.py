"""Sample order: epochs of a mixture of domains, each domain exact, any position in O(1)."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from data_prep.shards import Mixture

_NUM_ROUNDS = 6


class Permutations:
    """Pseudorandom permutations of `size` numbers, each evaluated at any index in O(1).

    A Feistel network over the smallest even number of bits that holds all samples is a
    bijection; outputs beyond the last sample are permuted again until they fall inside (cycle
    walking: Black, Rogaway: Ciphers with arbitrary finite domains, 2002).
    """

    def __init__(self, size: int, *, key: tuple[int, ...]) -> None:
        self.size = size
        self._key = key
        self._half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)

    def at(self, index: int, *, number: int) -> int:
        """The element at `index`, in [0, size), of permutation `number`."""
        seeds = np.random.SeedSequence((*self._key, number))
        state = seeds.generate_state(_NUM_ROUNDS, np.uint64)
        keys = [int(key) for key in state]
        value = index
        while True:
            value = self._permute(value, keys)
            if value < self.size:
                return value

    def _permute(self, value: int, keys: list[int]) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = value >> self._half_bits, value & mask
        for key in keys:
            mixed = ((right ^ key) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
            left, right = right, left ^ ((mixed >> 32) & mask)
        return left << self._half_bits | right


class SampleOrder:
    """The endless order of a run's samples: a function of the mixture and the seed.

    Every domain has its own endless stream, one permutation of its samples after another.
    An epoch takes the next `samples_per_epoch` of each domain's stream and shuffles them
    together. After e epochs a domain of n samples with c per epoch has been traversed
    e * c / n times, each of its samples floor or ceil of that often.
    """

    def __init__(self, mixture: Mixture, *, seed: int) -> None:
        self._shares = [share for share in mixture if share.samples_per_epoch]
        self._starts = [0, *accumulate(share.samples_per_epoch for share in self._shares)]
        self.samples_per_epoch = self._starts[-1]
        self._repeats_within_epoch = any(
            share.samples_per_epoch != len(share.samples) for share in self._shares
        )
        # A trailing 0 in a key would change nothing, so domains count from 1.
        self._slots = Permutations(self.samples_per_epoch, key=(seed,))
        self._domains = [
            Permutations(len(share.samples), key=(seed, number))
            for number, share in enumerate(self._shares, start=1)
        ]

    def may_repeat(self, numbers: range) -> bool:
        """Whether a sample may come twice at these positions; False where that is cheap to see."""
        if self._repeats_within_epoch:
            return True
        first_epoch = numbers.start // self.samples_per_epoch
        return bool(numbers) and numbers[-1] // self.samples_per_epoch > first_epoch

    def sample_at(self, number: int) -> tuple[int, int]:
        """The sample at a position of the order, and how often it came before.

        Args:
            number: from 0, over all epochs.
        """
        epoch, index = divmod(number, self.samples_per_epoch)
        slot = self._slots.at(index, number=epoch)
        domain = bisect_right(self._starts, slot) - 1
        share = self._shares[domain]
        place = epoch * share.samples_per_epoch + slot - self._starts[domain]
        times_seen, index = divmod(place, len(share.samples))
        return share.samples[self._domains[domain].at(index, number=times_seen)], times_seen
