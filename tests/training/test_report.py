from __future__ import annotations

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.browser import built_page, picture, share_of_colour
from training.report import page_of, write_report
from training.report_compare import compare, mean_and_half_width, t_quantile
from training.report_groups import group_runs
from training.report_plots import smoothed
from training.run_curves import load_runs


def write_run(
    run_dir: Path, *, heldout: list[float], bands: int = 2, recipe: dict[str, Any] | None = None
) -> Path:
    """A run of two steps an evaluation, one evaluation an epoch, the first at step 0."""
    facts = {"world_size": 2, "corpus": "<b>", "total_steps": 2 * len(heldout) - 2}
    rows: list[dict[str, Any]] = [{"kind": "run", "step": 0} | facts]
    for epoch, loss in enumerate(heldout):
        for step in (2 * epoch - 1, 2 * epoch) if epoch else ():
            rows.append(
                {
                    "kind": "step",
                    "step": step,
                    "tokens": 100 * step,
                    "epoch": step / 2,
                    "loss": 4.0 / step,
                    "grad_norm": 1.0,
                    "drop_rate_asked": 0.1,
                    "drop_rate_realised": 0.2,
                    "entropy_threshold_nats": 1.0,
                    "mean_entropy_nats": 2.0,
                    "tokens_per_second": 1000.0,
                    "seconds": 0.5,
                }
            )
        found = [
            {"band": b, "from_nats": b - 1.0, "to_nats": float(b), "loss": loss, "num_targets": 9}
            for b in range(1, bands + 1)
        ]
        rows.append(
            {"kind": "evaluation", "step": 2 * epoch, "epoch": float(epoch), "loss": loss}
            | ({"bands": found} if bands else {})
        )
    run_dir.mkdir(parents=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if recipe:
        resolved = {"run_dir": str(run_dir)} | recipe
        (run_dir / "recipe.resolved.yaml").write_text(yaml.safe_dump(resolved))
    return run_dir


def write_seeds(folder: Path, regulariser: str, finals: dict[int, float]) -> list[Path]:
    """Runs of one recipe, one a seed, that end at these held-out losses and were best at 2.0."""
    return [
        write_run(
            folder / f"{regulariser}-seed{seed}",
            heldout=[3.0, 2.0, 2.1, final],
            recipe={"seed": seed, "regulariser": regulariser},
        )
        for seed, final in finals.items()
    ]


def page_text(*runs: Path) -> str:
    """The page without its figures."""
    return page_of(group_runs(load_runs(runs)), [])


class LinkCollector(HTMLParser):
    """Everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]


def test_page_needs_no_other_file_and_no_network(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    page = write_report([run], tmp_path / "report")
    text = page.read_text(encoding="utf-8")
    links = LinkCollector()
    links.feed(text)
    assert len(links.fetched) == 13  # an icon, and six panels for a light and a dark page
    assert all(link.startswith("data:") for link in links.fetched)
    assert not re.search(r"url\(|@import|<script", text)
    for name in ("report", "report_dark", "loss", "bands", "dropped", "speed"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_report_names_the_best_point_and_the_rise_since(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6, 2.0]))
    assert "lowest at epoch 2.00: 1.6000 nats" in text
    assert "risen by 25.0%" in text


def test_a_run_that_still_improves_is_not_called_overfit(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6]))
    assert "overfits" not in text
    assert "Overfitting" not in text
    text = page_text(write_run(tmp_path / "noise", heldout=[3.0, 2.0, 2.005]))
    assert "stayed within 0.25%" in text
    assert "overfits" not in text


def test_the_warning_of_overfitting_is_on_the_page(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.6, 1.8, 2.0]))
    assert "run: warned at epoch 4.00. Held-out loss rises (all, band 1, band 2)" in text


def test_facts_are_escaped(tmp_path: Path) -> None:
    text = page_text(write_run(tmp_path / "run", heldout=[3.0, 2.0]))
    assert "&lt;b&gt;" in text
    assert "<td><b></td>" not in text


def test_runs_of_the_same_folder_name_stay_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / parent / "run", heldout=[3.0, 2.0]) for parent in ("a", "b")]
    assert [run.name for run in load_runs(runs)] == ["a/run", "b/run"]
    text = page_text(*runs)
    assert "a/run" in text
    assert "b/run" in text


def test_losses_that_are_null_leave_a_gap_and_no_error(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    path = run / "metrics.jsonl"
    text = path.read_text()
    for known in ('"loss": 1.5', '"grad_norm": 1.0', '"entropy_threshold_nats": 1.0'):
        assert known in text
        text = text.replace(known, known.rpartition(" ")[0] + " null")
    path.write_text(text)
    assert "no finite number" in write_report([run], tmp_path / "report").read_text("utf-8")


def test_a_run_without_bands_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0], bands=0)
    assert write_report([run], tmp_path / "report").exists()


def test_a_run_without_evaluations_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    path = run / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if "evaluation" not in line]
    path.write_text("\n".join(lines) + "\n")
    text = write_report([run], tmp_path / "report").read_text("utf-8")
    assert "No held-out evaluation" in text
    assert not (tmp_path / "report" / "bands.png").exists()


def test_folders_that_hold_no_run_are_refused_by_name_all_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"nowhere.*is this the folder of a run") as caught:
        write_report([tmp_path / "nowhere", empty], tmp_path / "report")
    assert "no training step yet" in str(caught.value)
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    with pytest.raises(ValueError, match="named twice"):
        write_report([run, run], tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_folder_of_runs_stands_for_those_that_have_begun(tmp_path: Path) -> None:
    write_seeds(tmp_path / "sweep", "none", {1: 2.2, 2: 2.3})
    unbegun = tmp_path / "sweep" / "none-seed3"
    unbegun.mkdir()
    (unbegun / "metrics.jsonl").write_text('{"kind": "run", "step": 0}\n')
    assert [run.name for run in load_runs([tmp_path / "sweep"])] == ["none-seed1", "none-seed2"]


def test_a_torn_last_line_and_an_unfinished_run_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0, 1.5])
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:-2]) + lines[-2][:20])
    text = page_text(run)
    assert "run: not finished: step 3 of 4; it still runs, or was killed." in text
    assert "cut short" in text


def test_a_run_that_failed_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", heldout=[3.0, 2.0])
    state = {"state": "failed", "run_id": "x", "step": 0, "total_steps": 9, "num_starts": 1}
    why = {"reason": "rank 1: out of memory", "updated_at": "now"}
    (run / "run_state.json").write_text(json.dumps(state | why))
    assert "step 2 of 9; failed: rank 1: out of memory." in page_text(run)


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "none", {1: 2.2, 2: 2.4})
    runs += write_seeds(tmp_path, "entrodrop", {1: 2.1})
    groups = group_runs(load_runs(runs))
    assert [(group.name, group.seeds) for group in groups] == [
        ("none", (1, 2)),
        ("entrodrop-seed1", (1,)),
    ]
    curve = groups[0].heldout_curve()
    assert curve.mean == pytest.approx([3.0, 2.0, 2.1, 2.3])
    assert (curve.low[-1], curve.high[-1]) == (2.2, 2.4)
    assert curve.best == (1.0, 2.0)


def test_a_group_is_compared_seed_by_seed(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.5, 2: 2.8, 3: 3.2})
    runs += write_seeds(tmp_path, "none", {1: 2.6, 2: 2.9, 3: 3.3})
    # far apart between seeds, always 0.1 apart between groups
    text = page_text(*runs)
    assert "entrodrop against none. Final held-out loss 0.1000 nats lower" in text
    assert "-0.1000 to -0.1000; 3 seeds, paired): better." in text
    assert "Best held-out loss 0.0000 nats" in text
    assert text.count("no difference seen (3 seeds, paired)") == 1


def test_one_seed_cannot_tell_and_the_page_says_so(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.1}) + write_seeds(tmp_path, "none", {1: 2.6})
    text = page_text(*runs)
    assert "0.5000 nats lower: cannot tell with 1 seed." in text
    assert "better" not in text.replace("Which is better", "").replace("better than", "").replace(
        "better or worse", ""
    )


def test_no_group_is_called_better_while_its_runs_are_unfinished(tmp_path: Path) -> None:
    runs = write_seeds(tmp_path, "entrodrop", {1: 2.5, 2: 2.6})
    runs += write_seeds(tmp_path, "none", {1: 2.9, 2: 3.0})
    (runs[0] / "metrics.jsonl").write_text(
        "".join((runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)[:-3])
    )
    text = page_text(*runs)
    assert text.count("not the last word, 1 run unfinished") == 4  # best and final, twice told
    assert 'class="good"' not in text


def test_intervals_are_those_of_student(tmp_path: Path) -> None:
    # 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3), t of 2 degrees of freedom 4.303
    assert mean_and_half_width([0.1, 0.2, 0.3]) == pytest.approx((0.2, 4.303 * 0.1 / 3**0.5))
    assert t_quantile(7.9) == t_quantile(7)
    assert t_quantile(1000) == 1.98
    groups = group_runs(
        load_runs(
            write_seeds(tmp_path, "a", {1: 1.0, 2: 2.0, 3: 3.0})
            + write_seeds(tmp_path, "b", {4: 2.0, 5: 3.0, 6: 4.0})
        )
    )
    difference = compare(groups[0], groups[1], lambda run: run.final_loss)
    assert difference is not None
    # equal variances of 1 and sizes of 3: Welch has 4 degrees of freedom
    assert difference.half_width == pytest.approx(2.776 * (2 / 3) ** 0.5)
    assert difference.basis == "3 and 3 seeds, not paired"


def test_smoothing_is_the_mean_of_the_finite_values_in_the_window() -> None:
    values = [float(i) for i in range(400)]
    values[200] = math.nan
    result = smoothed(values)
    window = [v for v in values[196:205] if v == v]  # 400 // 100 to either side
    assert result[200] == pytest.approx(sum(window) / len(window))
    assert result[0] == pytest.approx(2.0)
    assert all(map(math.isnan, smoothed([math.nan] * 300)))


@pytest.fixture(scope="module")
def compared_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two groups of two seeds with names that a line of a phone does not hold."""
    folder = tmp_path_factory.mktemp("compared")
    long_name = "a_regulariser_with_a_name_that_is_longer_than_the_line_of_a_phone"
    runs = write_seeds(folder, "none", {1: 2.6, 2: 2.7}) + write_seeds(
        folder, long_name, {1: 2.2, 2: 2.4}
    )
    return write_report(runs, folder / "report")


# An iframe has a width of its own, narrower than any window of a browser without a screen; its
# text is given with it, so that the script around it may look inside.
_FRAME = """<!doctype html><body style="margin:0"><script>
const frame = document.createElement("iframe");
frame.style = "border:0;width:{width}px;height:900px";
frame.srcdoc = {page};
frame.onload = () => {{
  const page = frame.contentDocument, root = page.documentElement;
  const wide = [...page.querySelectorAll("main *")].filter((part) =>
    part.getBoundingClientRect().right > {width} + 1 && !part.closest("pre"));
  document.body.dataset.found = JSON.stringify({{
    overflow: root.scrollWidth - root.clientWidth,
    wide: wide.map((part) => part.tagName + ": " + part.textContent.slice(0, 40)),
    images: page.images.length,
    broken: [...page.images].filter((image) => !image.naturalWidth).length,
    fetched: frame.contentWindow.performance.getEntriesByType("resource")
      .map((entry) => entry.name).filter((name) => !name.startsWith("data:")),
  }});
}};
document.body.append(frame);
</script>"""


def framed(page: Path, *, width: int, folder: Path) -> Path:
    """A page that shows another one in a frame of this width, and says what it found there."""
    text = json.dumps(page.read_text("utf-8")).replace("</", "<\\/")
    frame = folder / f"frame-{width}.html"
    frame.write_text(_FRAME.format(width=width, page=text), encoding="utf-8")
    return frame


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_a_phone_and_a_desk_and_all_its_pictures_load(
    compared_page: Path, tmp_path: Path, width: int
) -> None:
    dom = built_page(framed(compared_page, width=width, folder=tmp_path), folder=tmp_path)
    (found,) = re.findall(r'data-found="([^"]*)"', dom)
    seen = json.loads(html.unescape(found))
    assert seen["overflow"] == 0
    assert seen["wide"] == []
    assert seen["images"] == 7
    assert seen["broken"] == 0
    assert seen["fetched"] == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_light_or_dark_as_the_reader_likes(
    compared_page: Path, tmp_path: Path, width: int
) -> None:
    frame = framed(compared_page, width=width, folder=tmp_path)
    for is_dark, page, card in ((False, "#f6f8fa", "#ffffff"), (True, "#0d1117", "#161b22")):
        image = picture(
            frame, folder=tmp_path, width=max(width, 500), height=3000, is_dark=is_dark
        )[:900, :width]
        assert share_of_colour(image, page) > 0.05
        assert share_of_colour(image, card) > 0.3


@pytest.mark.slow
def test_the_browser_has_nothing_to_complain_of(compared_page: Path, tmp_path: Path) -> None:
    assert console_messages(compared_page, folder=tmp_path) == []
    broken = tmp_path / "broken.html"
    broken.write_text("<script>console.error('as it is said')</script>")
    (message,) = console_messages(broken, folder=tmp_path)
    assert "as it is said" in message


def console_messages(page: Path, *, folder: Path) -> list[str]:
    """What the browser writes to its console while it loads a page."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("needs Chromium")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    profile = f"--user-data-dir={folder / 'console'}"
    done = subprocess.run(
        [browser, *flags, profile, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]
