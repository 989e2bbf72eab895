"""Commands: train, sweep, evaluate, export, report, preview."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from training.launcher_ranks import set_rank_variables
from training.rank_logs import print_to_file

_TASK_OPTIONS = ("tasks_dir", "num_fewshot", "limit", "batch_size", "checkpoint", "out")
_EPILOG = """\
examples:
  python -m training train training/recipes/quickstart.yaml
  torchrun --standalone --nproc-per-node=2 -m training train RECIPE.yaml train.epochs=3
  python -m training evaluate runs/quickstart
  python -m training export runs/quickstart
  python -m training report runs/quickstart runs/baseline --out runs/compared
  python -m training sweep RECIPE.yaml --vary regulariser=none,entrodrop --seeds 1,2,3
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line; each verb's help says what it does."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a causal LM on little data without letting it overfit, and look at it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # the deepspeed launcher puts it in front; the environment says the same
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    train = verbs.add_parser(
        "train",
        help="run a recipe, or go on with it",
        description="Run a recipe. Started again, it goes on from the newest whole checkpoint. "
        "Under torchrun or deepspeed --module every process runs this command.",
        epilog="example: python -m training train RECIPE.yaml optimizer.lr=1e-4 seed=7",
    )
    train.add_argument("recipe", help="YAML file; docs/recipes.md explains every key")
    train.add_argument("overrides", nargs="*", metavar="a.b=c", help="change keys of the recipe")
    train.add_argument(
        "--accept-changes",
        nargs="+",
        default=[],
        metavar="FIELD",
        help="go on with a run although these differ from its checkpoint, as in optimizer.lr",
    )
    train.add_argument(
        "--rank-logs",
        action="store_true",
        help="every rank but 0 prints to RUN/logs/rank-<rank>.log and not on the screen",
    )

    evaluate = verbs.add_parser(
        "evaluate",
        help="held-out loss of an exported run, by entropy band; or benchmarks",
        description="Score RUN/export on the run's validation split and write "
        "RUN/evaluation.json. With --tasks: ask the newest checkpoint of the run, or an export, "
        "tasks of lm-evaluation-harness and write RUN/tasks/*.json. Works on any number of "
        "processes.",
        epilog="example: torchrun --standalone --nproc-per-node=8 -m training evaluate RUN "
        "--tasks gsm8k,piqa",
    )
    evaluate.add_argument("run", type=Path, help="run folder; with --tasks also an export")
    evaluate.add_argument("overrides", nargs="*", metavar="a.b=c", help="as in train")
    _add_task_options(evaluate)

    export = verbs.add_parser(
        "export",
        help="write a checkpoint as a Hugging Face folder",
        description="Write safetensors, configuration and tokenizer to RUN/export, load them "
        "again and compare with the trained weights. One process, no GPU.",
    )
    export.add_argument("run", type=Path, help="run folder")
    export.add_argument("--checkpoint", type=Path, help="default: the newest whole one")
    export.add_argument("--out", type=Path, help="default: RUN/export")

    report = verbs.add_parser(
        "report",
        help="draw and compare one or more runs",
        description="Write a self-contained HTML page and PNGs from what runs have logged. Runs "
        "that differ only by their seed are drawn as one, a mean with a band, and groups are "
        "compared with 95%% intervals. Against the group with regulariser: none, or the first.",
        epilog="example: python -m training report runs/plain runs/entrodrop --out runs/compared",
    )
    report.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folder, or a folder of runs"
    )
    report.add_argument("--out", type=Path, help="default: report/ in the first run")

    _add_sweep(verbs)

    preview = verbs.add_parser(
        "preview",
        help="say which tokens of some samples a recipe would drop",
        description="Write, as JSON, which tokens of some samples drop in an epoch of the run, "
        "given scores beside the corpus as entropies. `python -m data_prep inspect --drops` shows "
        "them. No model is loaded.",
        epilog="example: python -m training preview RECIPE.yaml --scores base --epoch 3 "
        "--samples 0-3,17 --out drops.json",
    )
    preview.add_argument("recipe", help="YAML file")
    preview.add_argument("overrides", nargs="*", metavar="a.b=c", help="as in train")
    preview.add_argument("--scores", required=True, metavar="NAME", help="scores of the corpus")
    preview.add_argument("--epoch", type=int, default=0, metavar="E", help="from 0 (default: 0)")
    preview.add_argument(
        "--samples", type=number_list, default=[0], metavar="N", help="as in 0-3,17 (default: 0)"
    )
    preview.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write")
    return parser


