"""Files of the package, found from any folder: recipes, DeepSpeed JSONs, job scripts."""

from __future__ import annotations

import sys
from pathlib import Path

from common.hints import did_you_mean

PACKAGE_ROOT = Path(__file__).resolve().parents[2]
"""Where training/, launch/ and ds_configs/ are: a checkout, or where pip installed them."""
RECIPES, DS_CONFIGS = Path("training/recipes"), Path("ds_configs")


def find_recipe(given: str | Path) -> Path:
    """The file at a path, or else the shipped recipe of that name: `qwen3_0.6b`.

    Raises:
        ValueError: when there is neither.
    """
    found = _find(Path(given), folder=RECIPES, suffix=".yaml")
    if found is None:
        names = [name.removesuffix(".yaml") for name in shipped_names(RECIPES, ".yaml")]
        hint = did_you_mean(Path(given).name.removesuffix(".yaml"), names)
        raise ValueError(f"recipe {given}: No such file or directory{hint or _listed(names)}")
    return found


def find_ds_config(given: str) -> Path:
    """The file at a path, or else the shipped DeepSpeed JSON of that name: `zero3`.

    Raises:
        ValueError: when there is neither.
    """
    found = _find(Path(given), folder=DS_CONFIGS, suffix=".json")
    if found is None:
        names = [name.removesuffix(".json") for name in shipped_names(DS_CONFIGS, ".json")]
        hint = did_you_mean(Path(given).name.removesuffix(".json"), names)
        raise ValueError(f"deepspeed: {given}: No such file or directory{hint or _listed(names)}")
    return found


def job_script(name: str) -> tuple[Path, dict[str, str]]:
    """A script of launch/slurm, and what a job of it must know: its environment variables.

    A job runs a copy of the script. One of a checkout finds the rest in the folder that it was
    submitted from; elsewhere it is told where the package is, and that it runs in this folder.
    """
    here = Path("launch/slurm", name)
    if here.exists():
        return here, {}
    return PACKAGE_ROOT / here, {
        "ENTRODROP_ROOT": str(PACKAGE_ROOT),
        "ENTRODROP_WORK_DIR": str(Path.cwd()),
        "PYTHON": sys.executable,
    }


def shipped_names(folder: Path, suffix: str) -> list[str]:
    """Names of the shipped files, such as zero3.json."""
    return sorted(path.name for path in (PACKAGE_ROOT / folder).glob(f"*{suffix}"))


def _listed(names: list[str]) -> str:
    return f"; shipped are {', '.join(names)}"


def _find(given: Path, *, folder: Path, suffix: str) -> Path | None:
    """A file of the user's own comes first; `folder/name` names a shipped one, too."""
    if given.exists():
        return given
    if given.parent not in (Path(), folder):
        return None
    for name in (given.name, f"{given.name}{suffix}"):
        if name in shipped_names(folder, suffix):
            return PACKAGE_ROOT / folder / name
    return None
