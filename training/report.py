"""A report of one or more runs: report.png and a self-contained index.html."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from pathlib import Path

from training.report_plots import DARK, LIGHT, PANELS, Panel, Theme, draw_png
from training.run_curves import RunCurves, load_runs

_STYLE = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --text: #1f2328;
  --soft: #59636e; --line: #d5dae0; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --card: #161b22;
  --text: #e6edf3; --soft: #9198a1; --line: #30363d; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 0 0 12px; }
p { margin: 0 0 8px; } .soft { color: var(--soft); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px; margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 1.45rem; color: var(--accent); }
img { width: 100%; height: auto; display: block; border-radius: 6px; }
.pictures { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
.facts td { white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 600px) { body { font-size: 15px; } section { padding: 12px; } }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
table { font-size: 0.93rem; }
th, td { padding: 6px 10px 6px 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: 0; }
th { color: var(--soft); font-weight: 600; }
pre { overflow-x: auto; font-size: 13px; line-height: 1.45; margin: 8px 0 0; }
summary { cursor: pointer; }
"""


def write_report(run_dirs: list[Path], out_dir: Path) -> Path:
    """Draw the curves of runs and write a page that needs no other file.

    Returns:
        The page, `out_dir/index.html`; `out_dir/report.png` is its picture alone.

    Raises:
        ValueError: when a run folder holds no metrics.
    """
    runs = load_runs(run_dirs)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, theme in (("report.png", LIGHT), ("report_dark.png", DARK)):
        (out_dir / name).write_bytes(draw_png(runs, theme=theme, panels=PANELS, columns=2))
    page = out_dir / "index.html"
    page.write_text(_page(runs), encoding="utf-8")
    return page


def _page(runs: list[RunCurves]) -> str:
    title = html.escape(", ".join(run.name for run in runs))
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="soft">{html.escape(_verdict(runs[0]))}</p>' if len(runs) == 1 else "",
        _tiles(runs[0]) if len(runs) == 1 else "",
        _pictures(runs),
        "<section><h2>Final numbers</h2>" + _final_table(runs) + "</section>",
        *(_band_section(run) for run in runs if run.bands),
        *(_facts_section(run) for run in runs),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _verdict(run: RunCurves) -> str:
    """What the held-out curve says, in one sentence."""
    best = run.best_evaluation
    if best is None:
        return "No held-out evaluation in this run."
    last = run.evaluations[-1]
    at_best = f"Held-out loss was lowest at epoch {best['epoch']:.2f}: {best['loss']:.4f} nats."
    if best is last:
        return at_best.replace("was lowest", "is lowest at the last evaluation,")
    if last.get("loss") is None:
        return at_best + " The last evaluation gave no finite number."
    rise = 100 * (last["loss"] / best["loss"] - 1)
    return at_best + f" Since then it has risen by {rise:.1f}%: the run overfits from there on."


def _tiles(run: RunCurves) -> str:
    best, last = run.best_evaluation, run.steps[-1]
    tiles = [
        ("best held-out loss", _nats(best["loss"]) if best else "none"),
        ("at epoch", f"{best['epoch']:.2f} of {last['epoch']:.2f}" if best else "none"),
        ("tokens trained", f"{last['tokens']:,}"),
        ("tokens a second, median", _whole(run.tokens_per_second)),
    ]
    cells = (f'<div class="tile"><b>{value}</b>{name}</div>' for name, value in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _pictures(runs: list[RunCurves]) -> str:
    """One picture a panel: two columns on a wide page, one on a phone."""

    def uri(theme: Theme, panel: Panel) -> str:
        png = draw_png(runs, theme=theme, panels=(panel,), columns=1)
        return "data:image/png;base64," + base64.b64encode(png).decode("ascii")

    pictures = (
        '<picture><source media="(prefers-color-scheme: dark)" '
        f'srcset="{uri(DARK, panel)}"><img alt="Curves over epochs" src="{uri(LIGHT, panel)}">'
        "</picture>"
        for panel in PANELS
    )
    return f'<section class="pictures">{"".join(pictures)}</section>'


def _final_table(runs: list[RunCurves]) -> str:
    columns: list[tuple[str, Callable[[RunCurves], str]]] = [
        ("run", lambda run: html.escape(run.name)),
        ("best held-out", lambda run: _nats((run.best_evaluation or {}).get("loss"))),
        ("at epoch", lambda run: _two((run.best_evaluation or {}).get("epoch"))),
        ("final held-out", lambda run: _nats(_last(run.evaluations, "loss"))),
        ("final training", lambda run: _nats(_last(run.steps, "loss"))),
        ("epochs", lambda run: _two(run.steps[-1]["epoch"])),
        ("tokens", lambda run: f"{run.steps[-1]['tokens']:,}"),
        ("dropped, mean", lambda run: _percent(run.mean_drop_rate)),
        ("tokens/s", lambda run: _whole(run.tokens_per_second)),
        ("seconds", lambda run: _whole(sum(row.get("seconds") or 0.0 for row in run.steps))),
    ]
    return _table(
        [name for name, _ in columns], [[cell(run) for _, cell in columns] for run in runs]
    )


def _band_section(run: RunCurves) -> str:
    rows = []
    for band in run.bands:
        epochs, losses = run.band_series(band["band"])
        measured = [
            (loss, epoch) for epoch, loss in zip(epochs, losses, strict=True) if loss == loss
        ]
        best_loss, best_epoch = min(measured, default=(None, None))
        rows.append(
            [
                f"{band['band']}",
                f"{band['from_nats']:.4f} to {band['to_nats']:.4f}",
                f"{band['num_targets']:,}",
                _nats(losses[0]),
                _nats(best_loss),
                _two(best_epoch),
                _nats(losses[-1]),
            ]
        )
    heads = ["band", "entropy at step 0, nats", "targets", "first", "best", "at epoch", "final"]
    return (
        f"<section><h2>Held-out loss by entropy band: {html.escape(run.name)}</h2>"
        + _table(heads, rows)
        + "</section>"
    )


def _facts_section(run: RunCurves) -> str:
    rows = [
        [html.escape(key.replace("_", " ")), html.escape(_fact(value))]
        for key, value in run.facts.items()
    ]
    recipe = (
        "<details><summary>The resolved recipe</summary>"
        f"<pre>{html.escape(run.recipe_yaml)}</pre></details>"
        if run.recipe_yaml
        else ""
    )
    return (
        f"<section><h2>The run: {html.escape(run.name)}</h2>"
        + _table(["fact", "value"], rows, kind="facts")
        + recipe
        + "</section>"
    )


def _table(heads: list[str], rows: list[list[str]], *, kind: str = "numbers") -> str:
    head = "".join(f"<th>{name}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def _last(rows: list[dict[str, object]], key: str) -> float | None:
    value = rows[-1].get(key) if rows else None
    return value if isinstance(value, float) else None


def _fact(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _nats(value: float | None) -> str:
    return "none" if value is None or value != value else f"{value:.4f}"


def _two(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "none" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f}%"
