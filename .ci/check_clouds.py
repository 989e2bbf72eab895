"""Check launch/clouds/ by the packages that read it, each in an environment of its own in .venvs/.

    python3 .ci/check_clouds.py

Both bring along dozens of packages, so they are not part of what the tests install. What the tests
check is that the commands start the right processes (tests/launch/test_clouds.py).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ROOT / "launch" / "clouds"
READS = {
    "skypilot==0.14.1": f"""
import sky
task = sky.Task.from_yaml({str(FILES / "sky.yaml")!r})
assert task.num_nodes == 2 and task.resources, task
""",
    "dstack==0.22.5": f"""
import yaml
from dstack._internal.core.models.configurations import parse_apply_configuration
with open({str(FILES / "dstack.yaml")!r}) as file:
    task = parse_apply_configuration(yaml.safe_load(file))
assert task.nodes == 2 and task.resources.gpu.count.min == 8, task
""",
}


def main() -> int:
    for package, reads in READS.items():
        venv = ROOT / ".venvs" / package.partition("=")[0]
        python = venv / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q"]
        subprocess.run([*pip, package], check=True)
        subprocess.run([python, "-W", "ignore", "-c", reads], check=True)
        print(f"{package}: read")
    return 0


if __name__ == "__main__":
    sys.exit(main())
