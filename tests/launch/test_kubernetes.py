"""The manifest is valid for JobSet, and what its pods start does what the manifest relies on."""

from __future__ import annotations

import copy
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.launch.shared_runs import (
    REPO_ROOT,
    shared_recipe,
    state_of,
    undisturbed_losses,
    wait_for_steps,
    write_recipe,
)
from tests.training.short_runs import metrics
from tests.warm_python import warm_python
from training.config.recipe import Recipe

FOLDER = REPO_ROOT / "launch/kubernetes"
WORKER = "launch/kubernetes/worker.sh"
NUM_STEPS = 40
QUICKSTART = "training/recipes/quickstart.yaml"
Manifest = dict[str, Any]


def base() -> Manifest:
    return yaml.safe_load((FOLDER / "base/jobset.yaml").read_text())


def with_efa() -> Manifest:
    """The base with the overlay's patch, which only adds: what `kubectl kustomize` makes of it."""
    manifest = base()
    for change in yaml.safe_load((FOLDER / "efa/efa.patch.yaml").read_text()):
        assert change["op"] == "add"
        *path, last = [
            part.replace("~1", "/") for part in change["path"].removeprefix("/").split("/")
        ]
        place: Any = manifest
        for part in path:
            place = place[int(part) if isinstance(place, list) else part]
        if isinstance(place, list):
            assert last == "-"
            place.append(change["value"])
        else:
            assert last not in place
            place[last] = change["value"]
    return manifest


def pod_spec(manifest: Manifest) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def container(manifest: Manifest) -> dict[str, Any]:
    return pod_spec(manifest)["containers"][0]


def understood(manifest: Manifest) -> Manifest:
    """What JobSet's own types keep of it."""
    # two seconds, which every worker would take to collect this file
    from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet

    return JobsetV1alpha2JobSet.from_dict(copy.deepcopy(manifest)).to_dict()


@pytest.mark.parametrize("manifest", [base(), with_efa()], ids=["base", "efa"])
def test_jobset_understands_every_key_of_the_manifest(manifest: Manifest) -> None:
    assert understood(manifest) == manifest


def test_a_misspelt_key_or_a_wrong_type_does_not_pass() -> None:
    manifest = base()
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    assert understood(manifest) != manifest
    manifest = base()
    manifest["spec"]["replicatedJobs"][0]["replicas"] = "2"
    with pytest.raises(ValueError, match="valid integer"):
        understood(manifest)


def test_kustomizations_name_files_that_exist() -> None:
    for path in FOLDER.glob("*/kustomization.yaml"):
        found = yaml.safe_load(path.read_text())
        named = found["resources"] + [patch["path"] for patch in found.get("patches", [])]
        named += [name for each in found.get("configMapGenerator", []) for name in each["files"]]
        assert named and all((path.parent / name).exists() for name in named), path


