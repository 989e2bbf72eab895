"""What one rank meets, every rank raises: none waits for another."""

from __future__ import annotations

import pytest

from tests.distributed import run_ranks
from training.ranks.dist import init_layout, together


def work_on(rank: int) -> int:
    if rank == 1:
        raise KeyError("bands")
    return rank


def raise_on_one() -> tuple[str, str]:
    layout = init_layout(sp_size=1)
    assert together(lambda: layout.rank) == layout.rank
    with pytest.raises(ValueError) as caught:
        together(lambda: work_on(layout.rank))
    return str(caught.value), type(caught.value.__cause__).__name__


def test_an_error_of_any_kind_on_one_rank_is_raised_on_all():
    found = run_ranks(raise_on_one, world_size=2)
    assert found == [("KeyError: 'bands'", "NoneType"), ("KeyError: 'bands'", "KeyError")]


def misfit_on_main() -> str:
    """A check of rank 0 that fails as a library's code would, in the start of a run."""
    from tests.training.layouts import tiny_recipe
    from training.run import start

    layout = init_layout(sp_size=1)

    def planted(*_arguments: object) -> None:
        if layout.is_main:
            raise AttributeError("no such part")

    start.check_start = planted  # type: ignore[assignment]
    with pytest.raises(ValueError) as caught:
        start.check_start_together(tiny_recipe(), layout)
    return str(caught.value)


def test_a_start_in_which_a_library_fails_on_rank_0_ends_on_every_rank():
    assert run_ranks(misfit_on_main, world_size=2) == ["AttributeError: no such part"] * 2
