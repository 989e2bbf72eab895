"""The README's short table of other stacks says what the page behind it says."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.markdown import REPO_ROOT


def rows_by_number(page: Path) -> dict[int, list[str]]:
    """Of each numbered row of a page's tables: yes, partly, no or not found, stack by stack."""
    lines = page.read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"\| (\d+) [^|]* \| (.*) \|", line) for line in lines]
    return {
        int(row[1]): re.findall(r"(?:^|\| )(yes|partly|not found|no)\b", row[2])
        for row in found
        if row
    }


def test_the_short_table_agrees_with_the_whole_one() -> None:
    whole = rows_by_number(REPO_ROOT / "docs/comparison.md")
    short = rows_by_number(REPO_ROOT / "README.md")
    assert len(short) > 10
    for number, cells in short.items():
        assert len(cells) == 8
        assert cells == whole[number], f"row {number}"
