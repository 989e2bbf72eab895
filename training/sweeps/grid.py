"""The runs of a sweep: every combination of the values that vary, each a recipe with a folder."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from training.config.load import KEPT_RECIPE, dump_recipe, load_recipe
from training.config.recipe import Recipe
from training.metrics.file import METRICS_FILE, read_metrics
from training.reports.groups import flat_settings

_NOT_TO_VARY = ("run_dir", "resume")


@dataclass(frozen=True)
class Axis:
    """A key of the recipe and the values that it takes."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One combination."""

    name: str
    """Of its folder in the sweep's, such as `max_rate-0.2,seed-1`."""
    recipe: Recipe

    @property
    def run_dir(self) -> Path:
        """Its run folder."""
        return Path(self.recipe.run_dir)

    @property
    def recipe_path(self) -> Path:
        """The recipe that it runs, written before the first run starts: later edits are ignored."""
        return self.run_dir / "recipe.yaml"


def parse_axes(varied: Sequence[str], seeds: str | None) -> list[Axis]:
    """`a.b=1,2,3` texts as axes; seeds come last, so that those of a combination run in a row.

    Raises:
        ValueError: for a text of another form, and for keys or values given twice.
    """
    axes = [_parse_axis(text) for text in varied]
    if seeds is not None:
        axes.append(_parse_axis(f"seed={seeds}"))
    if not axes:
        raise ValueError("nothing varies; name at least one key: --vary a.b=1,2,3, or --seeds 1,2")
    keys = [axis.key for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is given twice; give all of its values at once")
        if key in _NOT_TO_VARY:
            raise ValueError(f"--vary {key}: the sweep itself sets it")
    return axes


class Mistakes:
    """What is wrong with runs, each mistake once with the runs that have it."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, name: str, text: str) -> None:
        """Note that `text` is wrong with the run `name`."""
        self._names.setdefault(text, []).append(name)

    def raise_all(self) -> None:
        """Raise a ValueError, if there is anything to say."""
        if self._names:
            raise ValueError(
                "no run was started\n"
                + "\n".join(f"{_some(names)}: {text}" for text, names in self._names.items())
            )


def plan_runs(
    recipe: Path, overrides: Sequence[str], axes: Sequence[Axis], *, mistakes: Mistakes
) -> list[PlannedRun]:
    """The recipe of every combination, each with a folder of its own under `run_dir`.

    Those that are not a valid recipe are left out and added to `mistakes`.
    """
    names = _short_names([axis.key for axis in axes])
    runs: dict[str, PlannedRun] = {}
    first_of: dict[str, str] = {}
    for values in itertools.product(*(axis.values for axis in axes)):
        changes = [f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)]
        # no "=" in a path: launchers would read it as a key of the recipe
        name = ",".join(f"{key}-{_safe(value)}" for key, value in zip(names, values, strict=True))
        try:
            found = load_recipe(recipe, [*overrides, *changes])
        except ValueError as error:
            mistakes.add(name, str(error))
            continue
        if name in runs:
            mistakes.add(name, "two combinations would share this folder")
        same = first_of.setdefault(repr(_learnt_by(found)), name)
        if same != name:
            mistakes.add(name, f"is the same as {same}, with its values written differently")
        runs[name] = PlannedRun(name, _in_own_place(found, name))
    return list(runs.values())


def _in_own_place(recipe: Recipe, name: str) -> Recipe:
    """The recipe of one run, with a folder and a place for copies of its own."""
    mirror = recipe.checkpoint.mirror
    checkpoint = replace(recipe.checkpoint, mirror=f"{mirror.rstrip('/')}/{name}" if mirror else "")
    return replace(recipe, run_dir=f"{recipe.run_dir}/{name}", checkpoint=checkpoint)


def find_other_recipe(run: PlannedRun) -> str | None:
    """What differs between the run that the folder holds and the one planned; None for nothing."""
    path = run.run_dir / KEPT_RECIPE
    if not path.exists():
        return None
    try:
        kept = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {error}; move that folder away to continue") from None
    if not isinstance(kept, dict):
        raise ValueError(f"{path} is not a recipe; move that folder away to continue")
    found, planned = _learnt(kept), _learnt_by(run.recipe)
    changed = [
        f"{key} was {found.get(key)}, is {planned.get(key)}"
        for key in sorted(found.keys() | planned.keys())
        if found.get(key) != planned.get(key)
    ]
    if not changed:
        return None
    return (
        f"{run.run_dir} holds a run with other settings ({'; '.join(changed)}); "
        "choose another run_dir, or move that folder away"
    )


def find_other_corpus(run: PlannedRun, *, packs: Mapping[str, str]) -> str | None:
    """Whether the run that the folder holds had other samples; None for the same, or for no run.

    Its recipe names a corpus only by its folder, which may have been built again.

    Args:
        packs: fingerprints of the samples of now, named as among the facts of a run: `pack`, and
            `pack_of_<name>` of other corpora.
    """
    path = run.run_dir / METRICS_FILE
    rows = read_metrics(path) if path.exists() else []
    facts = next((row for row in rows if row["kind"] == "run"), {})
    changed = [
        f"{name} was {str(before)[:16]}, is {str(packs.get(name))[:16]}"
        for name, before in facts.items()  # older runs do not have all of them
        if name.startswith("pack") and before not in (None, packs.get(name))
    ]
    if not changed:
        return None
    return (
        f"{run.run_dir} holds a run on a corpus that was built or packed otherwise "
        f"({'; '.join(changed)}); choose another run_dir, or move that folder away"
    )


def _learnt(recipe: dict[str, Any]) -> dict[str, Any]:
    return flat_settings(recipe) | {"seed": recipe.get("seed")}


def _learnt_by(recipe: Recipe) -> dict[str, Any]:
    return _learnt(yaml.safe_load(dump_recipe(recipe)))


def _parse_axis(text: str) -> Axis:
    key, separator, values = text.partition("=")
    found = tuple(value.strip() for value in _split_at_commas(values))
    if not separator or not key or not all(found):
        raise ValueError(f"--vary {text!r} is not of the form a.b=1,2,3")
    for value in found:
        if found.count(value) > 1:
            raise ValueError(f"--vary {key}: {value} is given twice")
    return Axis(key, found)


def _split_at_commas(text: str) -> list[str]:
    """Outside brackets and quotes: of "1,[2,3],'4,5'" it is "1", "[2,3]", "'4,5'"."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter in "'\"" and quote in ("", letter):
            quote = "" if quote else letter
        elif not quote:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def _short_names(keys: list[str]) -> list[str]:
    """The last part of each key, or all of it where two keys end alike."""
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]


def _safe(value: str) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", value)


def _some(names: list[str]) -> str:
    shown = names[:3] + ([f"{len(names) - 3} more"] if len(names) > 3 else [])
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
