"""Packed documents do not see each other, with and without sequence shards."""

from __future__ import annotations

from typing import Any

import deepspeed
import numpy as np
import pytest
import torch

from tests.distributed import run_ranks
from tests.training.layouts import SEQUENCE_TOKENS, VOCAB_SIZE, tiny_recipe
from training.data.documents import find_documents
from training.data.stream import MicroBatch
from training.model.causal_lm import resolve_model_config
from training.model.engine import Engine, build_engine
from training.model.inputs import NO_REGULARISATION, ModelInputs
from training.ranks.dist import Layout, init_layout

# documents of 7, 11, 1, 9 and 4 tokens; the second lies on both sides of the border at 16
LENGTHS = (7, 11, 1, 9, 4)
CHANGED = slice(7, 18)
MODELS = {
    "tied": {},
    "untied": {"model__config__tie_word_embeddings": False},
    "one_kv_head": {"model__config__num_key_value_heads": 1},
    "llama": {"model__config__model_type": "llama"},
}


def packed_row(layout: Layout, *, changed: bool, one_document: bool = False) -> MicroBatch:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB_SIZE, SEQUENCE_TOKENS)
    if changed:
        ids[CHANGED] = (ids[CHANGED] + 1 + rng.integers(0, 50, 11)) % VOCAB_SIZE
    position_ids_BT = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    documents = find_documents(position_ids_BT, device=layout.device)
    if one_document:
        whole = torch.arange(SEQUENCE_TOKENS)[None]
        documents = find_documents(whole, device=layout.device)
    shard = SEQUENCE_TOKENS // layout.sp_size
    own = slice(layout.sp_rank * shard, (layout.sp_rank + 1) * shard)
    ids_BS = torch.from_numpy(ids)[None, own]
    return MicroBatch(
        ids_BS=ids_BS,
        position_ids_BS=position_ids_BT[:, own].contiguous(),
        targets_BS=ids_BS,
        token_index_BP=torch.zeros(1, shard + 1, dtype=torch.int64),
        corpus_index_BP=torch.zeros(1, shard + 1, dtype=torch.int64),
        is_target_token_BP=torch.ones(1, shard + 1, dtype=torch.bool),
        document_tokens_BS=torch.ones_like(ids_BS),
        documents=documents,
        sample_ids=(0,),
        visits=(0,),
        epochs=(0,),
        num_tokens=shard,
        num_targets=shard,
    )


def logits_of_rank(sp_size: int, model: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Logits `[S, V]` of this rank's shard: before and after the change, isolated and leaking."""
    layout = init_layout(sp_size=sp_size)
    recipe = tiny_recipe(train__sequence_parallel_size=sp_size, **model)
    config = resolve_model_config(recipe.model, vocab_size=VOCAB_SIZE, dtype=torch.float32)
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    return {
        f"{kind}_{state}": logits(
            engine, packed_row(layout, changed=state == "after", one_document=kind == "leaking")
        )
        for kind in ("isolated", "leaking")
        for state in ("before", "after")
    }


def logits(engine: Engine, batch: MicroBatch) -> torch.Tensor:
    head, seen = engine.model.lm.get_output_embeddings(), []
    hook = head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    engine.probe(ModelInputs.of(batch))
    hook.remove()
    with deepspeed.zero.GatheredParameters([head.weight]), torch.no_grad():
        return (seen[0][0] @ head.weight.T).clone()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("sp_size", [1, 2])
def test_changing_one_document_leaves_the_logits_of_the_others(sp_size, model):
    shards = run_ranks(logits_of_rank, sp_size, MODELS[model], world_size=sp_size)
    whole = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
    others = torch.ones(SEQUENCE_TOKENS, dtype=torch.bool)
    others[CHANGED] = False
    isolated = (whole["isolated_after"] - whole["isolated_before"]).abs().amax(dim=1)
    assert (isolated[others] == 0).all()
    assert (isolated[CHANGED] > 1e-3).all()
    # the same comparison sees a leak where there is one
    leaking = (whole["leaking_after"] - whole["leaking_before"]).abs().amax(dim=1)
    assert (leaking[CHANGED.stop :] > 1e-5).all()


def test_windows_are_the_same_on_shards_of_a_sequence():
    """Of documents of up to 11 tokens each sees 4, wherever a shard ends."""
    window = {"model__config__model_type": "mistral", "model__config__sliding_window": 4}
    (alone,) = run_ranks(logits_of_rank, 1, window, world_size=1)
    shards = run_ranks(logits_of_rank, 2, window, world_size=2)
    for key, expected in alone.items():
        torch.testing.assert_close(torch.cat([shard[key] for shard in shards]), expected)
    # of a longer document the last tokens see none of the changed ones
    far = CHANGED.stop + 4 * 3
    assert torch.equal(alone["leaking_before"][far:], alone["leaking_after"][far:])


def test_a_packed_document_has_the_logits_that_it_has_alone():
    """Against plain transformers, document by document, with the same weights."""
    run_ranks(compare_with_transformers, world_size=1)


def compare_with_transformers() -> None:
    from transformers import AutoModelForCausalLM

    layout = init_layout(sp_size=1)
    recipe = tiny_recipe()
    config = resolve_model_config(recipe.model, vocab_size=VOCAB_SIZE, dtype=torch.float32)
    engine = build_engine(
        recipe, config, layout=layout, num_micro_steps=1, regularisation=NO_REGULARISATION
    )
    batch = packed_row(layout, changed=False)
    packed = logits(engine, batch)
    weights = {}
    for name, parameter in engine.model.lm.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            weights[name] = parameter.detach().clone()
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    plain.load_state_dict(weights, strict=False)
    for document, found in zip(batch.ids_BS[0].split(LENGTHS), packed.split(LENGTHS), strict=True):
        with torch.no_grad():
            alone = plain(input_ids=document[None]).logits[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
