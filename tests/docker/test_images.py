"""The very Dockerfiles build from a base without CUDA, and what they build does its work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_prep.build import build
from data_prep.build_options import BuildOptions
from data_prep.packing.pack import pack
from tests.docker.buildah import Buildah, needs_buildah
from tests.launch.hosts import Hosts, needs_hosts
from tests.launch.shared_runs import REPO_ROOT, shared_recipe, state_of, write_recipe
from tests.training.short_runs import metrics
from training.config.recipe import Recipe

pytestmark = [needs_buildah, pytest.mark.cluster, pytest.mark.slow]
NUM_STEPS = 20


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Buildah]:
    with Buildah(tmp_path_factory.mktemp("buildah")) as store:
        store.make_base()
        yield store


@pytest.fixture(scope="module")
def prep_image(buildah: Buildah) -> str:
    return buildah.build("docker/Dockerfile.prep", "localhost/prep", BASE_IMAGE=buildah.BASE)


@pytest.fixture(scope="module")
def training_image(buildah: Buildah) -> str:
    return buildah.build(
        "docker/Dockerfile",
        "localhost/training",
        BUILD_IMAGE=buildah.BASE,
        RUNTIME_IMAGE=buildah.BASE,
        REVISION="0123abc",
        DEEPSPEED_OPS="",  # minutes of compiling
    )


@pytest.fixture
def writable(tmp_path: Path) -> Callable[[str], Path]:
    """Folders that the user of an image may write into."""

    def make(name: str) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
        return tmp_path / name

    return make


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def assert_compiled(buildah: Buildah, image: str, *names: str) -> None:
    """A start writes nothing beside its modules: its user may not."""
    done = buildah.run(image, ["bash", "-c", f"ls {' '.join(names)}"], entrypoint=False)
    assert done.returncode == 0, done.stderr


def test_the_prep_image_is_whole_without_what_its_build_was_given(
    buildah: Buildah, prep_image: str
) -> None:
    checked = buildah.run(prep_image, ["python", "docker/self_check.py", "prep"], entrypoint=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "neither torch nor DeepSpeed" in checked.stdout
    assert "ok    user       1000" in checked.stdout
    library = "/opt/venv/lib/python3*/site-packages/datasets/__pycache__/load.*.pyc"
    assert_compiled(buildah, prep_image, "data_prep/packing/__pycache__/pack.*.pyc", library)


def test_the_prep_image_makes_the_corpus_of_a_local_build(
    buildah: Buildah, prep_image: str, writable: Callable[[str], Path]
) -> None:
    """Built, packed and verified in containers: by processes, then under mpirun."""
    data, source = writable("data"), writable("texts") / "json"
    shutil.copytree(Path(json.__file__).parent, source)
    local = data.parent / "local"
    options = BuildOptions(
        inputs=(source,),
        out=local,
        train_tokenizer="bpe",
        train_vocab_size=512,
        val_frac=0.3,
        num_workers=1,
    )
    build(options)
    pack(local, seq_len=64)

    mounts = ["-v", f"{data}:/workspace/data", "-v", f"{source.parent}:{source.parent}:ro"]
    build_options = ["build", "--input", str(source), "--train-tokenizer", "bpe"]
    build_options += ["--vocab-size", "512", "--val-frac", "0.3", "--out"]

    def run(*command: str, entrypoint: bool = True) -> None:
        done = buildah.run(prep_image, command, options=mounts, entrypoint=entrypoint)
        assert done.returncode == 0, done.stdout + done.stderr

    mpirun = ["mpirun", "-n", "2", "--oversubscribe", "python", "-m", "data_prep"]
    run(*build_options, "data/processes")
    run(*mpirun, *build_options, "data/mpi", entrypoint=False)
    for name in ("processes", "mpi"):
        run("pack", f"data/{name}", "--seq-len", "64")
        run("verify", f"data/{name}", "--deep")
        assert {path.stat().st_uid for path in (data / name).rglob("*")} == {1000}
        assert tree(data / name) == tree(local)


def test_the_training_image_is_whole(buildah: Buildah, training_image: str) -> None:
    checked = buildah.run(training_image, ["python", "docker/self_check.py", "training"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    num_pins = (REPO_ROOT / "requirements.txt").read_text().count("==")
    assert f"{num_pins} of {num_pins} pins installed" in checked.stdout
    assert "ok    user       1000" in checked.stdout
    library = "/opt/venv/lib/python3*/site-packages/deepspeed/runtime/__pycache__/engine.*.pyc"
    assert_compiled(buildah, training_image, "training/run/__pycache__/run.*.pyc", library)


def test_a_compiler_of_the_build_stays_in_the_build(buildah: Buildah, training_image: str) -> None:
    """Triton needs a C compiler; DeepSpeed's C++ compiler and its sources are left behind."""
    found = buildah.run(training_image, ["bash", "-c", "type g++ nvcc; ls /build"])
    assert found.returncode != 0
    assert found.stdout == ""


