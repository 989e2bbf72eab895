"""A hook of mkdocs: pages of the repository's root are pages of the site, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[1]
_OF_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "SECURITY.md": "SECURITY.md",
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root, with links as docs/ has them; and the licence."""
    for name, page in _OF_ROOT.items():
        text = (_ROOT / name).read_text(encoding="utf-8")
        for beginning in ("](", '="', '="../'):
            text = text.replace(f"{beginning}docs/", beginning.removesuffix("../"))
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "LICENSE", abs_src_path=str(_ROOT / "LICENSE")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links of a page in docs/ to the root."""
    for name, page in _OF_ROOT.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})")
    return markdown
