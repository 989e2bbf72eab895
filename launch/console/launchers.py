"""`entrodrop launch`: the launch scripts, with the Python of this command."""

from __future__ import annotations

import os
import shlex
import sys

from common.hints import did_you_mean
from training.config.shipped import PACKAGE_ROOT, job_script

LAUNCHERS = {
    "local": "this machine: its GPUs, or CPU processes",
    "deepspeed": "the hosts of a hostfile, over ssh",
    "mpirun": "hosts, or this machine, under Open MPI",
    "slurm": "a Slurm job that queues itself again",
}
USAGE = "usage: entrodrop launch local|deepspeed|mpirun|slurm RECIPE [options] [a.b=c ...]\n\n"
USAGE += "\n".join(f"  {name:<11}{what}" for name, what in LAUNCHERS.items())
USAGE += "\n\nEach takes --dry-run, which prints what would run, and --help."
_ACCEPT = "--accept-changes"
_SLURM_USAGE = """\
usage: entrodrop launch slurm RECIPE [--option=value ...] [--dry-run] [--accept-changes FIELD ...]
           [a.b=c ...]

Submits a job that trains RECIPE in this folder. Options are those of sbatch, each with its value
behind `=`: --nodes=8 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=12 --time=24:00:00.
--accept-changes resumes although these keys differ from the checkpoint's, as in optimizer.lr.
docs/launching.md says when a job is queued again."""


def launch(arguments: list[str]) -> int:
    """Become the launch script, or print how to use it."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    launcher, *rest = arguments
    if launcher not in LAUNCHERS:
        hint = did_you_mean(launcher, LAUNCHERS, otherwise=f"there are {', '.join(LAUNCHERS)}")
        raise ValueError(f"launch {launcher}: unknown launcher{hint}")
    if launcher != "slurm":
        script = PACKAGE_ROOT / "launch" / f"{launcher}.sh"
        _become(["bash", str(script), *rest], {"PYTHON": sys.executable})
    if {"-h", "--help"} & set(rest) or not rest:
        print(_SLURM_USAGE)
        return 0 if rest else 2
    return _submit(rest)


def _submit(arguments: list[str]) -> int:
    arguments, accepted = _without_accepted(arguments)
    options = [each for each in arguments if each.startswith("-") and each != "--dry-run"]
    words = [each for each in arguments if not each.startswith("-")]
    recipes = [word for word in words if "=" not in word]
    if len(recipes) != 1:
        raise ValueError(
            f"launch slurm: expected one recipe, found {' '.join(recipes) or 'none'}; write "
            "options of sbatch with their value, as in --nodes=2"
        )
    script, environment = job_script("train.sbatch")
    overrides = [word for word in words if "=" in word]
    command = ["sbatch", *options, str(script), *recipes, *overrides, *accepted]
    if "--dry-run" in arguments:
        told = [f"{name}={value}" for name, value in environment.items()]
        print(shlex.join([*told, *command]), flush=True)
        command = ["bash", str(script), *recipes, "--dry-run", *overrides, *accepted]
    return _become(command, environment)


def _without_accepted(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The other arguments, and --accept-changes with its fields, found as job.sh finds them."""
    others: list[str] = []
    accepted: list[str] = []
    takes = 0  # how many of the next words may be fields
    for each in arguments:
        name, _, field = each.partition("=")
        if name == _ACCEPT:
            has_recipe = any(not word.startswith("-") and "=" not in word for word in others)
            takes = 0 if field else len(arguments) if has_recipe else 1
            accepted.append(each)
        elif takes and not each.startswith("-") and "=" not in each:
            takes -= 1
            accepted.append(each)
        else:
            takes = 0
            others.append(each)
    return others, accepted


def _become(command: list[str], environment: dict[str, str]) -> int:
    sys.stdout.flush()
    try:
        os.execvpe(command[0], command, os.environ | environment)
    except FileNotFoundError:
        raise ValueError(f"there is no {command[0]} on this machine") from None
