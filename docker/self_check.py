"""Is this image whole? Imports, versions, operators, user, and nothing inside that must not be.

Usage: python docker/self_check.py training|prep

Runs at the end of each image's build, and again in a container when something seems wrong:

  docker run --rm IMAGE python docker/self_check.py training
  docker run --rm --entrypoint python PREP_IMAGE docker/self_check.py prep

Prints a line a check; ends with 1 when one of them failed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_MODULES = {
    "training": ("deepspeed", "mpi4py", "transformers", "training.run.run", "data_prep.build"),
    "prep": ("mpi4py.MPI", "datasets", "transformers", "data_prep.build", "data_prep.executor"),
}
_PROGRAMS = {
    "training": ("gcc", "mpirun", "pdsh", "ssh", "tini"),
    "prep": ("mpirun", "ssh", "tini"),
}
_COMMANDS = {
    "training": (
        (sys.executable, "-m", "training", "--help"),
        (sys.executable, "-m", "data_prep", "--help"),
        ("launch/local.sh", "training/recipes/quickstart.yaml", "--dry-run"),
    ),
    "prep": ((sys.executable, "-m", "data_prep", "--help"),),
}
_SECRET_NAME = re.compile(r"TOKEN$|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|PRIVATE_KEY")
_LEFTOVERS = (
    "/root/.cache/*",
    "/root/.config/pip/*",
    "/root/.netrc",
    "/root/.ssh/id_*",
    "/home/*/.cache/*",
    "/home/*/.netrc",
    "/home/*/.ssh/id_*",
    "/etc/pip.conf",
    "/etc/xdg/pip/*",
    "/var/cache/apt/archives/*.deb",
    "/var/lib/apt/lists/*Packages*",
    "/workspace/.git",
    "/workspace/.env",
    "/workspace/.venv",
    "/tmp/*.txt",
)


def main(arguments: list[str]) -> int:
    """Run all checks of the image; 0 when none failed."""
    if len(arguments) != 1 or arguments[0] not in _MODULES:
        print(__doc__, file=sys.stderr)
        return 2
    image = arguments[0]
    # Images are built where there is no GPU; with one, DeepSpeed finds it by itself.
    if not Path("/dev/nvidiactl").exists():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    checks: list[tuple[str, Callable[[], str]]] = [
        ("user", user),
        ("secrets", secrets),
        ("leftovers", leftovers),
        ("programs", lambda: programs(image)),
        ("versions", versions),
        ("imports", lambda: imports(image)),
        ("operators", operators if image == "training" else no_torch),
        ("commands", lambda: commands(image)),
    ]
    failed = 0
    for name, check in checks:
        try:
            print(f"ok    {name:10} {check()}", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAIL  {name:10} {type(error).__name__}: {error}", flush=True)
    return 1 if failed else 0


def user() -> str:
    """Not root, and at home in a folder of its own."""
    home = Path.home()
    _refuse_if(os.geteuid() == 0, "runs as root")
    _refuse_if(not os.access(home, os.W_OK), f"may not write into {home}")
    _refuse_if(not os.access("data", os.W_OK), "may not write into data")
    return f"{os.geteuid()}, {home}"


def secrets() -> str:
    """Names of variables only; a value is never printed."""
    found = [name for name, value in os.environ.items() if value and _SECRET_NAME.search(name)]
    _refuse_if(bool(found), f"the environment holds {', '.join(sorted(found))}")
    return "none in the environment"


def leftovers() -> str:
    """What builds leave behind; what is mounted from outside is no part of the image."""
    found = [str(path) for pattern in _LEFTOVERS for path in Path("/").glob(pattern[1:])]
    # a mount leaves its empty place behind
    found = [path for path in found if not os.path.ismount(path) and Path(path).stat().st_size]
    _refuse_if(bool(found), f"found {', '.join(found)}")
    return "no caches, keys, package lists or settings of pip"


def programs(image: str) -> str:
    missing = [name for name in _PROGRAMS[image] if shutil.which(name) is None]
    _refuse_if(bool(missing), f"{', '.join(missing)} missing")
    return ", ".join(_PROGRAMS[image])


def versions() -> str:
    """Those of requirements.txt, wherever one of its packages is installed."""
    lines = Path("requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line)
    installed = {}
    for name in pinned:
        try:
            # torch 2.13.0+cpu is a build of 2.13.0
            installed[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    wrong = [
        f"{name} {found} for {pinned[name]}"
        for name, found in installed.items()
        if found != pinned[name]
    ]
    _refuse_if(bool(wrong), ", ".join(wrong))
    return f"{len(installed)} of {len(pinned)} pins installed, Python {sys.version.split()[0]}"


def imports(image: str) -> str:
    for name in _MODULES[image]:
        importlib.import_module(name)
    return ", ".join(_MODULES[image])


def operators() -> str:
    """DeepSpeed's, as far as they are compiled; those for CUDA load without a GPU as well."""
    import deepspeed
    from deepspeed.git_version_info import accelerator_name

    folder = Path(deepspeed.__file__).parent
    compiled = sorted(path.relative_to(folder.parent) for path in folder.glob("ops/**/*_op*.so"))
    if not compiled:
        return "none compiled beforehand; with offload DeepSpeed compiles cpu_adam at the start"
    names = [str(path).split(".")[0].replace(os.sep, ".") for path in compiled]
    for name in names:
        importlib.import_module(name)
    if "deepspeed.ops.adam.cpu_adam_op" in names:
        _step_on_cpu()
    short = [name.rsplit(".", 1)[1].removesuffix("_op") for name in names]
    return f"{', '.join(short)} compiled beforehand for {accelerator_name}"


def _step_on_cpu() -> None:
    """One step of the compiled Adam against torch's."""
    import torch
    from deepspeed.ops.adam import cpu_adam_op

    start, gradient = torch.linspace(-1, 1, 1000), torch.linspace(1, 2, 1000)
    expected = torch.nn.Parameter(start.clone())
    expected.grad = gradient.clone()
    torch.optim.AdamW([expected], lr=0.1, weight_decay=0.0).step()
    weights, moments = start.clone(), [torch.zeros(1000), torch.zeros(1000)]
    cpu_adam_op.create_adam(0, 0.1, 0.9, 0.999, 1e-8, 0.0, True, False)
    cpu_adam_op.adam_update(
        0, 1, 0.1, 0.9, 0.999, 1e-8, 0.0, True, weights, gradient.clone(), *moments
    )
    cpu_adam_op.destroy_adam(0)
    torch.testing.assert_close(weights, expected.detach(), rtol=1e-5, atol=1e-6)


def no_torch() -> str:
    """Gigabytes that data preparation does without."""
    found = [name for name in ("torch", "deepspeed") if importlib.util.find_spec(name)]
    _refuse_if(bool(found), f"{', '.join(found)} installed")
    return "neither torch nor DeepSpeed, and none needed"


def commands(image: str) -> str:
    for command in _COMMANDS[image]:
        done = subprocess.run(command, capture_output=True, text=True)
        _refuse_if(done.returncode != 0, f"{' '.join(command)}: {done.stderr.strip()}")
    return "; ".join(" ".join(command[-3:]) for command in _COMMANDS[image])


def _refuse_if(is_wrong: bool, message: str) -> None:
    if is_wrong:
        raise RuntimeError(message)


if __name__ == "__main__":
    # Beside the packages of the working folder, not beside those of this file's.
    sys.path.insert(0, str(Path.cwd()))
    sys.exit(main(sys.argv[1:]))
