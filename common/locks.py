"""File locks, released when the process ends, however it ends."""

from __future__ import annotations

import fcntl


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock of an open file, or return False if another process holds it.

    Also True where the file system has no locks: nobody can be kept out there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
