"""How a command ends: with its result, or with one sentence and an exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from common.commands import command

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# By name, or every start would import what raises them: safetensors, torch.
_OF_LIBRARIES = {
    "SafetensorError": "",
    "DistNetworkError": "; is MASTER_ADDR right, and MASTER_PORT free?",
    "DistStoreError": "; is MASTER_ADDR right, and did all processes start?",
    "OutOfMemoryError": "; `{plan}` says what fits",
}
_OUR_PACKAGES = ("common", "data_prep", "launch", "training")
_SHOWS_TRACEBACK = "ENTRODROP_TRACEBACK"
_SECONDS_TO_BE_ENDED = 3.0
"""How long a launcher may take to end the other ranks when one has failed."""
_SAME_KEY_PRESS_SECONDS = 1.0


class _CtrlC:
    """Whether it came, in this process."""

    def __init__(self) -> None:
        self.came_at: float | None = None

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGINT; one Ctrl-C can come twice: from the terminal, and from a launcher."""
        earlier, self.came_at = self.came_at, time.monotonic()
        if earlier is None or self.came_at - earlier >= _SAME_KEY_PRESS_SECONDS:
            signal.default_int_handler(number, frame)

    def end(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Of an error outside `exit_code_of`, as of the imports before a command begins."""
        if self.came_at is None:
            return sys.__excepthook__(kind, error, trace)
        raise SystemExit(_end_of_ctrl_c(error, "interrupted"))


_CTRL_C = _CtrlC()


def heed_ctrl_c() -> None:
    """Whatever is raised from now on after Ctrl-C ends the command as Ctrl-C does.

    To be called first: an import may make something else of a KeyboardInterrupt, such as a
    ModuleNotFoundError of a module that is there. A shell's job in the background ignores Ctrl-C,
    and goes on doing so. This module imports little, so that hardly any time is without it.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _CTRL_C.note)
        sys.excepthook = _CTRL_C.end


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Neither this thread takes it meanwhile, nor the processes and threads that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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
    except KeyboardInterrupt as error:
        return _end_of_ctrl_c(error, interrupted if rank == 0 else None)
    except Exception as error:
        if _CTRL_C.came_at is not None:
            return _end_of_ctrl_c(error, interrupted if rank == 0 else None)
        if isinstance(error, BrokenPipeError) and _is_stdout_closed():  # as in `inspect ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        sentence = _sentence(error)
        if sentence is None:
            raise
        if _shows_traceback():
            _print_traceback(error)
        elif isinstance(error, ValueError) and _is_of_a_library(error):
            sentence += f" (raised in a library; {_SHOWS_TRACEBACK}=1 shows where)"
    if rank > 0:
        time.sleep(_SECONDS_TO_BE_ENDED)
        sentence = f"rank {rank}: {sentence}"
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    return 2


def _end_of_ctrl_c(error: BaseException, sentence: str | None) -> int:
    if _shows_traceback() and not isinstance(error, KeyboardInterrupt):
        _print_traceback(error)
    if sentence is not None:
        print(sentence, file=sys.stderr, flush=True)
    # Python ends by the signal, not by our code, if Ctrl-C came within an exec of a text, as in the
    # making of a dataclass; what it remembers of that is forgotten with the next one.
    exec("")
    return 130


def _shows_traceback() -> bool:
    return os.environ.get(_SHOWS_TRACEBACK, "0") != "0"


def _print_traceback(error: BaseException) -> None:
    import traceback

    traceback.print_exception(error)


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
    if name not in _OF_LIBRARIES:
        return None
    return str(error) + _OF_LIBRARIES[name].format(plan=command("launch plan RECIPE"))


def _is_of_a_library(error: BaseException) -> bool:
    """Its message may say too little without what was being done."""
    while error.__cause__ is not None and str(error.__cause__) == str(error):
        error = error.__cause__  # as raised on one rank, and then on all
    import traceback
    from pathlib import Path

    *_, innermost = traceback.extract_tb(error.__traceback__)
    raised_in = Path(innermost.filename)
    installed_in = Path(__file__).parents[1]  # itself site-packages after `pip install`
    is_ours = any(raised_in.is_relative_to(installed_in / package) for package in _OUR_PACKAGES)
    return "site-packages" in raised_in.parts and not is_ours


def _escape_what_stdout_lacks() -> None:
    """A name or a text that its encoding cannot show is no error; stderr does so by itself."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _is_stdout_closed() -> bool:
    """Whether nobody reads what is printed; else a broken pipe is one to another process."""
    import select

    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError):
        return False
