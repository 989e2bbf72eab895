"""Peak memory of one GPU by phase: a step simulated module by module.

Model states follow Rajbhandari et al., ZeRO (arXiv 1910.02054, section 3): in bf16 2 bytes for a
weight, 4 for its gradient and 12 for fp32 master weight and Adam's two moments, each divided by the
number of ranks; at stage 1 only the 12 are. In fp32 DeepSpeed keeps a master copy as well: 4 + 4 +
12.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from launch.planner.gradients import Bucket, WholeSum
from launch.planner.prefetch import Use, gathered_numbers, order_of_uses
from launch.planner.rank import Moment, Phase, Run
from launch.planner.zero import Zero

_ADAM_BYTES, _MASTER_BYTES = 8, 4
_BATCH_BYTES = 49
"""Per token: five int64 (ids, places, targets, two numbers), the document's length, a flag."""
_SOFT_CHUNK_LOGITS = 1 << 23
_METHOD_BYTES = 48
"""Per token: entropy, its bits and hash for the quantile, draw and drop."""


def peak_moments(run: Run) -> dict[Phase, Moment]:
    """The moment of each phase at which most is held."""
    states = _states(run)
    return {
        "load": max(_load(run, states), key=_total),
        "forward": max(_forward(run, states), key=_total),
        "backward": max(_backward(run, states), key=_total),
        "step": _step(run, states),
        "evaluation": _evaluation(run, states),
        "save": states,
    }


def _total(moment: Moment) -> int:
    return moment.total


def _states(run: Run) -> Moment:
    """Held from the first step to the last."""
    zero, own = run.zero, run.partition
    on_gpu = 0 if zero.offloads_optimizer else run.trained_partition
    # beside an adapter the base is at hand
    has_copy = run.teacher == "base" and run.arch.adapter is None
    kept = 0 if zero.offloads_parameters else own + (run.trained_partition if has_copy else 0)
    bucket = zero.reduce_bucket * zero.communication_bytes if _has_bucket(zero) else 0
    return Moment(
        parameters=kept * zero.number_bytes,
        second_partition=0 if zero.offloads_parameters else run.second_partition,
        gradients=(0 if zero.offloads_optimizer else run.summed) * zero.gradient_bytes,
        optimizer=on_gpu * (_MASTER_BYTES + _ADAM_BYTES + _other_bytes(run)),
        buckets=bucket,
        method=run.step_tokens * (_BATCH_BYTES + _METHOD_BYTES) + _teacher_bytes(run),
    )


def _has_bucket(zero: Zero) -> bool:
    """In bf16 stage 1 reduces gradients where they add up."""
    return zero.contiguous_gradients and (zero.shards_weights or zero.number_bytes != 2)


def _teacher_bytes(run: Run) -> int:
    """Its hidden states of a whole step, and its output layer."""
    if run.teacher is None or run.teacher == "scores":
        return 0
    numbers = run.step_tokens * run.arch.hidden + run.arch.embedding_weight
    return numbers * run.zero.number_bytes


def _other_bytes(run: Run) -> int:
    """Of the average and the base, which lie where the optimizer's weights do."""
    base = run.zero.number_bytes if run.keeps_base else 0
    return base + (_MASTER_BYTES if run.averages else 0)


def _load(run: Run, states: Moment) -> Iterator[Moment]:
    """Before Adam's moments exist."""
    own = 0 if run.zero.offloads_optimizer else run.trained_partition
    largest = max(order_of_uses(run.arch, checkpointing=False).sizes)
    largest *= run.zero.shards_weights  # created whole there
    # the master copy is made twice before buckets and gradients are there
    copied = Moment(parameters=states.parameters, optimizer=2 * own * _MASTER_BYTES)
    yield copied
    if not run.zero.shards_weights:  # weights are joined into one tensor
        yield Moment(parameters=2 * states.parameters)
    yield states._replace(
        optimizer=own * (_MASTER_BYTES + _other_bytes(run)),
        gathered=largest * run.zero.number_bytes,
        second_partition=0,
        method=0,
    )


def _forward(run: Run, states: Moment) -> Iterator[Moment]:
    acts, last = run.activations, run.arch.layers + 1
    for use, gathered in _gathered(run):
        if use.is_backward:
            continue
        if use.block == last:
            kept = _kept_below(run, last) + acts.ends
            head = acts.head_chunk + (_head_sums(run) if run.one_pass_head else 0)
            if run.teacher:  # before it, with gradients of its own
                head = max(_head_gradients(run) + head, _head_sums(run) + _soft_chunk(run))
            yield states._replace(gathered=gathered, activations=kept, head=head)
        else:
            kept = _kept_below(run, use.block)
            layer = run.arch.stack[max(use.block - 1, 0)]
            inside = acts.forward_extra(layer)
            if not run.checkpointing:
                inside = acts.layer(layer) + (inside if acts.is_tiled else 0)
            yield states._replace(gathered=gathered, activations=kept + inside)


