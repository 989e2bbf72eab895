"""Commands of the pages on launching run as they stand; two addresses stand for hosts."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.markdown import REPO_ROOT, code_blocks
from tests.warm_python import warm_path, warm_python
from training.config.load import load_recipe

PAGES = ("launching.md", "planning.md")


def commands(page: str) -> list[str]:
    blocks = code_blocks(REPO_ROOT / "docs" / page, "bash")
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [line for page in PAGES for line in commands(page)])
def test_a_command_runs(command: str, tmp_path: Path) -> None:
    for name in ("common", "launch", "training", "data_prep", "ds_configs"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    (tmp_path / "hosts.txt").write_text("127.0.0.2 slots=4\n127.0.0.3 slots=4\n")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=tmp_path,
        env=os.environ
        | {
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHON": warm_python(),
            "PATH": warm_path(),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    shows = "GiB of a GPU, at the peak of" if "launch plan" in command else "training train "
    shows = "Longest sample that fits" if "--longest" in command else shows
    assert shows in done.stdout


@pytest.mark.parametrize(
    ("page", "recipe"),
    [
        ("launching.md", "qwen3_8b"),
        ("images.md", "qwen3_0.6b"),
        ("images.md", "quickstart"),
        ("../docker/compose.yaml", "quickstart"),
    ],
)
def test_the_corpus_that_a_page_makes_is_the_one_that_its_recipe_reads(
    page: str, recipe: str
) -> None:
    """Under another name, or without a pack of that length, the training after it is refused."""
    text = (REPO_ROOT / "docs" / page).read_text(encoding="utf-8")
    reads = load_recipe(REPO_ROOT / "training" / "recipes" / f"{recipe}.yaml", []).data
    assert reads.corpus in re.findall(r"--out (data/\S+?)\)?$", text, re.MULTILINE)
    packed = re.findall(r"\bpack (data/\S+) --seq-len (\d+)", text)
    assert (reads.corpus, str(reads.sequence_tokens)) in packed


def test_the_page_names_the_families_that_kernels_cover() -> None:
    from training.model.fused_layers import FAMILIES

    page = " ".join((REPO_ROOT / "docs" / "launching.md").read_text(encoding="utf-8").split())
    assert f"for {', '.join(FAMILIES[:-1])} and {FAMILIES[-1]}. Needs the extra" in page
