"""Numbers in readable form."""

from __future__ import annotations


def count(number: int, what: str) -> str:
    """Example: "1 host", "2 hosts", "2 processes"."""
    ending = "" if number == 1 else "es" if what.endswith("s") else "s"
    return f"{number:,} {what}{ending}"


def size(num_bytes: float) -> str:
    """Example: "12.5 GiB", "3.1 MiB"."""
    if num_bytes >= 2**30 / 10:
        return f"{num_bytes / 2**30:,.1f} GiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def rate(bytes_a_second: float) -> str:
    """Example: "166 MB/s"."""
    return f"{bytes_a_second / 1e6:,.0f} MB/s"
