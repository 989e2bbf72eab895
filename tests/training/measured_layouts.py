"""One step on each layout: its loss, gradients, dropped tokens and cache."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist

from tests.distributed import ranks_folder, run_ranks
from tests.grids import WHOLE, is_taken
from tests.training.layouts import (
    RandomTopK,
    UnevenPack,
    make_regulariser,
    tiny_recipe,
    whole_epochs,
)
from training.config.layout import batch_shape
from training.config.recipe import Recipe
from training.data.stream import MicroBatch, SampleStream
from training.model.causal_lm import resolve_model_config
from training.model.engine import Engine, build_engine
from training.model.own_parts import whole_shape
from training.ranks.dist import init_layout
from training.regularisers.entropy_cache import EntropyCache
from training.regularisers.table import model_regularisation
from training.run.forward import Forward
from training.run.step import train_step
from training.run.teacher import make_teacher

# name: processes, sequence shards, rows of a forward pass
LAYOUTS = {
    "one_process": (1, 1, 8),
    "accumulation_2": (1, 1, 4),
    "dp_2": (2, 1, 4),
    "dp_2_accumulation_2": (2, 1, 2),
    "sp_2": (2, 2, 8),
    "sp_2_accumulation_2": (2, 2, 4),
    "dp_2_sp_2": (4, 2, 4),
    "dp_2_sp_2_accumulation_2": (4, 2, 2),
}
if not WHOLE:  # what lies between ranks in each of two ways alone, and all three ways at once
    for name in ("accumulation_2", "dp_2_accumulation_2", "sp_2_accumulation_2", "dp_2_sp_2"):
        del LAYOUTS[name]


IN_LAYERS = ["hidden_dropout", "mlp_dropout", "attention_output_dropout", "stochastic_depth"]


DROPOUTS: dict[str, dict[str, Any]] = {
    "off": {"regulariser": "none"},
    "input": {"dropout__where": "input"},
    "loss": {"dropout__where": "loss"},
    "both_by_nll_random_token": {
        "dropout__where": "both",
        "dropout__replace": "random_token",
        "entropy__measure": "nll",
    },
    "random_loss": {"regulariser": "random_token_dropout", "dropout__where": "loss"},
    "neftune": {"regulariser": "neftune"},
    "hidden_dropout": {"regulariser": "hidden_dropout"},
    "label_smoothing": {"regulariser": "label_smoothing", "train__z_loss": 1e-2},
    "both_by_reference_mean": {
        "dropout__where": "both",
        "dropout__replace": "mean",
        "entropy__source": "reference",
    },
    "rho1": {"regulariser": "rho1"},
    "input_by_reference_of_the_corpus": {
        "entropy__source": "reference",
        "entropy__scope": "corpus",
    },
    "input_by_reference": {"entropy__source": "reference"},
    "both_by_cache": {"dropout__where": "both", "entropy__source": "cache"},
    "loss_by_cache_of_the_corpus_nll": {
        "dropout__where": "loss",
        "entropy__source": "cache",
        "entropy__scope": "corpus",
        "entropy__measure": "nll",
        "entropy__cache_keeps": "latest",
    },
    "both_beside_hidden_dropout": {"dropout__where": "both", "extra_regulariser": "hidden_dropout"},
    "soft_uniform_both": {
        "dropout__where": "both",
        "dropout__softness": 0.5,
        "dropout__max_rate": 0.5,
        "dropout__quantile": 0.8,
        "dropout__guidance": 0.8,
        "dropout__sample_rates": "uniform",
    },
    "random_eaft_in_layers": {
        "regularisers": [
            *("random_token_dropout", "token_replacement", "eaft"),
            *IN_LAYERS,
        ],
        "dropout__sample_rates": "uniform",
        "baseline__stochastic_depth": 0.4,
    },
    "both_taught_by_scores": {
        "dropout__where": "both",
        "entropy__source": "reference",
        "teacher": {"kind": "scores", "scores": "random", "weight": 0.7},
    },
    "loss_lagged": {"dropout__where": "loss", "entropy__threshold": "lagged"},
    "loss_guided": {"dropout__where": "loss", "dropout__guidance": 0.5},
    "loss_guided_lagged": {
        "dropout__where": "loss",
        "dropout__guidance": 0.5,
        "entropy__threshold": "lagged",
    },
}


# compared with the other within one layout and model, so both are measured there
MEASURED_WITH = {
    "loss_lagged": "loss",
    "loss_guided_lagged": "loss_guided",
    "input_by_reference_of_the_corpus": "input_by_reference",
}


MODELS = {
    "tied": {},
    "untied_one_kv_head_checkpointed": {
        "model__config__tie_word_embeddings": False,
        "model__config__num_key_value_heads": 1,
        "model__activation_checkpointing": True,
    },
}


def is_measured(model: str, layout: str, dropout: str) -> bool:
    """All of it on one process, and of the rest what `tests.grids` takes."""
    dropout = MEASURED_WITH.get(dropout, dropout)
    axes = ((MODELS, model), (LAYOUTS, layout), (DROPOUTS, dropout))
    return layout == "one_process" or is_taken(*(list(axis).index(value) for axis, value in axes))


def measure(
    sp_size: int, micro_batch_samples: int, model: dict[str, Any], dropouts: list[str]
) -> dict[str, Any]:
    """On one rank: dropped tokens, loss and full gradients of a step, for every dropout."""
    layout = init_layout(sp_size=sp_size)
    base = {"train__micro_batch_samples": micro_batch_samples, **model}
    base["train__sequence_parallel_size"] = sp_size
    recipe = tiny_recipe(**base, regularisers=IN_LAYERS)
    engine, stream = make_engine(recipe, layout)
    if recipe.adapter is not None:
        put_random_weights(engine)  # a new one adds nothing
    results = {}
    for name in dropouts:
        changed = tiny_recipe(**base, **DROPOUTS[name])
        in_model = model_regularisation(changed)
        head = engine.model.lm.get_output_embeddings()
        engine.model.replaces_by_mean = in_model.replaces_by_mean
        engine.model._mean_D = None
        engine.model.layer_dropout.rates = in_model
        head.label_smoothing = in_model.label_smoothing
        head.z_loss = changed.train.z_loss
        results[name] = step_without_update(changed, engine, stream)
    return results


def make_engine(
    recipe: Recipe, layout: Any, dtype: torch.dtype = torch.float32
) -> tuple[Any, SampleStream]:
    pack = UnevenPack()
    samples_per_step, micro_steps = batch_shape(
        global_batch_tokens=recipe.train.global_batch_tokens,
        sequence_tokens=recipe.data.sequence_tokens,
        micro_batch_samples=recipe.train.micro_batch_samples,
        dp_size=layout.dp_size,
    )
    config = resolve_model_config(recipe.model, vocab_size=101, dtype=dtype)
    engine = build_engine(
        recipe,
        config,
        layout=layout,
        num_micro_steps=micro_steps * recipe.num_passes,
        regularisation=model_regularisation(recipe),
    )
    stream = SampleStream(
        pack=pack,
        split="train",
        layout=layout,
        total_samples=3 * pack.num_samples(),
        samples_per_step=samples_per_step,
        micro_batch_samples=recipe.train.micro_batch_samples,
        order=whole_epochs(pack.num_samples(), seed=recipe.seed),
    )
    return CapturingEngine(**vars(engine)), stream


def put_random_weights(engine: Engine) -> None:
    """In place of those that are trained, also in the optimizer."""
    from deepspeed.utils import safe_set_full_fp32_param

    generator = torch.Generator().manual_seed(3)
    weights = {
        name: 1.0 + torch.randn(whole_shape(weight), generator=generator) / 3
        for name, weight in engine.trained.items()
    }
    engine.put(weights)
    for name, weight in engine.trained.items():
        safe_set_full_fp32_param(weight, weights[name])


class CapturingEngine(Engine):
    """Keeps the full gradients of a step and leaves the weights as they are (lr 0)."""

    def backward_and_step(self, loss_sum: torch.Tensor, *, divisor: float, lr: float) -> Any:
        from deepspeed.utils import safe_get_full_grad

        factor = self.loss_factor(divisor)
        for group in self.ds.optimizer.param_groups:
            group["lr"] = group["weight_decay"] = 0.0
        ends_step = self.ds.is_gradient_accumulation_boundary()
        self.ds.backward(loss_sum * factor)
        if ends_step:
            gradients = {
                name: safe_get_full_grad(parameter).clone()
                for name, parameter in self.trained.items()
            }
            object.__setattr__(self, "captured", gradients)
        self.ds.step()
        return float(self.ds.get_global_grad_norm()) if ends_step else None


class DroppedTokens:
    """Which tokens a step drops, by what its forward passes are given."""

    def __init__(self) -> None:
        self.found: set[int] = set()

    def add(self, batch: MicroBatch, forward: Forward, *, micro_step: int) -> None:
        if forward.drops_BS is not None:
            self.found |= set(batch.token_index_BP[:, 1:][forward.drops_BS].tolist())


def step_without_update(recipe: Recipe, engine: Any, stream: SampleStream) -> dict[str, Any]:
    """What the step drops, its row, tokens and gradients, and what a cache holds behind it."""
    cache = empty_cache(recipe, stream) if recipe.keeps_entropies else None
    regulariser = make_regulariser(recipe, engine, stream.pack, cache=cache)
    step: dict[str, Any] = {"step": 0, "trained_frac": 0.5, "lr": recipe.optimizer.lr}
    if recipe.is_lagged or cache:  # as if the step before had been this very one
        train_step(engine, stream, regulariser, **step)
    if cache:  # a threshold of the corpus is that of the epoch's start
        regulariser = make_regulariser(recipe, engine, stream.pack, cache=cache)
    dropped: Any = DroppedTokens()
    teacher = make_teacher(
        recipe,
        engine,
        None,
        pack=stream.pack,
        num_domain_samples=stream.pack.num_samples(),
        stored=RandomTopK(),
    )
    done = train_step(engine, stream, regulariser, sketch=dropped, teacher=teacher, **step)
    result = {"dropped": dropped.found, "row": done.row, "num_tokens": done.num_tokens}
    if cache:
        dist.barrier()  # as the first collective of a next step does
        samples = range(stream.pack.num_samples())
        result["cache"] = cache.read(samples, first=0, count=stream.pack.seq_len)
    return result | {"gradients": engine.captured}


def empty_cache(recipe: Recipe, stream: SampleStream) -> EntropyCache:
    """In a file that the ranks share."""
    cache = EntropyCache(
        ranks_folder() / f"cache-{recipe.entropy.measure}",
        num_samples=stream.pack.num_samples(),
        sample_tokens=stream.pack.seq_len,
    )
    if dist.get_rank() == 0:
        cache.clear()
    dist.barrier()
    return cache


@functools.cache
def measured_on_all_layouts(model: str) -> dict[str, list[dict[str, Any]]]:
    """What `measure` returns on each rank, by layout."""
    results = {}
    for layout, (world_size, sp_size, rows) in LAYOUTS.items():
        dropouts = [name for name in DROPOUTS if is_measured(model, layout, name)]
        arguments = (measure, sp_size, rows, MODELS[model], dropouts)
        results[layout] = run_ranks(*arguments, world_size=world_size)
    return results
