"""All checks, one after the other, on every rank; none can keep the others waiting forever."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch

from launch.preflight.checks import CHECKS, Check
from launch.preflight.exchange import Answer, Exchange, answer_within
from launch.preflight.finding import Finding, Verdict, name_ranks, ranks_by_value, worst
from launch.preflight.setting import Context, Setting


class Result(NamedTuple):
    """The outcome of a check."""

    name: str
    findings: list[Finding]
    seconds: float

    @property
    def verdict(self) -> Verdict:
        return worst(self.findings)


def run_checks(
    context: Context,
    exchange: Exchange,
    *,
    skipped: Collection[str] = (),
    seconds: float,
    show: Callable[[Result], None],
    checks: Mapping[str, Check] = CHECKS,
) -> list[Result]:
    """Run them; rank 0 judges and shows each as soon as it is done.

    Args:
        seconds: longest time of a check.
        show: called on rank 0 alone.

    Returns:
        All results on rank 0; elsewhere only how bad the worst one is, without its text.
    """
    results = []
    talk_is_broken = False
    for name, check in checks.items():
        if name in skipped:
            continue
        if check.talks and talk_is_broken:
            result = Result(name, [_NOT_RUN], 0.0)
        else:
            result, hangs = _run_check(context, exchange, name, check, seconds=seconds)
            talk_is_broken = talk_is_broken or (check.talks and hangs)
        results.append(result)
        if context.layout.is_main:
            show(result)
    return results


def _run_check(
    context: Context, exchange: Exchange, name: str, check: Check, *, seconds: float
) -> tuple[Result, bool]:
    """The result, on ranks but 0 without its text, and whether any rank hangs."""
    began = time.monotonic()
    own = answer_within(partial(_measure, check, context), seconds=seconds)
    taken = time.monotonic() - began
    answers = exchange.gather(name, own, seconds=seconds - taken)
    if answers is None:
        verdict, hangs = exchange.announce(f"{name}/said", None, seconds=seconds)
        return Result(name, [Finding(verdict, "")], taken), hangs
    findings = judge_answers(context.setting, check, answers)
    hangs = any(answer.hangs for answer in answers)
    result = Result(name, findings, time.monotonic() - began)
    exchange.announce(f"{name}/said", (result.verdict, hangs), seconds=seconds)
    return result, hangs


_NOT_RUN = Finding("skip", "not run: processes no longer answer each other, as reported above")


def _measure(check: Check, context: Context) -> object:
    if context.setting.on_gpu:
        torch.cuda.set_device(context.layout.device)  # each thread has its own
    return check.measure(context)


def judge_answers(setting: Setting, check: Check, answers: list[Answer]) -> list[Finding]:
    """What failed on some ranks, and what the measures of the others show."""
    errors = {rank: answer.error for rank, answer in enumerate(answers) if answer.error}
    findings = [
        Finding("fail", f"{name_ranks(ranks, setting.hosts)}: {error}", ranks=ranks)
        for error, ranks in ranks_by_value(errors)
    ]
    measures = {rank: a.value for rank, a in enumerate(answers) if a.error is None}
    # where all ranks are compared some of them say little, and the failure is reported already
    return findings if findings else check.judge(setting, measures)
