"""Every byte that a run reads is compared with its manifest: corpus, replay and held-out sets."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training.refusals import CPU, flip
from tests.training.short_runs import short_recipe
from training.config.recipe import Recipe
from training.ranks.dist import Layout
from training.run.run_data import RunData


@pytest.fixture
def recipe(small_corpus: Path, general_corpus: Path, tmp_path: Path) -> Recipe:
    """Corpus, replay, and a held-out set of a third corpus."""
    for name in ("replay", "sets"):
        shutil.copytree(general_corpus, tmp_path / name)
    other = {"corpus": str(tmp_path / "sets"), "domain": None, "split": "val"}
    return short_recipe(
        small_corpus,
        tmp_path / "run",
        replay={"corpus": str(tmp_path / "replay"), "share": 0.2},
        evaluation={"every_steps": 4, "sets": {"domain": {}, "general": other}},
    )


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("of", ["replay", "sets"])
def test_any_flipped_bit_of_another_corpus_is_found(
    recipe: Recipe, tmp_path: Path, of: str, num_ranks: int
) -> None:
    layouts = [Layout(rank, num_ranks, 1, CPU) for rank in range(num_ranks)]
    data = RunData.open(recipe)
    for layout in layouts:
        data.check(recipe, layout)
    files = [folder / file.name for folder, file in data.files(recipe) if file.num_bytes]
    own = [path for path in files if tmp_path / of in path.parents]
    assert own
    for path in own:
        whole = path.read_bytes()
        flip(path)
        found = []
        for layout in layouts:
            try:
                data.check(recipe, layout)
            except ValueError as error:
                found.append(str(error))
        assert len(found) == 1  # the rank whose share it is
        assert found[0].startswith(f"{path}: damaged: expected sha256")
        path.write_bytes(whole)


def test_each_file_is_read_once_and_none_that_is_not_used(recipe: Recipe, tmp_path: Path) -> None:
    found = [folder / file.name for folder, file in RunData.open(recipe).files(recipe)]
    assert len(set(found)) == len(found)
    names = {
        of: {path.name for path in found if tmp_path / of in path.parents}
        for of in ("replay", "sets")
    }
    used = {of: {name.split("-")[1] for name in own if "-" in name and name.startswith("shard")}
            for of, own in names.items()}  # fmt: skip
    assert used == {"replay": {"train"}, "sets": {"val"}}


def test_a_corpus_that_several_sets_share_is_read_once(recipe: Recipe) -> None:
    sets = dict(recipe.evaluation.sets or {})
    sets |= {"again": replace(sets["general"], domain="email")}
    more = replace(recipe, evaluation=replace(recipe.evaluation, sets=sets))
    assert RunData.open(more).files(more) == RunData.open(recipe).files(recipe)
