"""The inspect verb's HTML page: one self-contained file, tokens coloured by entropy."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np

from data_prep.durable import write_durable
from data_prep.ledger import SPLITS
from data_prep.viewing.colours import NUM_STEPS, css_colours, step_of, top_of_scale
from data_prep.viewing.selection import Piece, Selection, Shown, View
from data_prep.viewing.show import printable
from data_prep.viewing.token_texts import texts_of

_STYLE = """\
:root { color-scheme: light dark; --page: #fbfbf9; --ink: #1d1f23; --soft: #666b73;
  --line: #d9dbd6; --card: #ffffff; --drop: #c2002f; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --ink: #e4e6e9; --soft: #989ea7;
  --line: #33373d; --card: #1c1f23; --drop: #ff6b81; DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 5rem; max-width: 72rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem }
h3 { font-size: .82rem; font-weight: 600; margin: 0; padding: .45rem .8rem; color: var(--soft);
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
.facts, .legend { color: var(--soft); font-size: .9rem; margin: .2rem 0 }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; align-items: center;
  margin-top: .7rem }
.scale { display: inline-flex; align-items: center; gap: .5rem }
.scale i { display: inline-block; width: .95rem; height: 1rem }
.scale b { display: inline-flex }
.piece { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  margin: .6rem 0; overflow: hidden }
.text { margin: 0; padding: .7rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13.5px/1.75 ui-monospace, "SF Mono", Menlo, Consolas, monospace }
.t { border-radius: 2px; padding: .08em 0; cursor: default }
.t:hover, .t.on { outline: 2px solid var(--ink) }
.m { color: var(--soft); opacity: .65; font-style: italic }
.d { text-decoration: line-through 2px var(--drop); box-shadow: inset 0 -2px var(--drop) }
.n { color: var(--soft); font-size: .85em }
.b { border: 1px solid var(--line); border-radius: 3px; margin: 0 1px; padding: 0 2px }
.padding { color: var(--soft); border-style: dashed; padding: .5rem .8rem; font-size: .85rem }
#about { position: fixed; inset: auto 0 0 0; padding: .6rem 1rem; background: var(--ink);
  color: var(--page); font: 13px/1.4 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere }
#about:empty { display: none }
"""
_SCRIPT = """\
const about = document.getElementById('about'); let last;
function show(event) {
  const token = event.target.closest('.t'); if (!token) return;
  if (last) last.classList.remove('on'); last = token; token.classList.add('on');
  about.textContent = token.title;
}
document.addEventListener('pointerover', show); document.addEventListener('click', show);
"""


def write_page(selection: Selection, *, out: Path) -> Path:
    """Write the page for a selection."""
    page = make_page(View(selection))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_durable(out, page.encode("utf-8", "replace"))
    return out


def make_page(view: View) -> str:
    """The whole page; all corpus text in it is escaped."""
    shown = list(view)
    scores = [p.scores for item in shown for p in item.pieces if p.scores is not None]
    top = top_of_scale(scores)
    body = [_head(view), _legend(view, top=top if scores else None)]
    body += [_item(item, view, top=top) for item in shown]
    style = _STYLE
    for name, dark in (("LIGHT", False), ("DARK", True)):
        colours = css_colours(dark=dark)
        style = style.replace(name, " ".join(f"--e{i}: {c};" for i, c in enumerate(colours)))
    style += "\n".join(f".e{i} {{ background: var(--e{i}) }}" for i in range(NUM_STEPS))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(view.selection.folder.name)}</title>\n"
        f"<style>\n{style}\n</style></head>\n<body>\n"
        + "\n".join(body)
        + f'\n<div id="about"></div>\n<script>\n{_SCRIPT}</script>\n</body></html>\n'
    )


def _head(view: View) -> str:
    corpus, index = view.corpus, view.index
    counts = "; ".join(
        f"{split} {corpus.num_documents(split):,} documents, {corpus.num_tokens(split):,} tokens"
        for split in SPLITS
    )
    facts = [
        counts,
        f"domains: {', '.join(corpus.domains)}; tokenizer: {corpus.manifest.tokenizer.source}, "
        f"{corpus.vocab_size:,} ids",
    ]
    if index is not None:
        facts.append(
            f"packed by {index.policy} to {index.seq_len:,} tokens: "
            f"{index.num_samples(view.selection.split):,} samples of {view.selection.split}"
        )
    if view.scores is not None:
        made = view.scores.manifest
        facts.append(f"scores: {made.name} ({made.measure}, by {made.model})")
    if view.drops is not None:
        facts.append(
            f"drops of epoch {view.drops.epoch:,}: {view.drops.where}, the lowest "
            f"{view.drops.quantile:.0%} of each step"
        )
    lines = "".join(f'<p class="facts">{escape(fact)}</p>\n' for fact in facts)
    return f"<h1>{escape(str(view.selection.folder))}</h1>\n{lines}"


def _legend(view: View, *, top: float | None) -> str:
    parts = []
    if top is not None:
        blocks = "".join(f'<i class="e{step}"></i>' for step in range(NUM_STEPS))
        parts.append(f'<span class="scale">0 <b>{blocks}</b> {top:.2f} nats or more</span>')
    parts.append('<span><span class="m">masked</span> out of the loss</span>')
    if view.drops is not None:
        parts.append('<span><span class="d">dropped</span> by the recipe</span>')
    return f'<div class="legend">{"".join(parts)}</div>'


def _item(item: Shown, view: View, *, top: float) -> str:
    parts = [f"<h2>{escape(item.title)}</h2>"] if item.title else []
    parts += [_piece(piece, view, top=top) for piece in item.pieces]
    if item.num_padding:
        parts.append(f'<div class="piece padding">padding: {item.num_padding:,} tokens</div>')
    return "\n".join(parts)


def _piece(piece: Piece, view: View, *, top: float) -> str:
    scores = np.full(len(piece.ids), np.nan) if piece.scores is None else piece.scores
    tokens = "".join(
        _token(text, piece=piece, i=i, score=score, top=top, view=view)
        for i, (text, score) in enumerate(
            zip(texts_of(piece.ids, view.tokenizer), scores.tolist(), strict=True)
        )
    )
    return (
        f'<section class="piece"><h3>{escape(printable(piece.title))}</h3>'
        f'<div class="text">{tokens}</div></section>'
    )


def _token(text: str, *, piece: Piece, i: int, score: float, top: float, view: View) -> str:
    token = int(piece.ids[i])
    classes, about = ["t"], [f"token {piece.first + i}, id {token}, {text!r}"]
    part = view.part_bytes.get(token, b"").hex(" ").upper()
    if part:
        about.append(f"bytes {part}")
    step = step_of(score, top=top)
    if step is not None:
        classes.append(f"e{step}")
        about.append(f"{score:.3f} nats")
    if not piece.in_loss[i]:
        classes.append("m")
        about.append("masked out of the loss")
    if piece.is_dropped[i]:
        classes.append("d")
        about.append("dropped")
    # A direction mark in one token must not reverse the rest of the page.
    shown = f"<bdi>{_visible(text, part)}</bdi>"
    title = escape(printable("; ".join(about)), quote=True)
    return f'<span class="{" ".join(classes)}" title="{title}">{shown}</span>'


def _visible(text: str, part: str) -> str:
    """Escaped, with marks for invisible characters and bytes where there is no text."""
    if not text.strip("\ufffd"):  # not a character, or one that ends in a later token
        shown = part or text or "·"
        return f'<span class="n{" b" if part else ""}">{shown}</span>'
    shown = escape(printable(text))
    return shown.replace("\n", '<span class="n">⏎</span>\n').replace("\t", "\u2192\t")
