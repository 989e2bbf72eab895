"""Whether Triton can compile its kernels on this machine."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def can_compile_kernels() -> bool:
    """Otherwise torch computes the same; rank 0 says once what is missing."""
    missing = _find_missing()
    if missing and os.environ.get("RANK", "0") == "0":
        print(
            f"the head runs without Triton kernels, slower and with more memory: {missing}",
            file=sys.stderr,
            flush=True,
        )
    return missing is None


def _find_missing() -> str | None:
    """Triton compiles a launcher in C for each kernel: `triton/runtime/build.py`."""
    if find_spec("triton") is None:
        return "triton is not installed"
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    if not any(map(shutil.which, compilers)):
        return f"no C compiler ({' or '.join(compilers)}) on PATH"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"{header} does not exist; it comes with the package python3-dev"
    return None
