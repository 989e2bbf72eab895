"""Fail when a JUnit file shows a skipped test for which this machine has all that it needs."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree

ALLOWED_REASON = "needs a GPU"


def unexpected_skips(junit_path: str) -> list[str]:
    """Names and reasons of the tests that were skipped for another reason than a missing GPU."""
    found = []
    for case in ElementTree.parse(junit_path).getroot().iter("testcase"):
        for skipped in case.iter("skipped"):
            if skipped.get("type") == "pytest.xfail":
                continue
            reason = skipped.get("message", "")
            if not reason.startswith(ALLOWED_REASON):
                found.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    return found


if __name__ == "__main__":
    skips = unexpected_skips(sys.argv[1])
    for skip in skips:
        print(f"error: skipped, though CI can run it: {skip}", file=sys.stderr)
    sys.exit(bool(skips))
