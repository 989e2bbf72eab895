"""Whether a recipe's model fits engine, corpus and layout, before any weight is loaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PretrainedConfig

from common.commands import command
from data_prep.shards import Corpus
from training.config.recipe import Recipe
from training.config.sections import Model
from training.model.causal_lm import resolve_model_config
from training.model.checks import check_heads
from training.model.ds_config import training_dtype
from training.model.gate import find_other_numbers
from training.model.layer_dropout import LayerDropout
from training.model.layers import decoder_layers
from training.model.tiled_mlp import tile_mlps
from training.model.tiny import plain_model, tiny_config
from training.model.tokenizers import find_other_ids, find_pair
from training.model.weights import find_other_weights
from training.ranks.dist import Layout, raise_together, together
from training.regularisers.table import model_regularisation


def fitting_config(recipe: Recipe, corpus: Corpus, *, sp_size: int) -> PretrainedConfig:
    """The model's configuration; every rank calls it.

    Raises:
        ValueError: for a configuration that cannot be read, or does not fit corpus or layout.
    """
    config = resolve_model_config(
        recipe.model, vocab_size=corpus.vocab_size, dtype=training_dtype(recipe.deepspeed)
    )
    check_vocabulary(config, corpus)
    check_heads(config, sp_size=sp_size)
    return config


def find_misfit(
    recipe: Recipe, corpus: Corpus, config: PretrainedConfig, *, trains: bool = True
) -> str | None:
    """What takes seconds, so that one rank does it for all.

    Returns:
        In a sentence: losses other than those of transformers, or weights that are not the
        model's; None where all fits.
    """
    key = repr(
        (recipe.model, recipe.adapter, config.to_json_string(use_diff=False), corpus.folder, trains)
    )
    lengths = (recipe.data.sequence_tokens, recipe.train.sequence_parallel_size)
    key += f" {corpus.fingerprint} {lengths} {_stamps(recipe.model)}"
    if key not in _FOUND:
        _FOUND[key] = find_other_numbers(
            recipe.model,
            config,
            sequence_tokens=recipe.data.sequence_tokens,
            sp_size=recipe.train.sequence_parallel_size,
            trains=trains,
            adapter=recipe.adapter,
        ) or find_other_weights(recipe.model, config)
    return _FOUND[key]


def find_other_tokenizer(model: Model, corpus: Corpus) -> str | None:
    """What `data.corpus` was tokenised by, if not by the model's tokenizer; in a sentence.

    None where all fits, and where the model's is not on this machine. Takes seconds.
    """
    if model.pretrained is None:
        return None
    key = repr(("tokenizer", model.pretrained, corpus.folder, corpus.fingerprint, _stamps(model)))
    if key not in _FOUND:
        pair = find_pair(corpus.tokenizer_dir, model.pretrained)
        remedy = f"build it with --tokenizer {model.pretrained}"
        other = None if pair is None else find_other_ids(*pair, remedy=remedy)
        _FOUND[key] = other and f"data.corpus {corpus.folder}: {other}"
    return _FOUND[key]


_FOUND: dict[str, str | None] = {}
"""A sweep asks for the same model at each of its combinations."""


def _stamps(model: Model) -> list[tuple[str, int, int]]:
    """Size and time of each file of a local model; it may have changed since it was asked for."""
    if model.pretrained is None:
        return []
    files = sorted(path for path in Path(model.pretrained).glob("*") if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def find_no_part(recipe: Recipe, config: PretrainedConfig) -> str | None:
    """Why dropout inside layers, or tiles, find no place in this model; None where they do."""
    rates, tiles = model_regularisation(recipe), recipe.model.tiled_mlp
    if not rates.mlp_dropout and not rates.attention_output_dropout and not tiles:
        return None
    with torch.device("meta"):  # a layer of each kind, without numbers
        length = recipe.data.sequence_tokens
        tiny = tiny_config(recipe.model, config, sequence_tokens=length)
        layers = decoder_layers(plain_model(recipe.model, tiny))
    try:
        LayerDropout(layers, rates, seed=0)
        if tiles:
            tile_mlps(layers)
    except ValueError as error:
        return str(error)
    return None


def refuse_misfit(recipe: Recipe, corpus: Corpus, config: PretrainedConfig, layout: Layout) -> None:
    """What does not fit a model that is only scored, found on rank 0 and raised on every rank.

    Raises:
        ValueError: with the sentence, or with what went wrong on the way to it.
    """

    def find() -> str | None:
        other = find_other_tokenizer(recipe.model, corpus)
        return other or find_misfit(recipe, corpus, config, trains=False)

    raise_together(together(lambda: find() if layout.is_main else None))


def check_vocabulary(config: PretrainedConfig, corpus: Corpus) -> None:
    """Every id of the corpus's tokenizer must have a row in the model's embedding.

    Raises:
        ValueError: naming the ids that the documents use, and what to do.
    """
    size = config.get_text_config().vocab_size
    if size >= corpus.vocab_size:
        return
    largest = _largest_id(corpus)
    if largest >= size:
        raise ValueError(
            f"model vocabulary {size} is smaller than the corpus's {corpus.vocab_size}, and its "
            f"documents use ids up to {largest}: it was tokenised for another model; build it with "
            f"--tokenizer of this one. If the tokenizer is this one's with tokens added, "
            f"`{command('training add-tokens')}` makes a model with rows for them"
        )
    raise ValueError(
        f"model vocabulary {size} is smaller than the corpus's {corpus.vocab_size}; its documents "
        f"use no id above {largest}, but its tokenizer, which an export takes along, could give "
        f"more. Set model.config.vocab_size to {corpus.vocab_size} or more for a model from "
        "scratch; else build the corpus with --tokenizer of this model"
    )


def _largest_id(corpus: Corpus) -> int:
    """Of all documents; -1 without any. Reads every shard."""
    shards = [*corpus.open_shards("train"), *corpus.open_shards("val")]
    return max((int(shard.tokens.max()) for shard in shards if len(shard.tokens)), default=-1)
