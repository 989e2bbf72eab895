"""What stands in for a dropped token, and nothing else, changes."""

from __future__ import annotations

import torch

from tests.training.layouts import VOCAB_SIZE, UnevenPack, tiny_recipe
from training.data import MicroBatch, SampleStream
from training.dist import Layout
from training.token_dropout import gamma_at, masked_input


def batch_of_rank(rank: int, sp_size: int) -> MicroBatch:
    stream = SampleStream(
        pack=UnevenPack(),
        split="train",
        layout=Layout(rank, sp_size, sp_size, torch.device("cpu")),
        total_samples=4,
        samples_per_step=4,
        micro_batch_samples=4,
    )
    return stream.step(0)[0]


def every_third(batch: MicroBatch) -> torch.Tensor:
    return batch.token_index_BS1[:, :-1] % 3 == 0


def test_zero_leaves_the_ids_and_names_the_embeddings():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    ids, zeroed = masked_input(batch, drops, tiny_recipe(), vocab_size=VOCAB_SIZE)
    assert torch.equal(ids, batch.ids_BS)
    assert torch.equal(zeroed, drops)


def test_mask_token_replaces_dropped_ids_alone():
    batch = batch_of_rank(0, 1)
    drops = every_third(batch)
    recipe = tiny_recipe(dropout__replace="mask_token", dropout__mask_token_id=7)
    ids, zeroed = masked_input(batch, drops, recipe, vocab_size=VOCAB_SIZE)
    assert zeroed is None
    assert (ids[drops] == 7).all()
    assert torch.equal(ids[~drops], batch.ids_BS[~drops])


def test_random_tokens_are_valid_and_the_same_on_any_layout():
    recipe = tiny_recipe(dropout__replace="random_token")
    whole = batch_of_rank(0, 1)
    drops = every_third(whole)
    ids, _ = masked_input(whole, drops, recipe, vocab_size=VOCAB_SIZE)
    assert torch.equal(ids[~drops], whole.ids_BS[~drops])
    assert ((ids >= 0) & (ids < VOCAB_SIZE)).all()
    assert (ids[drops] != whole.ids_BS[drops]).double().mean() > 0.9
    shards = [batch_of_rank(rank, 2) for rank in range(2)]
    found = [masked_input(s, every_third(s), recipe, vocab_size=VOCAB_SIZE)[0] for s in shards]
    assert torch.equal(torch.cat(found, dim=1), ids)


def test_gamma_follows_the_curriculum_and_is_nothing_without_the_method():
    rising = tiny_recipe(dropout__curriculum={"kind": "linear"}, dropout__max_rate=0.4)
    assert [gamma_at(rising, progress=p) for p in (0.0, 0.5, 1.0)] == [0.0, 0.2, 0.4]
    assert gamma_at(tiny_recipe(regulariser="none"), progress=1.0) == 0.0
