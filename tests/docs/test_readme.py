from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.docs.markdown import PAGES, REPO_ROOT, code_blocks, links, load_script, paths_of_ours
from tests.warm_python import warm_path, warm_python
from training.config.load import parse_recipe

README = REPO_ROOT / "README.md"


def test_tree_shows_every_file_with_the_first_line_of_its_docstring() -> None:
    page = (REPO_ROOT / "docs" / "tree.md").read_text(encoding="utf-8")
    expected = load_script("generate_tree").page_with_tree(page)
    assert page == expected, "run: python docs/generate_tree.py"


def test_the_readme_fits_on_two_screens() -> None:
    assert len(README.read_text(encoding="utf-8")) <= 10_000


@pytest.mark.parametrize("package", ["common", "data_prep", "training", "launch", "benchmarks"])
def test_every_module_says_in_one_sentence_what_it_is(package: str) -> None:
    first_sentence = load_script("generate_tree").first_sentence
    for path in sorted((REPO_ROOT / package).rglob("*.py")):
        if path.name == "__init__.py":
            assert path.read_text() == "", f"{path} must be empty"
        else:
            assert re.fullmatch(r"\S.*\.", first_sentence(path)), f"{path}: {first_sentence(path)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO_ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in links(page):
        path, _, _ = target.partition("#")
        assert not path or (page.parent / path).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO_ROOT).as_posix())
def test_files_that_a_page_names_exist(page: Path) -> None:
    """From the root of the repository, so that nobody has to search for a `saver.py`."""
    assert [path for path in paths_of_ours(page) if not list(REPO_ROOT.glob(path))] == []


def test_a_page_is_searched_for_what_it_names() -> None:
    found = paths_of_ours(REPO_ROOT / "docs" / "architecture.md")
    assert {"training/checkpoints/", "training/entrodrop/curriculum.py"} <= set(found)
    assert len(found) > 50
    compared = paths_of_ours(REPO_ROOT / "docs" / "comparison.md")
    assert "tests/launch/test_preflight_hosts.py" in compared
    assert not [path for path in compared if path.startswith("docs/source")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO_ROOT).as_posix())
def test_files_and_make_targets_that_commands_name_exist(page: Path) -> None:
    makefile = (REPO_ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for block in code_blocks(page, "bash"):
        for target in re.findall(r"^make ([a-z]+)", block, flags=re.MULTILINE):
            assert target in targets
        for path in re.findall(r"(?:launch|docs|training|ds_configs)/[\w/.-]+\.\w+", block):
            assert (REPO_ROOT / path).exists(), path
        for module, verb in re.findall(r"python -m (training|data_prep) ([\w-]+)", block):
            shown = subprocess.run(
                [warm_python(), "-m", module, verb, "--help"],
                cwd=REPO_ROOT,
                capture_output=True,
                text=True,
            )
            assert shown.returncode == 0, f"python -m {module} {verb}: {shown.stderr}"


def test_recipes_in_the_readme_are_valid() -> None:
    blocks = code_blocks(README, "yaml")
    assert blocks
    for block in blocks:
        parse_recipe(yaml.safe_load(block), origin="README.md")


@pytest.mark.slow
def test_commands_of_the_tour_run_as_they_stand(tmp_path: Path) -> None:
    (tour,) = code_blocks(REPO_ROOT / "docs" / "tour.md", "bash")
    for name in ("common", "data_prep", "training", "launch", "ds_configs"):
        (tmp_path / name).symlink_to(REPO_ROOT / name)
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'export PATH="{warm_path()}"\n')
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", tour],
        cwd=tmp_path,
        env=os.environ
        | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": warm_python(), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert (tmp_path / "runs" / "tour-compared" / "index.html").exists()
    assert (tmp_path / "runs" / "tour" / "export" / "model.safetensors").exists()
    assert "continuation:" in shown.stdout
