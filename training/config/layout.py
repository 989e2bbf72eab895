"""What must divide: batches among data-parallel groups, heads among sequence shards."""

from __future__ import annotations


class DoesNotDivideError(ValueError):
    """Names the nearest values that do divide."""


def batch_shape(
    *, global_batch_tokens: int, sequence_tokens: int, micro_batch_samples: int, dp_size: int
) -> tuple[int, int]:
    """Samples and micro-steps of an optimizer step.

    Raises:
        DoesNotDivideError: when the batch does not divide.
    """
    samples = global_batch_tokens // sequence_tokens
    at_once = micro_batch_samples * dp_size
    if samples % at_once or samples == 0:
        unit = at_once * sequence_tokens
        below, above = samples // at_once * unit, (samples // at_once + 1) * unit
        nearest = f"{below} or {above}" if below else f"{above}"
        raise DoesNotDivideError(
            f"train.global_batch_tokens {global_batch_tokens} is {samples} samples of "
            f"{sequence_tokens} tokens; {dp_size} data-parallel groups x "
            f"train.micro_batch_samples {micro_batch_samples} take {at_once} at once. "
            f"Nearest that divide: {nearest}"
        )
    return samples, samples // at_once


def check_head_counts(*, heads: int, kv_heads: int, sp_size: int) -> None:
    """Ulysses gives each rank whole heads; fewer key-value heads than ranks are repeated.

    Raises:
        DoesNotDivideError: when the heads do not divide among the ranks that share a sequence.
    """
    fits = [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)
    ]
    if sp_size not in fits:
        raise DoesNotDivideError(
            f"train.sequence_parallel_size {sp_size} does not fit {heads} attention heads and "
            f"{kv_heads} key-value heads; it can be one of {fits}"
        )


def second_partition(value: object, *, deepspeed: str) -> int:
    """`zero_hpz_partition_size` of a DeepSpeed JSON.

    Raises:
        ValueError: for no whole number, which DeepSpeed takes for one if it can, and below 1.
    """
    if type(value) is not int or value < 1:
        raise ValueError(
            f"deepspeed: {deepspeed}: zero_optimization.zero_hpz_partition_size: expected a whole "
            f"number of at least 1 (is {value!r})"
        )
    return value


def check_second_partition(num_sharing: int, *, num_ranks: int, deepspeed: str) -> None:
    """`zero_hpz_partition_size` ranks hold all weights together, as many times as there are.

    Raises:
        DoesNotDivideError: when the ranks do not divide into groups of that size.
    """
    fits = [n for n in range(1, num_ranks + 1) if num_ranks % n == 0]
    if num_sharing > 1 and num_sharing not in fits:
        raise DoesNotDivideError(
            f"deepspeed: {deepspeed}: zero_optimization.zero_hpz_partition_size {num_sharing} does "
            f"not divide the number of processes {num_ranks}; it can be one of {fits}, best those "
            "of a node"
        )
