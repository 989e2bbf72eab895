"""The building blocks of a report's page: its style, sections, tables, pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence

from training.reports.tables import Table
from training.reports.theme import DARK, LIGHT

_STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --text: #1f2328;
  --soft: #59636e; --line: #d5dae0; --accent: #0072b2; --good: #0a7045; --good-back: #d9f2e5;
  --bad: #b3261e; --bad-back: #fce4e1; --warn: #b54708; --warn-back: #fff4e2; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22;
  --text: #e6edf3; --soft: #9198a1; --line: #30363d; --accent: #56b4e9; --good: #4fd69c;
  --good-back: #12352a; --bad: #ff8a80; --bad-back: #43201f; --warn: #f5a524;
  --warn-back: #33270f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 10px; overflow-wrap: anywhere; }
p { margin: 0 0 8px; overflow-wrap: anywhere; } p:last-child { margin-bottom: 0; }
.soft { color: var(--soft); } .small { font-size: 0.86rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px; margin-top: 18px; }
section.warn { border-color: var(--warn); border-left-width: 5px; background: var(--warn-back); }
section.verdict { border-left: 5px solid var(--accent); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 1.45rem; color: var(--accent); }
img { width: 100%; height: auto; display: block; border-radius: 6px; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: 0.84rem;
  padding: 4px 6px 0; }
.pictures { display: grid; gap: 22px 18px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.key { display: flex; flex-wrap: wrap; gap: 6px 16px; margin: 0 0 14px; padding: 0;
  list-style: none; font-size: 0.93rem; }
.key li { display: flex; align-items: center; gap: 7px; overflow-wrap: anywhere; min-width: 0; }
.key i { width: 22px; height: 4px; border-radius: 2px; flex: none; background: var(--light); }
@media (prefers-color-scheme: dark) { .key i { background: var(--dark); } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 0.9rem; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; min-width: 9.5em; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
.facts td { overflow-wrap: anywhere; }
mark { background: none; color: inherit; font-weight: 600; padding: 1px 7px; border-radius: 9px; }
mark.good { color: var(--good); background: var(--good-back); }
mark.bad { color: var(--bad); background: var(--bad-back); }
pre { overflow-x: auto; font-size: 13px; line-height: 1.45; margin: 8px 0 0; }
summary { cursor: pointer; overflow-wrap: anywhere; } details + details { margin-top: 8px; }
@media (max-width: 640px) {
  body { font-size: 15px; } main { padding: 18px 10px 48px; } section { padding: 12px; }
  tr:first-child { display: none; } table, tbody, tr, td { display: block; }
  tr { padding: 8px 0; border-bottom: 1px solid var(--line); }
  tr:last-child { border-bottom: 0; }
  td { display: flex; gap: 14px; justify-content: space-between; border: 0; padding: 2px 0; }
  td { overflow-wrap: anywhere; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: 0 0 auto;
    max-width: 46%; }
  td:first-child { font-weight: 600; } td:first-child::before { content: none; }
  td:empty { display: none; }
}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A self-contained page of sections one below the other."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body><main>\n<h1>{html.escape(title)}</h1>\n{body}\n</main></body>\n</html>\n"
    )


def section(title: str, body: str, *, kind: str = "") -> str:
    """A card; `kind` is a class of the style."""
    heading = f"<h2>{html.escape(title)}</h2>" if title else ""
    return f'<section class="{kind}">{heading}{body}</section>'


def paragraph(text: str, *, kind: str = "") -> str:
    """Text, escaped."""
    return f'<p class="{kind}">{html.escape(text)}</p>'


def fold(title: str, body: str) -> str:
    """Content that is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def tiles(named: Sequence[tuple[str, str]]) -> str:
    """Large numbers with a name below each."""
    cells = (
        f'<div class="tile"><b>{html.escape(value)}</b>{html.escape(name)}</div>'
        for name, value in named
    )
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(content: Table, *, kind: str = "numbers") -> str:
    """On a phone each row becomes a card, with the heads next to the cells."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in content.heads)
    body = "".join(
        "<tr>" + "".join(map(_cell, content.heads, row)) + "</tr>" for row in content.rows
    )
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def colour_key(names: Sequence[str]) -> str:
    """Which colour of the pictures is which group."""
    light, dark = (theme.group_colors(len(names)) for theme in (LIGHT, DARK))
    items = (
        f'<li><i style="--light: {on_light}; --dark: {on_dark}"></i>{html.escape(name)}</li>'
        for name, on_light, on_dark in zip(names, light, dark, strict=True)
    )
    return f'<ul class="key">{"".join(items)}</ul>'


def picture(light: bytes, dark: bytes, *, title: str, caption: str) -> str:
    """A PNG for a light page and one for a dark page, with how to read it."""
    return (
        '<figure><picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{_uri(dark)}"><img alt="{html.escape(title)}" src="{_uri(light)}">'
        f"</picture><figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def preformatted(text: str) -> str:
    """Text with its own line breaks."""
    return f"<pre>{html.escape(text)}</pre>"


def _cell(head: str, text: str) -> str:
    kind = {"better": "good", "worse": "bad"}.get(text.partition(" ")[0])
    shown = html.escape(text)
    if kind:
        shown = f'<mark class="{kind}">{shown}</mark>'
    return f'<td data-label="{html.escape(head)}">{shown}</td>'


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