def _add_task_options(evaluate: argparse.ArgumentParser) -> None:
    tasks = evaluate.add_argument_group("benchmarks", "docs/evaluation.md says what they need")
    tasks.add_argument(
        "--tasks",
        metavar="A,B,C",
        help="names of lm-evaluation-harness, or paper: all that the paper names",
    )
    tasks.add_argument("--tasks-dir", type=Path, metavar="DIR", help="YAML files of more tasks")
    tasks.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples shown (default: the task's own)"
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="the first documents of each task")
    tasks.add_argument("--batch-size", type=int, metavar="N", help="of each process (default: 8)")
    tasks.add_argument(
        "--checkpoint", metavar="WHICH", help="newest, best, or a folder (default: newest)"
    )
    tasks.add_argument("--out", type=Path, metavar="FILE", help="default: a name in RUN/tasks")


def _evaluate_tasks(arguments: argparse.Namespace) -> None:
    """Benchmarks; options that were not given keep the defaults of `TaskOptions`."""
    from training.tasks.evaluation import TaskOptions, evaluate_tasks

    if arguments.overrides:
        raise ValueError(f"{arguments.overrides[0]}: --tasks takes no keys of the recipe")
    given = {name: getattr(arguments, name) for name in _TASK_OPTIONS}
    options = TaskOptions(
        tasks=tuple(arguments.tasks.split(",")),
        **{name: value for name, value in given.items() if value is not None},
    )
    if (found := evaluate_tasks(arguments.run, options)) is not None:
        path, table = found
        print(f"{table}\n{path}")


