"""How a command ends: with its result, or with one sentence and an exit code."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# By name, or every start would import what raises them: safetensors, torch.
_OF_LIBRARIES = {
    "SafetensorError": "",
    "DistNetworkError": "; is MASTER_ADDR right, and MASTER_PORT free?",
    "DistStoreError": "; is MASTER_ADDR right, and did all processes start?",
    "OutOfMemoryError": "; `python -m launch plan RECIPE` says what fits",
}


def exit_code_of(
    run: Callable[[], int], *, speaks: bool = True, interrupted: str = "interrupted"
) -> int:
    """Run a verb and print what went wrong, if it is the user's or the machine's to mend.

    Args:
        speaks: False where another rank says the same.
        interrupted: what to say after Ctrl-C.

    Returns:
        What `run` returns; 2 for an error, 130 after Ctrl-C. A fault of ours is raised.
    """
    try:
        return run()
    except KeyboardInterrupt:
        message, code = interrupted, 130
    except Exception as error:
        name = type(error).__name__
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():  # as in `inspect ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if isinstance(error, ValueError | OSError):
            message, code = f"error: {_sentence(error)}", 2
        elif name in _OF_LIBRARIES:  # not raised on all ranks together
            message, code, speaks = f"error: {_sentence(error)}{_OF_LIBRARIES[name]}", 2, True
        else:
            raise
    if speaks:
        print(message, file=sys.stderr, flush=True)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return (
            f"no disk space left ({error}). Finished work is kept: free some space and run the "
            "same command again"
        )
    return str(error)


def _is_stdout_closed() -> bool:
    """Whether nobody reads what is printed; else a broken pipe is one to another process."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