def _soft_chunk(run: Run) -> int:
    """What `training.entrodrop.distillation` holds of a chunk, in fp32.

    Probabilities of teacher and student and the logits of both; with a stored teacher, which a
    micro-step has whole (int32 and fp16), logits and two of what is made of them.
    """
    rows = min(_SOFT_CHUNK_LOGITS // run.arch.vocab, run.activations.tokens)
    if run.teacher == "scores":
        return 3 * 4 * rows * run.arch.vocab + run.activations.tokens * (6 * run.top_k + 2)
    return 4 * 4 * rows * run.arch.vocab


def _kept_below(run: Run, block: int) -> int:
    """By all layers before one of them, or before the head."""
    acts, below = run.activations, run.arch.stack[: max(block - 1, 0)]
    if run.checkpointing:
        return acts.kept_input * len(below)
    counts = Counter(below)
    return sum(acts.layer(layer) * count for layer, count in counts.items())


def _head_gradients(run: Run) -> int:
    """Of the head's input and, where it is trained, weight, whole."""
    weight = run.arch.embedding_weight * run.zero.number_bytes
    return run.activations.layer_input + (0 if run.arch.adapter else weight)


def _head_sums(run: Run) -> int:
    """The same while it adds up: in fp32, beside the product of a chunk."""
    is_fp32 = run.zero.number_bytes == _MASTER_BYTES
    of_weight = 0 if is_fp32 or run.arch.adapter else run.arch.embedding_weight * _MASTER_BYTES
    return _head_gradients(run) + of_weight


def _backward(run: Run, states: Moment) -> Iterator[Moment]:
    """Part by part from the head on, with the bucket of gradients that fills and is sent."""
    arch, acts, width = run.arch, run.activations, run.zero.number_bytes
    gathered: dict[int, int] = {}
    for use, num_bytes in _gathered(run):
        if use.is_backward:
            gathered[use.block] = max(gathered.get(use.block, 0), num_bytes)
    bucket: Bucket | WholeSum = WholeSum(run.zero, numbers=run.summed)
    if run.zero.shards_weights:
        bucket = Bucket(run.zero, num_copies=1 if acts.on_gpu else 2)

    def moment(block: int, activations: int, *weights: int) -> Iterator[Moment]:
        for weight in weights or (0,):
            held = bucket.held + weight * width
            yield states._replace(
                gathered=gathered[block],
                activations=activations,
                whole_gradients=waiting + held + (bucket.add(weight) if weight else 0),
            )

    def of_base(*weights: int) -> tuple[int, ...]:
        return weights if arch.adapter is None else ()

    # A tied weight's gradient waits until the embedding has added its own.
    waiting = sum(of_base(arch.embedding_weight)) * width if arch.tied else 0
    kept = _kept_below(run, arch.layers + 1) + acts.ends + acts.layer_input
    # two passes compute the logits again
    chunk = 0 if run.one_pass_head else acts.head_chunk
    output = () if arch.tied else of_base(arch.embedding_weight)
    for held in moment(arch.layers + 1, kept, *output):
        yield held._replace(head=chunk)
    for block, layer in reversed(list(enumerate(arch.stack, 1))):
        mlp = of_base(*arch.mlp_weights(layer))
        others = arch.weights_before_mlp(layer)
        gradient = acts.mlp_gradient(layer)
        below = _kept_below(run, block) + acts.hidden_gradients
        below += acts.layer_input if run.checkpointing else 0
        whole = below + acts.layer(layer)
        if acts.is_tiled:  # all weights of the MLP get theirs at once, summed in fp32 before
            sums = sum(mlp) * (width + _MASTER_BYTES)
            for held in moment(block, whole + acts.tile(layer)):
                yield held._replace(whole_gradients=held.whole_gradients + sums)
            yield from moment(block, whole, *reversed(mlp))
        else:
            yield from moment(block, whole + gradient, *mlp[-1:])
            # the product's gradient and two after it; the product itself is freed
            yield from moment(block, whole + 2 * gradient)
            yield from moment(block, whole - gradient, *reversed(mlp[:-1]))
        norm = acts.mlp(layer) if acts.is_tiled else 0
        yield from moment(block, below + acts.mixing(layer) + norm + acts.norm_gradient)
        if layer.attends:
            yield from moment(block, below + acts.mixing(layer) + acts.attention_gradient)
        yield from moment(block, below + acts.mixing(layer), *of_base(*reversed(others)))
        yield from moment(block, below, *arch.adapter_weights)
    yield from moment(0, acts.layer_input, *of_base(*arch.beside_weights, arch.embedding_weight))
    waiting = 0
    yield states._replace(gathered=gathered[0], whole_gradients=bucket.held + bucket.send())


def _gathered(run: Run) -> list[tuple[Use, int]]:
    """Bytes of whole weights at each use; a single rank uses its own in place."""
    is_whole = run.world_size == 1 or not run.zero.shards_weights
    is_free = is_whole and not run.zero.offloads_parameters
    width = 0 if is_free else run.zero.number_bytes
    walked = gathered_numbers(run.arch, run.zero, checkpointing=run.checkpointing)
    return [(use, numbers * width) for use, numbers in walked]


def _step(run: Run, states: Moment) -> Moment:
    """Gradients of a sub-group are copied into one, and to fp32 where they are not."""
    if run.zero.offloads_optimizer or not run.zero.shards_weights:
        return states
    width = run.zero.gradient_bytes
    bytes_each = width if width == _MASTER_BYTES else width + _MASTER_BYTES
    own = min(run.trained_partition, run.zero.sub_group)
    return states._replace(whole_gradients=own * bytes_each)


def _evaluation(run: Run, states: Moment) -> Moment:
    """A forward pass that keeps nothing; with an average, also the weights that it replaces."""
    acts = run.activations
    own = 0 if run.zero.offloads_parameters else run.trained_partition
    replaced = own * run.zero.number_bytes if run.averages else 0
    inside = max(use_bytes for use, use_bytes in _gathered(run) if not use.is_backward)
    return states._replace(
        parameters=states.parameters + replaced,
        gathered=inside,
        activations=max(map(acts.forward_extra, set(run.arch.stack))) + acts.ends,
        head=acts.head_chunk,
    )
