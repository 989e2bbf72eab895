"""Code blocks and links of the project's Markdown pages."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

REPO_ROOT = Path(__file__).resolve().parents[2]
_OUR_FOLDERS = r"(\.ci|benchmarks|data_prep|docker|docs|ds_configs|launch|tests|training)/"
PAGES = sorted([*REPO_ROOT.glob("*.md"), *REPO_ROOT.glob("*/*.md")])


def code_blocks(page: Path, language: str) -> list[str]:
    """The text of every fenced block of a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> list[str]:
    """Targets of links and pictures, without those to other sites."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset)="([^"]+)"', text)
    return [target for target in targets if "://" not in target]


def paths_of_ours(page: Path) -> list[str]:
    """What a page names in backticks and means in this repository, as a path or a pattern.

    That is whatever begins with one of our folders, and every module; not what a run or a user
    has, as `run_state.json`. A page about other projects means ours only behind our name.
    """
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    if page.name == "comparison.md":
        text = "\n".join(re.findall(r"EntroDrop: (.*?)\.\s", text, flags=re.S))
    words = [word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split()]
    return [
        word
        for word in words
        if re.fullmatch(r"[\w./*-]+", word)
        and (re.match(_OUR_FOLDERS, word) or word.endswith(".py"))
    ]


def load_script(name: str) -> ModuleType:
    """A script of docs/ as a module: docs is no package."""
    path = REPO_ROOT / "docs" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
