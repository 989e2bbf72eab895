"""A recipe on a number of GPUs: memory by phase, host, disk and time, from the same arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace

from launch.planner.activations import Activations
from launch.planner.architecture import Architecture
from launch.planner.corpus import CorpusSize, read_size
from launch.planner.duration import Duration, forecast_duration
from launch.planner.host import Host, forecast_host
from launch.planner.machine import Machine
from launch.planner.memory import peak_moments
from launch.planner.models import find_architecture
from launch.planner.rank import Moment, Phase, Run
from launch.planner.zero import read_zero
from training.config.layout import (
    DoesNotDivideError,
    batch_shape,
    check_head_counts,
    check_second_partition,
)
from training.config.recipe import Recipe

GIB = 2**30
_OUTSIDE_TENSORS_BYTES = 2 * GIB
"""CUDA's context, NCCL's buffers, libraries' workspaces: an assumption, not measured here."""


@dataclass(frozen=True)
class Forecast:
    """All results of a plan; bytes are of one GPU, or of one node."""

    recipe: Recipe
    machine: Machine
    arch: Architecture
    corpus: CorpusSize | None
    run: Run
    moments: dict[Phase, Moment]
    host: Host
    duration: Duration

    @property
    def outside_bytes(self) -> int:
        return _OUTSIDE_TENSORS_BYTES

    @property
    def peak_phase(self) -> Phase:
        return max(self.moments, key=lambda phase: self.moments[phase].total)

    @property
    def peak_bytes(self) -> int:
        return self.moments[self.peak_phase].total + self.outside_bytes

    @property
    def usable_bytes(self) -> int:
        return round(self.machine.gpu_gib * (1 - self.machine.margin_frac) * GIB)

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.usable_bytes and self.host_fits

    @property
    def host_fits(self) -> bool:
        limit = self.machine.host_gib
        return limit is None or self.host.peak_bytes <= limit * GIB


def forecast(recipe: Recipe, machine: Machine, *, known: Forecast | None = None) -> Forecast:
    """Everything about a recipe on a machine.

    Args:
        known: of the same model and corpus, whose sizes are then not read again.

    Raises:
        DoesNotDivideError: for a batch, heads or GPUs that do not divide evenly.
        ValueError: for files that cannot be read.
    """
    arch = known.arch if known else find_architecture(recipe)
    corpus = known.corpus if known else _corpus_size(recipe, machine)
    micro_steps = _micro_steps(recipe, arch, num_gpus=machine.num_gpus)
    run = make_run(recipe, arch, world_size=machine.num_gpus, on_gpu=True)
    run = replace(run, top_k=corpus.top_k if corpus else 0)
    duration = forecast_duration(
        recipe,
        arch,
        micro_steps=micro_steps,
        corpus_tokens=corpus.epoch_tokens if corpus else None,
        flops_per_second=machine.num_gpus * machine.gpu_tflops * 1e12 * machine.hfu,
    )
    host = forecast_host(
        recipe,
        run,
        ranks_per_node=machine.ranks_per_node,
        pack_tokens=corpus.pack_tokens if corpus else None,
    )
    return Forecast(recipe, machine, arch, corpus, run, peak_moments(run), host, duration)


def _corpus_size(recipe: Recipe, machine: Machine) -> CorpusSize | None:
    given = machine.corpus_tokens
    return read_size(recipe) if given is None else CorpusSize(given, given)


def make_run(recipe: Recipe, arch: Architecture, *, world_size: int, on_gpu: bool) -> Run:
    """What decides the memory of a rank, out of the recipe.

    Args:
        on_gpu: False for the CPU path of attention and head, which is what can be measured here.
    """
    zero, train = read_zero(recipe), recipe.train
    sp_size = train.sequence_parallel_size
    return Run(
        arch=arch,
        zero=zero,
        world_size=world_size,
        activations=Activations(
            arch=arch,
            tokens=train.micro_batch_samples * recipe.data.sequence_tokens // sp_size,
            number_bytes=zero.number_bytes,
            on_gpu=on_gpu,
            shards_sequence=sp_size > 1,
            mask_numbers=_mask_numbers(recipe, arch),
            tiles_mlp=recipe.model.tiled_mlp,
            offloads=recipe.model.activation_offloading,
            fused=recipe.model.kernels == "liger",
        ),
        checkpointing=recipe.model.activation_checkpointing,
        step_tokens=-(-train.global_batch_tokens // world_size),
        one_pass_head=not recipe.waits_for_forward,
        averages=recipe.ema is not None,
        keeps_base="l2_sp" in recipe.regularisers,
        teacher=recipe.teacher.kind if recipe.teacher else None,
    )


def _mask_numbers(recipe: Recipe, arch: Architecture) -> int:
    """A token's in a layer, of channels that drop."""
    of_each = {
        "hidden_dropout": arch.hidden,
        "attention_output_dropout": arch.hidden,
        "mlp_dropout": max(map(arch.inner_of, arch.stack)),
    }
    return sum(of_each.get(name, 0) for name in recipe.regularisers)


def _micro_steps(recipe: Recipe, arch: Architecture, *, num_gpus: int) -> int:
    """Forward passes of a rank in a step."""
    train = recipe.train
    sp_size = train.sequence_parallel_size
    if num_gpus % sp_size:
        below = num_gpus // sp_size * sp_size
        nearest = f"{below} and {below + sp_size}" if below else f"{sp_size}"
        raise DoesNotDivideError(
            f"--gpus {num_gpus} is not a multiple of train.sequence_parallel_size {sp_size}; "
            f"nearest that are: {nearest}"
        )
    if sp_size > 1 and arch.carries_state:
        raise DoesNotDivideError(
            f"train.sequence_parallel_size {sp_size}: layers of {arch.family} carry a state "
            "through whole documents, of which a GPU would have a part; set it to 1"
        )
    num_sharing = read_zero(recipe).second_partition
    check_second_partition(num_sharing, num_ranks=num_gpus, deepspeed=recipe.deepspeed)
    check_head_counts(heads=arch.heads, kv_heads=arch.kv_heads, sp_size=sp_size)
    _, micro_steps = batch_shape(
        global_batch_tokens=train.global_batch_tokens,
        sequence_tokens=recipe.data.sequence_tokens,
        micro_batch_samples=train.micro_batch_samples,
        dp_size=num_gpus // sp_size,
    )
    return micro_steps
