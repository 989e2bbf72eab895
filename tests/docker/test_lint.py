"""Dockerfiles, their scripts and the compose file as linters and their specifications want them."""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

REPO_ROOT = Path(__file__).resolve().parents[2]
DOCKER = REPO_ROOT / "docker"
DOCKERFILES = ["Dockerfile", "Dockerfile.prep"]
LOCAL = {"common", "data_prep", "training"}


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    hadolint = Path(sys.executable).parent / "hadolint"
    return subprocess.run([hadolint, path], capture_output=True, text=True)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    found = lint(DOCKER / name)
    assert found.returncode == 0, found.stdout + found.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text("FROM debian\nRUN cd /tmp && sudo apt-get install gcc\n")
    assert lint(path).returncode != 0


def compiled_with(flags: list[str], *, cpu_arch: str, folder: Path) -> list[str]:
    """What docker/portable_cxx.sh makes of a compiler's arguments; a g++ that repeats them."""
    compiler = folder / "g++"
    compiler.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    compiler.chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "CPU_ARCH": cpu_arch}
    done = subprocess.run(
        [DOCKER / "portable_cxx.sh", *flags], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs x86_64, whose levels these are")
def test_operators_are_compiled_for_the_named_processor_and_not_for_the_builders(
    tmp_path: Path,
) -> None:
    flags = ["-O3", "-march=native", "-D__AVX512__", "a b.cpp"]
    narrow = compiled_with(flags, cpu_arch="x86-64-v3", folder=tmp_path)
    assert narrow == ["-O3", "-march=x86-64-v3", "-D__AVX256__", "a b.cpp"]
    wide = compiled_with(flags, cpu_arch="x86-64-v4", folder=tmp_path)
    assert wide == ["-O3", "-march=x86-64-v4", "-D__AVX512__", "a b.cpp"]


def install_with(
    *, nvcc_cuda: str | None, torch_cuda: str = "13.0", folder: Path
) -> subprocess.CompletedProcess[str]:
    """docker/install_deepspeed.sh with a pip that repeats what it is given."""
    programs = {
        "pip": 'echo "$DS_ACCELERATOR" "$@"; env | grep ^DS_BUILD',
        "python": f"echo {torch_cuda}",
    }
    if nvcc_cuda is not None:
        programs["nvcc"] = f'echo "Cuda compilation tools, release {nvcc_cuda}, V{nvcc_cuda}.88"'
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    (folder / "requirements.txt").write_text("torch==2.0\ndeepspeed==0.19.8\n")
    return subprocess.run(
        [DOCKER / "install_deepspeed.sh", folder / "requirements.txt"],
        env={
            "PATH": f"{folder}:/usr/bin:/bin",
            "DEEPSPEED_OPS": "cpu_adam fused_adam",
            "TORCH_CUDA_ARCH_LIST": "9.0",
        },
        capture_output=True,
        text=True,
    )


def installed_with(*, nvcc_cuda: str | None, folder: Path) -> str:
    """What it says, and what it gives to pip."""
    done = install_with(nvcc_cuda=nvcc_cuda, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deepspeed==0.19.8" in done.stdout
    return done.stdout


def test_operators_are_compiled_for_cuda_where_the_base_has_nvcc(tmp_path: Path) -> None:
    said = installed_with(nvcc_cuda="13.0", folder=tmp_path)
    assert "compiling for CUDA (9.0): cpu_adam fused_adam" in said
    assert "DS_BUILD_CPU_ADAM=1" in said and "DS_BUILD_FUSED_ADAM=1" in said
    assert "\ncuda install" in said


@pytest.mark.parametrize(("nvcc_cuda", "torch_cuda"), [("13.1", "13.0"), ("13.0", "None")])
def test_a_base_with_another_cuda_than_torch_is_refused_in_a_sentence(
    tmp_path: Path, nvcc_cuda: str, torch_cuda: str
) -> None:
    refused = install_with(nvcc_cuda=nvcc_cuda, torch_cuda=torch_cuda, folder=tmp_path)
    assert refused.returncode == 2
    assert f"has CUDA {nvcc_cuda}, and torch is built for {torch_cuda};" in refused.stderr
    assert not refused.stdout


def test_a_base_without_nvcc_is_told_of_and_compiles_for_the_cpu_alone(tmp_path: Path) -> None:
    said = installed_with(nvcc_cuda=None, folder=tmp_path)
    assert "this base has no nvcc" in said
    assert "DS_BUILD_CPU_ADAM=1" in said and "FUSED" not in said
    assert "\ncpu install" in said


@pytest.mark.parametrize("name", DOCKERFILES)
def test_every_base_can_be_pinned_by_digest(name: str) -> None:
    text = (DOCKER / name).read_text()
    bases = re.findall(r"^FROM (.+?)(?: AS .+)?$", text, re.MULTILINE)
    assert bases
    for base in bases:
        found = re.fullmatch(r"\$\{(\w+)_IMAGE\}\$\{(\w+)_DIGEST:\+@\$\{(\w+)_DIGEST\}\}", base)
        assert found and len(set(found.groups())) == 1, base
        before = text[: text.index("FROM ")]
        assert re.search(rf"^ARG {found[1]}_IMAGE=\S+:\S+$", before, re.MULTILINE)
        assert re.search(rf'^ARG {found[1]}_DIGEST=""$', before, re.MULTILINE)


@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_let_through_to_the_build(name: str) -> None:
    let_through = {
        line[1:] for line in (REPO_ROOT / ".dockerignore").read_text().split() if line[0] == "!"
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", (DOCKER / name).read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert source in let_through, source
            assert (REPO_ROOT / source).exists(), source


@pytest.mark.parametrize("name", DOCKERFILES)
def test_any_user_may_write_the_home_folder(name: str) -> None:
    """Caches go there, and `--user` is how files of a host get their owner."""
    text = (DOCKER / name).read_text()
    home = re.search(r"^ENV HOME=(\S+)$", text, re.MULTILINE)
    assert home and f"chmod 1777 {home[1]} " in text


def imported_by_data_prep() -> set[str]:
    """Packages that data_prep imports from outside, by their names as distributions."""
    names: set[str] = set()
    for path in (REPO_ROOT / "data_prep").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
    return {name.replace("_", "-") for name in names - sys.stdlib_module_names - LOCAL}


def test_the_prep_image_installs_what_data_prep_imports() -> None:
    text = (DOCKER / "Dockerfile.prep").read_text().replace("\\\n", "")
    found = re.search(r'^ARG PACKAGES="(.+)"$', text, re.MULTILINE)
    assert found
    packages = set(found[1].split("|"))
    of_an_extra = {"pypdfium2", "trafilatura", "docx"}  # `--extract` says how to install them
    assert packages - {"jinja2"} == imported_by_data_prep() - of_an_extra
    pinned = re.findall(r"^([\w.-]+)==", (REPO_ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert packages <= set(pinned)


def composed(name: str) -> dict[str, Any]:
    """The file with its defaults for variables put in, and its anchors resolved."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / name).read_text())
    return yaml.safe_load(text)


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    services = PyCompose.from_json(json.dumps(composed(name))).service_names()
    assert {"node-0", "node-1"} <= set(services)


def test_the_specification_refuses_an_unknown_key() -> None:
    wrong = composed("compose.yaml")
    wrong["services"]["node-0"]["shm_sizes"] = "8gb"
    with pytest.raises(ValueError, match="shm_sizes"):
        PyCompose.from_json(json.dumps(wrong))


def test_the_containers_differ_in_nothing_but_their_place() -> None:
    first, second = (composed("compose.yaml")["services"][f"node-{rank}"] for rank in range(2))
    for rank, node in enumerate((first, second)):
        assert node.pop("hostname") == f"node-{rank}"
        assert node["environment"].pop("NODE_RANK") == str(rank)
    assert first == second
    assert first["environment"] == {"NUM_NODES": "2", "MASTER_ADDR": "node-0"}
