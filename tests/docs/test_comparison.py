"""The short table of other stacks says what the full ones below it say."""

from __future__ import annotations

import re

from tests.docs.markdown import REPO_ROOT


def rows_by_number(tables: str) -> dict[int, list[str]]:
    """Of each numbered row of some tables: yes, partly, no or not found, stack by stack."""
    lines = tables.splitlines()
    found = [re.fullmatch(r"\| (\d+) [^|]* \| (.*) \|", line) for line in lines]
    return {
        int(row[1]): re.findall(r"(?:^|\| )(yes|partly|not found|no)\b", row[2])
        for row in found
        if row
    }


def test_the_short_table_agrees_with_the_whole_one() -> None:
    page = (REPO_ROOT / "docs/comparison.md").read_text(encoding="utf-8")
    short, whole = map(rows_by_number, page.split("## How it was checked"))
    assert len(short) > 10
    for number, cells in short.items():
        assert len(cells) == 8
        assert cells == whole[number], f"row {number}"


def test_pages_give_the_number_of_families_that_the_table_has() -> None:
    table = (REPO_ROOT / "docs/models.md").read_text(encoding="utf-8")
    found = re.search(r"(\d+) families that.* (\d+) train\.", table, re.DOTALL)
    assert found is not None
    tried, train = found.groups()
    for page in ("README.md", "docs/comparison.md", "docs/reliability.md"):
        text = " ".join((REPO_ROOT / page).read_text(encoding="utf-8").split())
        assert re.search(rf"\b{train}( of the {tried} families| train\b)", text), page
        assert f"{tried} families" in text, page
