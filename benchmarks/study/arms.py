"""All arms, by the question that a study asks."""

from __future__ import annotations

from benchmarks.study.levers import CORE, LEVERS, SCRATCH
from benchmarks.study.regularisers import REGULARISERS

ARMS = {"regularisers": REGULARISERS, "levers": LEVERS, "core": CORE, "scratch": SCRATCH}
ARM_OF = {arm.name: arm for arms in ARMS.values() for arm in arms}
