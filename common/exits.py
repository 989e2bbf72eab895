"""How a command ends: with its result, or with one sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# By name, or every start would import what raises them: safetensors, torch.
_OF_LIBRARIES = {
    "SafetensorError": "",
    "DistNetworkError": "; is MASTER_ADDR right, and MASTER_PORT free?",
    "DistStoreError": "; is MASTER_ADDR right, and did all processes start?",
    "OutOfMemoryError": "; `python -m launch plan RECIPE` says what fits",
}
_SHOWS_TRACEBACK = "ENTRODROP_TRACEBACK"
_SECONDS_TO_BE_ENDED = 3.0
"""How long a launcher may take to end the other ranks when one has failed."""


def exit_code_of(run: Callable[[], int], *, rank: int = 0, interrupted: str = "interrupted") -> int:
    """Run a verb and print what went wrong, if it is the user's or the machine's to mend.

    Args:
        rank: of several that usually fail together; then the first alone says why. Another one says
            it as well if its launcher has not ended it by then: it may be the only one to know.
        interrupted: what to say after Ctrl-C.

    Returns:
        What `run` returns; 2 for an error, 130 after Ctrl-C. A fault of ours is raised.
    """
    _escape_what_stdout_lacks()
    try:
        return run()
    except KeyboardInterrupt:
        if rank == 0:
            print(interrupted, file=sys.stderr, flush=True)
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():  # as in `inspect ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        sentence = _sentence(error)
        if sentence is None:
            raise
        if os.environ.get(_SHOWS_TRACEBACK, "0") != "0":
            traceback.print_exception(error)
        elif isinstance(error, ValueError) and _is_of_a_library(error):
            sentence += f" (raised in a library; {_SHOWS_TRACEBACK}=1 shows where)"
    if rank > 0:
        time.sleep(_SECONDS_TO_BE_ENDED)
        sentence = f"rank {rank}: {sentence}"
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return 2


def _sentence(error: Exception) -> str | None:
    """None for a fault of ours."""
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return (
            f"no disk space left ({error}). Finished work is kept: free some space and run the "
            "same command again"
        )
    if isinstance(error, OSError) and error.errno == errno.EMFILE:
        return f"{error}: this shell allows few of them; raise the limit, as in `ulimit -n 4096`"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"not enough memory{f' ({error})' if str(error) else ''}"
    name = type(error).__name__
    return f"{error}{_OF_LIBRARIES[name]}" if name in _OF_LIBRARIES else None


def _is_of_a_library(error: BaseException) -> bool:
    """Its message may say too little without what was being done."""
    while error.__cause__ is not None and str(error.__cause__) == str(error):
        error = error.__cause__  # as raised on one rank, and then on all
    *_, innermost = traceback.extract_tb(error.__traceback__)
    return "site-packages" in Path(innermost.filename).parts


def _escape_what_stdout_lacks() -> None:
    """A name or a text that its encoding cannot show is no error; stderr does so by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_stdout_closed() -> bool:
    """Whether nobody reads what is printed; else a broken pipe is one to another process."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
