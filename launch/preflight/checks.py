"""What each check measures on every rank, and how rank 0 judges the measures of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from launch.preflight import (
    bandwidth,
    clocks,
    corpus,
    devices,
    disk,
    documents,
    gradients,
    limits,
    losses,
    model,
    names,
    pairs,
    paths,
    versions,
    weights,
)
from launch.preflight.finding import Finding
from launch.preflight.setting import Context, Setting


class Check(NamedTuple):
    """One row of the table."""

    measure: Callable[[Context], Any]
    """On every rank; its result can be pickled, an exception fails the check."""
    judge: Callable[[Setting, Mapping[int, Any]], list[Finding]]
    """On rank 0, of the ranks that have measured."""
    talks: bool = False
    """Ranks wait for each other in it: if one hangs, all later checks of this kind are useless."""


CHECKS = {
    "versions": Check(versions.measure, versions.judge),
    "devices": Check(devices.measure, devices.judge),
    "memory": Check(devices.measure, devices.judge_memory),
    "limits": Check(limits.measure, limits.judge),
    "environment": Check(limits.measure_environment, limits.judge_environment),
    "caches": Check(paths.measure_caches, paths.judge_caches),
    "names": Check(names.measure, names.judge),
    "space": Check(disk.measure_space, disk.judge_space),
    "paths": Check(paths.measure, paths.judge),
    "disk": Check(disk.measure, disk.judge),
    "clocks": Check(clocks.measure, clocks.judge, talks=True),
    "all-reduce": Check(bandwidth.measure_all_reduce, bandwidth.judge_all_reduce, talks=True),
    "all-to-all": Check(bandwidth.measure_all_to_all, bandwidth.judge_all_to_all, talks=True),
    "pairs": Check(pairs.measure, pairs.judge, talks=True),
    "model": Check(model.measure, model.judge),
    "tokenizer": Check(model.measure_tokenizer, model.judge_tokenizer),
    "start": Check(corpus.measure_start, corpus.judge_start),
    "contents": Check(corpus.measure_contents, corpus.judge_contents),
    "losses": Check(losses.measure, losses.judge),
    "weights": Check(weights.measure, weights.judge, talks=True),
    "documents": Check(documents.measure, documents.judge, talks=True),
    "gradients": Check(gradients.measure, gradients.judge, talks=True),
}