def test_a_failing_self_check_says_what_is_wrong(buildah: Buildah, training_image: str) -> None:
    """As root, with a secret: what must not be is found."""
    checked = buildah.run(
        training_image,
        ["python", "docker/self_check.py", "training"],
        options=["--user", "0", "--env", "HF_TOKEN=x"],
    )
    assert checked.returncode == 1
    assert "FAIL  user       RuntimeError: runs as root" in checked.stdout
    assert "FAIL  secrets    RuntimeError: the environment holds HF_TOKEN" in checked.stdout


@pytest.fixture(scope="module")
def recipe(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    whole = shared_recipe(small_corpus, tmp_path_factory.mktemp("run"))
    patient = replace(whole.watchdog, seconds=60.0)
    return replace(
        whole, train=replace(whole.train, max_steps=NUM_STEPS), watchdog=patient, run_dir="runs/two"
    )


@needs_hosts
def test_the_compose_cluster_trains_on_two_hosts(
    buildah: Buildah,
    training_image: str,
    recipe: Recipe,
    writable: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Commands, names and environment of compose.yaml; hosts of namespaces instead of docker's."""
    services = yaml.safe_load((REPO_ROOT / "docker/compose.yaml").read_text())["services"]
    runs, recipes = writable("runs"), writable("recipes")
    write_recipe(recipe, recipes / "two.yaml")
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(folder) as hosts:
        with (folder / "hosts").open("a") as names:  # containers take over what their host knows
            names.writelines(f"{hosts.address(f'h{rank + 1}')} node-{rank}\n" for rank in range(2))
        containers, processes = [], []
        for rank in range(2):
            service = services[f"node-{rank}"]
            options = ["-v", f"{runs}:/workspace/runs", "-v", f"{recipes}:/recipes:ro"]
            options += ["-v", f"{recipe.data.corpus}:{recipe.data.corpus}"]
            for name, value in (service["environment"] | {"GLOO_SOCKET_IFNAME": "eth0"}).items():
                options += ["--env", f"{name}={value}"]
            command = [service["command"][0], "/recipes/two.yaml"]
            container, whole = buildah.start(training_image, command, options=options)
            containers.append(container)
            processes.append(hosts.start(f"h{rank + 1}", whole, environment=dict(os.environ)))
        printed = [each.communicate(timeout=400)[0] for each in processes]
    for container in containers:
        buildah("rm", container)
    assert [each.returncode for each in processes] == [0, 0], printed
    assert state_of(runs / "two") == ("complete", NUM_STEPS)
    assert len(metrics(runs / "two", "step")) == NUM_STEPS
    assert "container 0 of 2: 1 processes; master node-0:29500" in printed[0]


def test_the_image_names_its_revision(buildah: Buildah, training_image: str) -> None:
    form = '{{index .OCIv1.Config.Labels "org.opencontainers.image.revision"}}'
    assert buildah("inspect", "--type", "image", "--format", form, training_image) == "0123abc"