def test_what_the_manifest_mounts_it_declares() -> None:
    for manifest in (base(), with_efa()):
        mounted = {mount["name"] for mount in container(manifest)["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod_spec(manifest)["volumes"]}


def test_pods_find_the_first_one_by_the_name_that_jobset_gives_it() -> None:
    """<jobset>-<replicated job>-<job>-<pod>.<subdomain>, whose default is the jobset's name."""
    manifest = base()
    values = {entry["name"]: entry.get("value") for entry in container(manifest)["env"]}
    master = values["MASTER_ADDR"].replace("$(JOBSET_NAME)", manifest["metadata"]["name"])
    job = manifest["spec"]["replicatedJobs"][0]["name"]
    assert master == f"entrodrop-{job}-0-0.entrodrop"
    assert "subdomain" not in manifest["spec"]["network"]
    names = list(values)
    assert names.index("JOBSET_NAME") < names.index("MASTER_ADDR")  # or it is not expanded


def test_only_the_final_exit_codes_end_the_jobset() -> None:
    shown = worker("--help")
    codes = {int(code): text for code, text in re.findall(r"^  (\d)   (.+)", shown.stdout, re.M)}
    assert set(codes) == {0, 1, 2, 3} and "again" in codes[1]
    job = base()["spec"]["replicatedJobs"][0]["template"]["spec"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2, 3]
    assert rule["onExitCodes"]["containerName"] == container(base())["name"]


def pod_environment(rank: int, **changes: str) -> dict[str, str]:
    """What the manifest's pods have, on a machine without GPUs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return kept | {
        "PYTHON": warm_python(),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NUM_NODES": "2",
        "NODE_RANK": str(rank),
        "MASTER_ADDR": "localhost",
        **changes,
    }


def worker(*arguments: str, rank: int = 0, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [WORKER, *arguments],
        cwd=REPO_ROOT,
        env=pod_environment(rank, **changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_of_the_manifest_runs_torchrun_for_its_node() -> None:
    command = container(base())["command"] + container(base())["args"]
    assert command[:3] == ["tini", "--", WORKER]
    shown = worker(*command[3:], "--dry-run", rank=1, CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert shown.returncode == 0, shown.stderr
    assert "--nnodes=2 --node-rank=1 --nproc-per-node=4 --master-addr=localhost" in shown.stdout


def test_changes_that_a_resume_accepts_reach_the_trainer() -> None:
    shown = worker(QUICKSTART, "--accept-changes", "optimizer.lr", "train.epochs=3", "--dry-run")
    assert "train.epochs=3 --accept-changes optimizer.lr" in shown.stdout, shown.stderr


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        (["nowhere.yaml"], {}, "recipe nowhere.yaml: No such file"),
        ([QUICKSTART, "train.epoch=2"], {}, "did you mean train.epochs?"),
        ([QUICKSTART, "--fast"], {}, "unknown option --fast"),
        ([QUICKSTART], {"NODE_RANK": "2"}, "NODE_RANK is 2; the 2 containers have 0 to 1"),
        ([QUICKSTART], {"NUM_NODES": ""}, "NUM_NODES is not set"),
        ([QUICKSTART], {"NUM_NODES": "3"}, "not a multiple of train.sequence_parallel_size 2"),
    ],
)
def test_mistakes_are_final_and_one_message(
    arguments: list[str], changes: dict[str, str], message: str
) -> None:
    shown = worker(*arguments, **changes)
    assert shown.returncode == 2
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_master_that_never_appears_is_worth_another_start(tmp_path: Path) -> None:
    changes = {"MASTER_ADDR": "node-0.invalid", "ENTRODROP_DNS_SECONDS": "1"}
    shown = worker(QUICKSTART, f"run_dir={tmp_path}/run", rank=1, **changes)
    assert shown.returncode == 1
    assert "error: node-0.invalid does not resolve after 1 s" in shown.stderr


def test_a_crash_loop_without_a_new_checkpoint_is_final(tmp_path: Path) -> None:
    """Three starts were counted at step 0; the container that counts refuses the fourth."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / ".container-starts").write_text("0 3\n")
    shown = worker(QUICKSTART, f"run_dir={run_dir}")
    assert shown.returncode == 3
    assert "gave up: 3 starts in a row without a checkpoint after step 0" in shown.stdout
    assert not (run_dir / ".container-starts").exists()  # who starts it anew is not refused


@contextmanager
def started_pods(recipe: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Both pods of a run, with nothing left of them afterwards."""
    pods = [
        subprocess.Popen(
            [WORKER, str(recipe)],
            cwd=REPO_ROOT,
            env=pod_environment(rank, MASTER_PORT="29641"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        yield pods
    finally:
        for pod in pods:
            if pod.poll() is None:
                # torchrun has a session of its own
                children = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
                for child in map(int, children):
                    if os.getpgid(child) == child:
                        os.killpg(child, signal.SIGKILL)
                pod.kill()
                pod.communicate()


@pytest.fixture(scope="module")
def recipe(small_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    whole = shared_recipe(small_corpus, tmp_path_factory.mktemp("undisturbed") / "run")
    patient = replace(whole.watchdog, seconds=60.0)
    return replace(whole, train=replace(whole.train, max_steps=NUM_STEPS), watchdog=patient)


@pytest.mark.slow
def test_a_preempted_pod_makes_all_save_and_the_next_start_is_exact(
    recipe: Recipe, tmp_path: Path
) -> None:
    """SIGTERM goes to one pod alone, as when a node is drained; that pod asks for the restart."""
    expected = undisturbed_losses(recipe)
    run_dir = tmp_path / "run"
    path = write_recipe(replace(recipe, run_dir=str(run_dir)), tmp_path / "recipe.yaml")
    with started_pods(path) as pods:
        wait_for_steps(run_dir, 15, of=pods[0], seconds=400)
        pods[1].send_signal(signal.SIGTERM)
        printed = [each.communicate(timeout=300)[0] for each in pods]
    assert [each.returncode for each in pods] == [0, 1], printed
    state, step = state_of(run_dir)
    assert state == "stopped" and 15 <= step < NUM_STEPS
    assert f"saved step {step}; the next start resumes from it" in printed[1]
    with started_pods(path) as pods:
        printed = [each.communicate(timeout=400)[0] for each in pods]
    assert [each.returncode for each in pods] == [0, 0], printed
    assert state_of(run_dir) == ("complete", NUM_STEPS)
    assert metrics(run_dir, "step") == expected
    assert not (run_dir / ".container-starts").exists()
