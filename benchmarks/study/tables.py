"""The tables of a study's report, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.study.comparison import (
    ArmRuns,
    Measure,
    Place,
    area,
    band_rise,
    best_epoch,
    best_loss,
    final_band,
    final_loss,
    known,
)
from benchmarks.study.jobs import BASE_ARM
from benchmarks.study.results import Row
from benchmarks.study.settings import TUNING_SEED
from training.reports.intervals import Interval

LEGEND = """\
Losses are nats a token on held-out text of the domain. `final` is after the last epoch, `best` the
lowest of all evaluations. ± is half of a 95% interval of Student's t over seeds. Each seed has its
own slice; the held-out text and the base model are the same for all, so the intervals do not cover
other texts. Differences are paired by seed and bold where the interval excludes 0; of many such
intervals some do so by chance.
"""


def counts(rows: Sequence[Row]) -> str:
    """How many runs there are, of which kind, and what they cost."""
    trained = [row for row in rows if row["arm"] != BASE_ARM]
    tuning = sum(row["seed"] == TUNING_SEED for row in trained)
    hours = sum(row["cpu_seconds"] for row in trained) / 3600
    return (
        f"{len(trained)} runs: {tuning} that tuned settings, {len(trained) - tuning} reported; "
        f"at least {hours:.1f} core hours (of a killed run, those since its last start).\n"
    )


def tables_of_place(place: Place, *, losses: str, tuned_by: Measure) -> str:
    """All tables of one model size and domain.

    Args:
        losses: the first table.
        tuned_by: the loss by which settings were chosen.
    """
    return "\n".join(
        [
            losses,
            "By band of the base model's entropies on the held-out text, lowest first:\n",
            bands_table(place),
            "Forgetting, completed words, canaries:\n",
            knowledge_table(place),
            "Tries on the tuning slice:\n",
            tuning_table(place, tuned_by),
        ]
    )


def losses_table(place: Place) -> str:
    """Held-out loss of the domain, and differences to no regulariser and to random dropout."""
    head = ["arm", "setting", "seeds", "final", "best", "epoch of best", "mean over epochs"]
    head += ["final − none", "best − none", "final − random at equal rate"]
    none = place.arms.get("none")
    rows = []
    for name, runs in place.arms.items():
        partner = place.random_partner(name)
        rows.append(
            [
                runs.arm.label,
                setting_of(runs),
                str(len(runs.rows)),
                number(runs.mean(final_loss)),
                number(runs.mean(best_loss)),
                number(runs.mean(best_epoch), digits=1),
                number(runs.mean(area)),
                "" if name == "none" else difference(runs.minus(none, final_loss)),
                "" if name == "none" else difference(runs.minus(none, best_loss)),
                difference(runs.minus(partner, final_loss)),
            ]
        )
    return markdown(head, rows)


def bands_table(place: Place) -> str:
    """Final loss of each entropy band, and its rise above the band's own best."""
    some = next(iter(next(iter(place.arms.values())).rows.values()))
    bands = range(len(some["curve"]["bands"][0]))
    head = ["arm", *(f"band {band + 1} final" for band in bands)]
    head += [f"band {band + 1} rise" for band in bands]
    rows = [
        [
            runs.arm.label,
            *(number(runs.mean(final_band(band))) for band in bands),
            *(number(runs.mean(band_rise(band))) for band in bands),
        ]
        for runs in place.arms.values()
    ]
    return markdown(head, rows)


def knowledge_table(place: Place) -> str:
    """What the last weights forgot, complete and memorised, compared with the base model."""
    some = next(iter(next(iter(place.arms.values())).rows.values()))
    kinds = list(some["final"]["completed"])
    measures: list[tuple[str, Measure, int]] = [
        ("general loss, final", known("final", "general_loss"), 3),
        ("general loss, best", known("best", "general_loss"), 3),
        *((f"{kind}, final", known("final", "completed", kind), 3) for kind in kinds),
        *((f"{kind}, best", known("best", "completed", kind), 3) for kind in kinds),
        ("canaries written out", known("final", "canaries", "exact"), 2),
        ("exposure in bits, final", known("final", "canaries", "exposure_bits"), 2),
        ("exposure in bits, best", known("best", "canaries", "exposure_bits"), 2),
    ]
    shown = [*([place.base] if place.base else []), *place.arms.values()]
    asked = {kind for runs in shown for kind in _asked(runs)}
    head = ["arm", *(name for name, _, _ in measures)]
    head += [f"{kind} right, {when}" for kind in sorted(asked) for when in ("final", "best")]
    rows = [
        [
            runs.arm.label,
            *(number(runs.mean(m), digits=digits) for _, m, digits in measures),
            *(_right(runs, kind, when) for kind in sorted(asked) for when in ("final", "best")),
        ]
        for runs in shown
    ]
    return markdown(head, rows) + _about_answers(shown, asked)


def _asked(runs: ArmRuns) -> set[str]:
    """Kinds of questions that every run of an arm has answered."""
    return set.intersection(*(set(row["final"].get("answers", {})) for row in runs.rows.values()))


def _right(runs: ArmRuns, kind: str, when: str) -> str:
    if kind not in _asked(runs):
        return ""
    return number(runs.mean(known(when, "answers", kind, "right")))


def _about_answers(shown: Sequence[ArmRuns], asked: set[str]) -> str:
    """What the last columns are; nothing where nothing was asked."""
    if not asked:
        return ""
    error = max(
        answers["standard_error"]
        for runs in shown
        for row in runs.rows.values()
        for answers in row["final"].get("answers", {}).values()
    )
    return (
        "\n`right` is the share of questions with four answers that lm-evaluation-harness finds "
        "answered right. All are asked the same; over other questions the standard error of a "
        f"share is at most {error:.3f}.\n"
    )


def tuning_table(place: Place, tuned_by: Measure) -> str:
    """Held-out loss of every try on the tuning slice."""
    if not place.tuning:
        return "None: each arm uses the likeliest of its settings.\n"
    rows = []
    for runs in place.tuning.values():
        best = min(tuned_by(row) for row in runs)
        tried = [
            f"{'**' if tuned_by(row) == best else ''}{_values(row['chosen'])}: "
            f"{tuned_by(row):.3f}{'**' if tuned_by(row) == best else ''}"
            for row in runs
        ]
        rows.append([runs[0]["arm"], str(len(runs)), ", ".join(tried)])
    return markdown(["arm", "tries", "setting: loss"], rows)


def number(interval: Interval, *, digits: int = 3) -> str:
    """Mean ± half of the interval; only the mean for a single run."""
    if interval.half is None:
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} ± {interval.half:.{digits}f}"


def difference(interval: Interval | None) -> str:
    """With its sign, in bold where the 95% interval excludes 0."""
    if interval is None:
        return ""
    half = "" if interval.half is None else f" ± {interval.half:.3f}"
    text = f"{interval.mean:+.3f}{half}".replace("-", "−")
    return f"**{text}**" if interval.excludes_zero else text


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def setting_of(runs: ArmRuns) -> str:
    return ", ".join(f"{key.rpartition('.')[2]} {value:g}" for key, value in runs.chosen.items())


def _values(chosen: dict[str, float]) -> str:
    return ", ".join(f"{value:g}" for value in chosen.values())
