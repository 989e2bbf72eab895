"""An entropy belongs to the token that it predicts, also across the border of a shard."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.distributed import run_ranks
from training.entrodrop.entropy import token_entropies


def predictions(length: int = 12, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Distinct entropies of whole rows and which positions have a target."""
    entropy_BT = torch.arange(1.0, rows * length + 1).view(rows, length)
    is_target_BT = torch.ones(rows, length, dtype=torch.bool)
    is_target_BT[:, -1] = False  # nothing follows the last token
    is_target_BT[1, 5] = False  # a document ends here: the token behind starts another
    return entropy_BT, is_target_BT


def test_entropy_of_a_token_is_that_of_the_position_before():
    entropy_BT, is_target_BT = predictions()
    of_token_BT1 = token_entropies(entropy_BT, is_target_BT)
    assert of_token_BT1.shape == (3, 13)
    for row in range(3):
        assert of_token_BT1[row, 0] == math.inf  # predicted by nothing
        for position in range(11):
            expected = math.inf if (row, position) == (1, 5) else entropy_BT[row, position]
            assert of_token_BT1[row, position + 1] == expected
        assert of_token_BT1[row, 12] == math.inf


def shard_of_rank() -> Tensor:
    dist.init_process_group("gloo")
    size, rank = dist.get_world_size(), dist.get_rank()
    entropy_BT, is_target_BT = predictions()
    own = slice(rank * 12 // size, (rank + 1) * 12 // size)
    return token_entropies(entropy_BT[:, own], is_target_BT[:, own], sp_group=dist.group.WORLD)


@pytest.mark.parametrize("sp_size", [2, 4])
def test_last_entropy_of_a_shard_belongs_to_the_first_token_of_the_next(sp_size):
    whole_BT1 = token_entropies(*predictions())
    shard = 12 // sp_size
    for rank, found_BP in enumerate(run_ranks(shard_of_rank, world_size=sp_size)):
        assert torch.equal(found_BP, whole_BT1[:, rank * shard : (rank + 1) * shard + 1])
