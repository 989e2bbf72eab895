"""What the files for SkyPilot and dstack run starts the processes of this node, as they tell it.

`.ci/check_clouds.py` has the files read by the packages themselves.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

import pytest
import yaml

from tests.docs.markdown import REPO_ROOT
from tests.warm_python import warm_python

FOLDER = REPO_ROOT / "launch" / "clouds"
# what each sets on the second of two nodes, by its documentation
SKY = {
    "SKYPILOT_NUM_NODES": "2",
    "SKYPILOT_NODE_RANK": "1",
    "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8",
}
DSTACK = {
    "DSTACK_NODES_NUM": "2",
    "DSTACK_NODE_RANK": "1",
    "DSTACK_MASTER_NODE_IP": "10.0.0.1",
    "DSTACK_GPUS_PER_NODE": "8",
}


def script_of(name: str) -> tuple[str, dict[str, str]]:
    """What runs in a container, in this repository, and the file's own variables."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    if name == "sky.yaml":
        at, script = "cd /workspace\n", content["run"]
        assert script.startswith(at)
        return script.removeprefix(at), content["envs"]
    return "\n".join(content["commands"]), dict(each.split("=", 1) for each in content["env"])


@pytest.mark.parametrize(("name", "given"), [("sky.yaml", SKY), ("dstack.yaml", DSTACK)])
def test_a_node_starts_its_share_of_the_processes(name: str, given: dict[str, str]) -> None:
    script, own = script_of(name)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script.rstrip()} --dry-run"],
        cwd=REPO_ROOT,
        env=os.environ | own | given | {"PYTHON": warm_python()},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = "--nnodes=2 --node-rank=1 --nproc-per-node=8 --master-addr=10.0.0.1"
    assert expected in done.stdout
    assert f"{own['RECIPE']} --rank-logs run_dir=/shared/runs/" in done.stdout