def _add_sweep(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    sweep = verbs.add_parser(
        "sweep",
        help="run every combination of some values of a recipe, and compare them",
        description="Run a recipe with every combination of the values given, each in a folder of "
        "its own in the recipe's run_dir, and write a report over all of them. Mistakes are "
        "refused before the first run starts. The same command again goes on: complete runs stay, "
        "stopped or killed ones go on from their newest checkpoint.",
        epilog="""examples:
  python -m training sweep RECIPE.yaml --vary dropout.max_rate=0.1,0.3,0.6 --seeds 1,2,3
  python -m training sweep RECIPE.yaml train.epochs=8 --vary regulariser=none,entrodrop --jobs 2
  python -m training sweep RECIPE.yaml --vary optimizer.lr=1e-5,3e-5 --dry-run
  python -m training sweep RECIPE.yaml --vary optimizer.lr=1e-5,3e-5 \\
      --slurm '--nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --time=4:00:00'""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweep.add_argument("recipe", type=Path, help="YAML file; its run_dir holds the runs")
    sweep.add_argument("overrides", nargs="*", metavar="a.b=c", help="of all runs, as in train")
    sweep.add_argument(
        "--vary", action="append", default=[], metavar="a.b=1,2,3", help="a key and its values"
    )
    sweep.add_argument("--seeds", metavar="1,2,3", help="the same as --vary seed=1,2,3")
    sweep.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side (default: 1)"
    )
    sweep.add_argument(
        "-n", type=int, metavar="N", help="processes of each run, as in launch/local.sh"
    )
    sweep.add_argument(
        "--slurm", metavar="OPTIONS", help="submit jobs, with these options of sbatch"
    )
    sweep.add_argument("--dry-run", action="store_true", help="check all, say what would run, stop")


def _as_kept(fields: list[str]) -> list[str]:
    """Names of the recipe as a checkpoint keeps them: `optimizer.lr` is `recipe.optimizer.lr`."""
    return [*fields, *(f"recipe.{field}" for field in fields)]


def number_list(text: str) -> list[int]:
    """The numbers that a text as `0-3,17` stands for."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            numbers += range(int(first), int(last if dash else first) + 1)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0-3,17") from None
    return numbers


def main(argv: list[str] | None = None) -> int:
    """Run one verb; a user's mistake is one message and exit code 2."""
    arguments = _parse(argv)
    if arguments.verb in ("train", "evaluate"):
        try:
            set_rank_variables()
        except ValueError as error:  # which rank this is cannot be known, so each says it
            print(f"error: {error}", file=sys.stderr)
            return 2
    try:
        if arguments.verb == "sweep":
            return _sweep(arguments)
        _run(arguments)
    except (ValueError, OSError) as error:
        # most errors are those of all ranks; where each has a file of its own, it says its own
        if os.environ.get("RANK", "0") == "0" or getattr(arguments, "rank_logs", False):
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Also where overrides come behind an option, which argparse does not take."""
    parser = build_parser()
    arguments, later = parser.parse_known_args(argv)
    overrides = getattr(arguments, "overrides", None)
    if wrong := [each for each in later if overrides is None or each.startswith("-")]:
        parser.error(f"{wrong[0]}: unknown argument; see {arguments.verb} --help")
    if overrides is not None:
        overrides += later
    return arguments


def _sweep(arguments: argparse.Namespace) -> int:
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from training.sweeps.sweep import SweepOptions, run_sweep

    return run_sweep(
        SweepOptions(
            recipe=arguments.recipe,
            overrides=arguments.overrides,
            varied=arguments.vary,
            seeds=arguments.seeds,
            num_jobs=arguments.jobs,
            num_processes=arguments.n,
            slurm=arguments.slurm,
            is_dry=arguments.dry_run,
        )
    )


def _run(arguments: argparse.Namespace) -> None:
    # imports here: --help and a mistake in the recipe answer before torch is loaded
    if arguments.verb == "train":
        from training.recipe_file import load_recipe

        recipe = load_recipe(arguments.recipe, arguments.overrides)
        if arguments.rank_logs:
            print_to_file(Path(recipe.run_dir), rank=int(os.environ.get("RANK", "0")))
        from training.loop import train

        train(recipe, accepted=_as_kept(arguments.accept_changes))
    elif arguments.verb == "evaluate" and arguments.tasks is not None:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed only reads the checkpoint
        _evaluate_tasks(arguments)
    elif arguments.verb == "evaluate":
        for name in _TASK_OPTIONS:
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} goes with --tasks")
        from training.evaluate_run import evaluate_run

        result = evaluate_run(arguments.run, arguments.overrides)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(result, indent=1))
    elif arguments.verb == "export":
        os.environ["DS_ACCELERATOR"] = "cpu"  # else DeepSpeed looks for one, and says so
        from training.export import export_run

        print(export_run(arguments.run, checkpoint=arguments.checkpoint, out=arguments.out))
    elif arguments.verb == "preview":
        os.environ["DS_ACCELERATOR"] = "cpu"
        from training.preview import write_preview
        from training.recipe_file import load_recipe

        print(
            write_preview(
                load_recipe(arguments.recipe, arguments.overrides),
                epoch=arguments.epoch,
                samples=arguments.samples,
                scores=arguments.scores,
                out=arguments.out,
            )
        )
    else:
        from training.reports.report import write_report

        print(write_report(arguments.runs, arguments.out or arguments.runs[0] / "report"))


if __name__ == "__main__":
    exit_code = main()
    if "RANK" in os.environ:
        # gloo's threads let go of tensors after the last collective has returned; one that does
        # so while the interpreter is being taken down aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
