"""torchrun with failures in one line: the processes have printed what was wrong before it."""

from __future__ import annotations

import logging
import sys
from tempfile import TemporaryDirectory

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main(arguments: list[str]) -> int:
    """Run torchrun with its own arguments; 0 when every process succeeded."""
    # Its log repeats a process's exit code over 30 lines that push the message off the screen.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        # where it keeps its own files, and would leave them
        with TemporaryDirectory(prefix="torchrun-") as folder:
            torchrun([f"--log-dir={folder}", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        print(f"error: process {rank} {how}; its message is above", file=sys.stderr)
        return 1
    except SignalException as stop:
        print(f"stopped by {stop.sigval.name}, and all processes with it", file=sys.stderr)
        return 128 + stop.sigval
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
