"""Run the tests with the newest or the oldest packages that the ranges of pyproject.toml name.

    python3 .ci/try_versions.py newest --python python3.13
    python3 .ci/try_versions.py oldest --tests tests/training -k quantile

newest ignores upper bounds, so that it shows whether they can be widened; oldest takes the lowest
version in range of each package that the code itself names. Tools of the tests are as
requirements-dev.txt pins them. A virtual environment of some GB is made in .venvs/ and stays for
the next time. Record what was run in docs/dependencies.md.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def requirement(text: str, *, oldest: bool) -> str:
    """`torch>=2.11,<2.16` as it is, or without its upper bound."""
    return text if oldest else re.sub(r",?<[\w.]+", "", text)


def pins_of_tools() -> list[str]:
    """Of requirements-dev.txt; triton, which has none, comes with torch."""
    lines = (ROOT / "requirements-dev.txt").read_text().split("# What these bring along")[0]
    return [line for line in lines.splitlines() if re.match(r"[\w-]+==", line)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("which", choices=("newest", "oldest"))
    parser.add_argument("--python", default=sys.executable, help="default: the one that runs this")
    parser.add_argument("--tests", nargs=argparse.REMAINDER, default=[], help="for pytest")
    options = parser.parse_args()
    shown = subprocess.check_output([options.python, "--version"], text=True).split()[1]
    venv = ROOT / ".venvs" / f"{options.which}-{shown}"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([options.python, "-m", "venv", venv], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = options.which == "oldest"
    wanted = project["dependencies"] + project["optional-dependencies"]["adapters"]
    asked = [requirement(text, oldest=oldest) for text in wanted]
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q"]
    subprocess.run([*pip, "uv"], check=True)  # which can resolve to the oldest
    uv = [venv / "bin" / "uv", "pip", "install", "--quiet", "--python", python]
    uv += ["--upgrade", "--resolution", "lowest-direct" if oldest else "highest"]
    subprocess.run([*uv, *asked, *pins_of_tools(), "-r", "requirements-mpi.txt"], check=True)
    listed = subprocess.check_output([python, "-m", "pip", "freeze"], text=True).splitlines()
    names = {re.split(r"[=>]", text)[0] for text in asked}
    print(
        f"Python {shown}",
        *(line for line in listed if line.split("==")[0].lower() in names),
        sep="\n",
    )
    environment = os.environ | {"PYTHON": str(python)}
    return subprocess.run(["launch/run_tests.sh", *options.tests], env=environment).returncode


if __name__ == "__main__":
    os.chdir(ROOT)
    try:
        sys.exit(main())
    except (subprocess.CalledProcessError, OSError) as failed:  # the installer has said why
        sys.exit(f"error: {failed}")
