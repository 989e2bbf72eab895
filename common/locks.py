"""File locks, released when the process ends, however it ends."""

from __future__ import annotations

import errno
import fcntl
import sys
from pathlib import Path

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file, or return False if another process holds it.

    Also True, with a line on stderr, where the file system has no locks: nobody can be kept out
    there.

    Raises:
        OSError: for any other reason.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        print(
            f"WARNING: {path}: {error.strerror}; see that no other start uses it", file=sys.stderr
        )
    return True
