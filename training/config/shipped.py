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
    return _find(Path(given), folder=RECIPES, suffix=".yaml", told_as="recipe ")


def find_ds_config(given: str) -> Path:
    """The file at a path, or else the shipped DeepSpeed JSON of that name: `zero3`.

    Raises:
        ValueError: when there is neither.
    """
    return _find(Path(given), folder=DS_CONFIGS, suffix=".json", told_as="deepspeed: ")


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


def _find(given: Path, *, folder: Path, suffix: str, told_as: str) -> Path:
    """A file of the user's own comes first; `folder/name` names a shipped one, too."""
    if given.exists() and not given.is_dir():
        return given
    shipped = shipped_names(folder, suffix)
    if given.parent in (Path(), folder):
        for name in (given.name, f"{given.name}{suffix}"):
            if name in shipped:
                return PACKAGE_ROOT / folder / name
    if given.is_dir():
        raise ValueError(f"{told_as}{given}: Is a directory")
    names = [name.removesuffix(suffix) for name in shipped]
    listed = f"shipped are {', '.join(names)}"
    hint = did_you_mean(given.name.removesuffix(suffix), names, otherwise=listed)
    raise ValueError(f"{told_as}{given}: No such file or directory{hint}")
