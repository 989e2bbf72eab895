"""The package as pip installs it: used from another folder, without the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.new_project import write_project
from tests.made_once import made_once
from training.config.layout import batch_shape
from training.config.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
_PARTS = ("common", "data_prep", "training", "launch", "ds_configs")
_FILES = ("pyproject.toml", "README.md", "LICENSE")
_BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
# what no help, completion or usage error waits for
_HEAVY = ("torch", "numpy", "pydantic", "yaml", "transformers", "deepspeed")


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages, and `bin/entrodrop`."""

    def make(folder: Path) -> None:
        source = folder / "source"
        for part in _PARTS:
            skipped = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, source / part, ignore=skipped)
        for name in _FILES:
            shutil.copy(ROOT / name, source)
        _call(sys.executable, "-c", _BUILD, str(folder), at=source)
        (wheel,) = folder.glob("*.whl")
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile")
        _call(*pip, "--no-index", "--target", str(folder / "site"), str(wheel), at=folder)
        shutil.rmtree(source)

    return made_once(tmp_path_factory, "installed", make) / "site"


def _call(
    *command: str, at: Path, site: Path | None = None, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    dropped = ("PYTHONPATH", "PYTHON", "PYTHONDONTWRITEBYTECODE")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    if site is not None:
        environment |= {"PYTHONPATH": str(site), "PATH": f"{site / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=at, env=environment | variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def entrodrop(*arguments: str, at: Path, site: Path, code: int = 0, **variables: str) -> str:
    done = _call("entrodrop", *arguments, at=at, site=site, code=code, **variables)
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_recipes_and_deepspeed_jsons_are_found_by_name_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    plan = ("--gpus", "8", "--gpu-gib", "80", "--corpus-tokens", "1000000", "--json")
    said = entrodrop(
        "plan", "qwen3_8b", *plan, "deepspeed=zero3_offload_all", at=tmp_path, site=installed
    )
    assert json.loads(said)
    said = entrodrop("plan", "qwen3_8", *plan, at=tmp_path, site=installed, code=2)
    assert "did you mean qwen3_8b?" in said
    said = entrodrop(
        "plan", "qwen3_8b", *plan, "deepspeed=zero4", at=tmp_path, site=installed, code=2
    )
    assert "deepspeed: zero4" in said and "did you mean zero3?" in said


def test_a_new_project_goes_from_texts_to_a_launch(
    installed: Path, tmp_path: Path, small_corpus: Path
) -> None:
    options = ("--model", str(small_corpus / "tokenizer"), "--sequence-tokens", "64")
    entrodrop("new", "notes", *options, at=tmp_path, site=installed)
    project = tmp_path / "notes"
    for number, text in enumerate(("import os\n" * 400, "return None\n" * 400) * 5):
        (project / "texts" / f"{number}.txt").write_text(f"{number} {text}")
    for name in ("common", "training", "launch", "data_prep"):  # as projects have them
        (project / f"{name}.py").write_text("raise SystemExit('not the package')")
    _call("bash", "prepare.sh", at=project, site=installed)
    assert (project / "data/notes/manifest.json").is_file()
    recipe = load_recipe(project / "recipe.yaml", [])
    assert recipe.teacher and recipe.teacher.kind == "ema" and recipe.ema
    assert recipe.train.stop_when and recipe.train.stop_when.worse_for == 10
    said = entrodrop("launch", "local", "recipe.yaml", "--dry-run", at=project, site=installed)
    assert (
        f"{sys.executable} -m launch.torchrun" in said and "train --rank-logs recipe.yaml" in said
    )
    _call(
        *(sys.executable, "-m", "launch.recipe_facts", "--open-corpus", "recipe.yaml"),
        at=project,
        site=installed,
        PYTHONSAFEPATH="1",
    )
    before = (project / "recipe.yaml").read_bytes()
    said = entrodrop("new", "notes", at=tmp_path, site=installed, code=2)
    assert said.endswith("exists already; choose another NAME\n")  # not "raised in a library"
    assert (project / "recipe.yaml").read_bytes() == before
    assert "NAME 'a b'" in entrodrop("new", "a b", at=tmp_path, site=installed, code=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]


@pytest.mark.parametrize(
    ("sequence_tokens", "batch_tokens"), [(64, 16_384), (2048, 16_384), (3000, 24_000)]
)
def test_a_batch_of_a_new_project_divides_among_the_gpus_of_a_node(
    sequence_tokens: int, batch_tokens: int, tmp_path: Path
) -> None:
    write_project(tmp_path / "notes", model="a/model", sequence_tokens=sequence_tokens)
    recipe = load_recipe(tmp_path / "notes" / "recipe.yaml", [])
    assert recipe.train.global_batch_tokens == batch_tokens
    for num_gpus in (1, 2, 4, 8):
        batch_shape(
            global_batch_tokens=batch_tokens,
            sequence_tokens=sequence_tokens,
            micro_batch_samples=recipe.train.micro_batch_samples,
            dp_size=num_gpus,
        )


def test_workers_of_a_build_are_the_package_s_in_a_folder_with_modules_of_its_names(
    installed: Path, tmp_path: Path, small_corpus: Path
) -> None:
    (tmp_path / "common.py").write_text("raise SystemExit('not the package')")
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"{number} import os\n" * 40)
    tokenizer = ("--tokenizer", str(small_corpus / "tokenizer"), "--workers", "2")
    entrodrop(
        *("prep", "build", "--input", "0.txt", "1.txt", *tokenizer, "--out", "corpus"),
        at=tmp_path,
        site=installed,
    )
    assert (tmp_path / "corpus" / "manifest.json").is_file()


def test_a_slurm_job_knows_where_the_package_is_and_where_it_runs(
    installed: Path, tmp_path: Path
) -> None:
    said = entrodrop(
        *("launch", "slurm", "quickstart", "--nodes=2", "--dry-run", "train.epochs=1"),
        at=tmp_path,
        site=installed,
    )
    submitted, *_, runs = said.splitlines()
    assert f"ENTRODROP_ROOT={installed} ENTRODROP_WORK_DIR={tmp_path}" in submitted
    assert f"sbatch --nodes=2 {installed}/launch/slurm/train.sbatch quickstart" in submitted
    assert f"train {installed}/training/recipes/quickstart.yaml --rank-logs" in runs
    said = entrodrop(
        *("launch", "slurm", "quickstart", "--accept-changes", "optimizer.lr", "seed", "--nodes=2"),
        *("--dry-run", "--accept-changes=model"),
        at=tmp_path,
        site=installed,
    )
    accepted = "--accept-changes optimizer.lr seed"
    submitted, *_, runs = said.splitlines()
    assert submitted.endswith(f"train.sbatch quickstart {accepted} --accept-changes=model")
    assert runs.split("--rank-logs ")[1].strip() == f"{accepted} model"
    said = entrodrop("launch", "slurm", "a.yaml", "b.yaml", at=tmp_path, site=installed, code=2)
    assert "expected one recipe, found a.yaml b.yaml" in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "usage: entrodrop"),
        (["--version"], 0, "entrodrop 0."),
        (["trian"], 2, "did you mean train?"),
        (["launch", "locl"], 2, "did you mean local?"),
        (["launch", "slurm"], 2, "usage: entrodrop launch slurm"),
        (["report", "--help"], 0, "entrodrop report runs/plain"),
    ],
)
def test_help_and_usage_errors_wait_for_no_library(
    arguments: list[str], code: int, message: str, installed: Path, tmp_path: Path
) -> None:
    script = f"""
import atexit, sys
sys.argv = ["entrodrop", *{arguments!r}]
atexit.register(lambda: print("loaded:", sorted({{*{_HEAVY!r}}} & {{*sys.modules}})))
from launch.console.main import main
main()
"""
    done = _call(sys.executable, "-c", script, at=tmp_path, site=installed, code=code)
    assert message in done.stdout + done.stderr
    assert done.stdout.endswith("loaded: []\n")


def test_a_shell_completes_verbs_options_and_files(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    script = entrodrop("completion", "bash", at=tmp_path, site=installed)
    (tmp_path / "complete.sh").write_text(script)
    ask = """
source ./complete.sh
eval "$(complete -p entrodrop | sed 's/.*-F \\([^ ]*\\).*/completes=\\1/')"
for line in "$@"; do
    read -ra COMP_WORDS <<<"$line"
    [[ $line != *' ' ]] || COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMPREPLY=()
    "$completes" entrodrop "${COMP_WORDS[COMP_CWORD]}"
    echo "${COMPREPLY[*]}"
done
"""
    lines = ("entrodrop pre", "entrodrop prep bu", "entrodrop launch lo", "entrodrop plan --gpu-g")
    lines += ("entrodrop plan rec",)
    done = _call("bash", "-c", ask, "bash", *lines, at=tmp_path)
    assert done.stdout.splitlines() == [
        "prep preflight preview",
        "build",
        "local",
        "--gpu-gib",
        "recipe.yaml",
    ], done.stderr
