"""Check: the same Python, packages, sources and recipe on every host."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import tomllib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.version import Version

from launch.preflight.finding import Finding, name_ranks, ranks_by_value
from launch.preflight.setting import Context, Setting
from training.config.load import dump_recipe
from training.config.shipped import PACKAGE_ROOT, find_ds_config

_PACKAGES = ("torch", "deepspeed", "transformers", "accelerate", "tokenizers", "numpy")
_SHOWN = ("python", "torch", "deepspeed", "transformers")


def measure(context: Context, *, version_of: Callable[[str], str] = version) -> dict[str, str]:
    """Versions by name; `sources` and `recipe` are hashes of their content."""
    found = {"python": platform.python_version()}
    found |= {name: version_of(name) for name in _PACKAGES}
    found["cuda"] = str(torch.version.cuda)
    if context.setting.on_gpu:
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    found["sources"] = sources_hash(PACKAGE_ROOT)
    if commit := _commit():
        found["commit"] = commit
    deepspeed = find_ds_config(context.recipe.deepspeed)
    content = dump_recipe(context.recipe) + deepspeed.read_text(encoding="utf-8")
    found["recipe"] = _short_hash(content.encode())
    return found


def judge(setting: Setting, measures: Mapping[int, dict[str, str]]) -> list[Finding]:
    """One finding for each name that is not the same everywhere."""
    findings = [_outside(measures[min(measures)])]
    names = {name for found in measures.values() for name in found}
    for name in sorted(names - {"commit"}):  # equal sources are what counts
        values = {rank: found.get(name, "none") for rank, found in measures.items()}
        (usual, _), *others = ranks_by_value(values)
        for other, ranks in others:
            findings.append(
                Finding(
                    "fail",
                    f"{name} is {other} on {name_ranks(ranks, setting.hosts)}, {usual} elsewhere",
                    _todo(name),
                    ranks,
                )
            )
    return findings


def sources_hash(repository: Path) -> str:
    """Of all Python files of the packages and of the DeepSpeed JSONs, by path and content."""
    digest = hashlib.sha256()
    for folder in ("data_prep", "training", "launch", "ds_configs"):
        paths = (repository / folder).rglob("*")
        for path in sorted(path for path in paths if path.suffix in (".py", ".json", ".sh")):
            digest.update(path.relative_to(repository).as_posix().encode() + b"\0")
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _commit() -> str | None:
    """None where this is not a checkout, or git does not trust it."""
    command = ["git", "-C", str(PACKAGE_ROOT), "rev-parse", "--short", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _outside(found: Mapping[str, str]) -> Finding:
    """What pyproject.toml requires, against what is installed."""
    text = ", ".join(f"{name} {found[name]}" for name in _SHOWN)
    project = PACKAGE_ROOT / "pyproject.toml"
    if project.is_file():
        wanted = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"]
        requirements = {each.name: each.specifier for each in map(Requirement, wanted)}
        outside = [
            f"{name} {found[name]} (required: {requirements[name]})"
            for name in _PACKAGES
            if name in requirements and Version(found[name]).base_version not in requirements[name]
        ]
        if outside:
            return Finding(
                "warn",
                f"{', '.join(outside)}: not what this repository is tested with",
                "pip install -r requirements.txt",
            )
    commit = f" (commit {found['commit']})" if "commit" in found else ""
    return Finding("pass", f"{text}, sources {found['sources']}{commit}")


def _todo(name: str) -> str:
    if name == "sources":
        return "bring the checkout of these hosts to the same state, or use a shared one"
    if name == "recipe":
        return "start all processes with the same recipe, DeepSpeed JSON and overrides"
    return "install the same environment on these hosts (pip install -r requirements.txt)"
