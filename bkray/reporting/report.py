"""One self-contained HTML file for a run, a sweep, a comparison, active learning, a transfer.

    RunReport   ─► figures, tables ─► report.html.j2 ─┐
                                                      ├─► page.html.j2 (look) ─► one file, replaced whole
    SweepReport ─► figure, table   ─► sweep.html.j2  ─┤
    ComparisonReport ─► the same ─► comparison.html.j2
    ActiveReport     ─► the same ─► active.html.j2
    TransferReport   ─► the same ─► transfer.html.j2

The file needs nothing but itself: no script, font, image or style from elsewhere; its content security policy
forbids them. All text from the outside is escaped.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from bkray.reporting import active_figures, figures, formats
from bkray.reporting.files import write_atomically
from bkray.reporting.records import (
    ActiveReport,
    ComparisonReport,
    ComparisonRow,
    RunReport,
    SweepReport,
    TransferReport,
    Trial,
)

WINDOWS_SHOWN = 10  # of the easiest and of the hardest; with TEXT_SHOWN this bounds the size of the file
TEXT_SHOWN = 4000  # characters of one text
BASELINES = {"trigram": "3-gram baseline", "unigram": "unigram baseline"}  # by their name in summary.json
BEFORE = "before tuning"  # the model that the run started from


def write_report(path: str | Path, report: RunReport) -> None:
    """Write the page of one run to `path`, whole or not at all."""
    page = _environment().get_template("report.html.j2")
    write_atomically(Path(path), page.render(run=report, **_run_context(report)))


def write_sweep_report(path: str | Path, report: SweepReport) -> None:
    """Write the page of one sweep to `path`, whole or not at all. Raises ValueError for an unknown winner."""
    if report.winner is not None and report.winner not in {trial.name for trial in report.trials}:
        raise ValueError(f"winner {report.winner!r} is not among the trials of {report.name!r}")
    page = _environment().get_template("sweep.html.j2")
    trials = sorted(report.trials, key=_rank)
    parameters = sorted({key for trial in trials for key in trial.parameters})
    drawn = figures.sweep_scatter(report.trials)
    write_atomically(
        Path(path),
        page.render(
            sweep=report,
            trials=trials,
            parameters=parameters,
            compared=any(trial.ratio for trial in trials),
            best=next((trial for trial in trials if trial.name == report.winner), None),
            baseline=next((trial for trial in trials if trial.baseline), None),
            figures=[(drawn, "Every trial that was evaluated on held-out text; lower is better.")]
            if drawn
            else [],
        ),
    )


def write_comparison_report(path: str | Path, report: ComparisonReport) -> None:
    """Write the page of one comparison to `path`, whole or not at all."""
    page = _environment().get_template("comparison.html.j2")
    drawn = [
        (
            figures.comparison_points(report),
            "Held-out bits per byte of every arm less those of the reference, mean and 95 % interval over "
            "seeds and windows. Green is better than the reference, orange worse, grey not told apart.",
        ),
        (figures.comparison_curves(report), "The first seed's longest runs, on the validation split."),
    ]
    groups: dict[tuple[str, int], list[ComparisonRow]] = {}
    for row in report.rows:
        groups.setdefault((row.kind, row.reference_steps), []).append(row)
    write_atomically(
        Path(path),
        page.render(report=report, groups=groups, figures=[(svg, caption) for svg, caption in drawn if svg]),
    )


def write_active_report(path: str | Path, report: ActiveReport) -> None:
    """Write the page of active learning and its controls to `path`, whole or not at all."""
    page = _environment().get_template("active.html.j2")
    drawn = [
        (
            active_figures.differences(report),
            f"Held-out bits per byte of every arm less those of {report.reference}, mean and 95 % interval "
            "over seeds and windows. Green is better, orange worse, grey not told apart.",
        ),
        (
            active_figures.loss_by_cost(report),
            "The first seed on the validation split, against the cost of training and of scoring pools. A "
            "dot ends a round.",
        ),
        (active_figures.cost_by_round(report), "What each round cost, mean over the seeds."),
        (
            active_figures.pools(report),
            "The first seed: how uncertain the model was about the windows of each pool, and about those "
            "that were added.",
        ),
    ]
    write_atomically(
        Path(path), page.render(report=report, figures=[(svg, caption) for svg, caption in drawn if svg])
    )


def write_transfer_report(path: str | Path, report: TransferReport) -> None:
    """Write the page of a transfer to `path`, whole or not at all."""
    page = _environment().get_template("transfer.html.j2")
    target = report.target
    costs = {phase.name: {"flops": phase.flops, "seconds": phase.seconds} for phase in report.phases}
    drawn = [
        (
            figures.comparison_bars({"tuned": target.after, BEFORE: target.before}),
            "The held-out text of the target under the model as it came and as it was tuned.",
        ),
        (
            figures.ledger_bars(costs, "phase"),
            "What each phase cost, its preparation and evaluation included.",
        ),
    ]
    write_atomically(Path(path), page.render(report=report, figures=drawn))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("bkray.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clipped=_clipped,
        count=formats.count,
        decimal=formats.decimal,
        duration=formats.duration,
        flops=formats.flops,
        share=formats.share,
        value=formats.value,
    )
    return environment


def _run_context(report: RunReport) -> dict[str, Any]:
    held_out, ledger = report.summary["held_out"], report.summary["ledger"]
    baselines = report.summary.get("baselines") or {}
    compared = {title: baselines[name] for name, title in BASELINES.items() if name in baselines}
    if start := report.summary.get("start"):
        compared[BEFORE] = start["bits_per_byte"]
    speeds = [row["tokens_per_second"] for row in report.metrics if row.get("tokens_per_second") is not None]
    used = [row["mfu"] for row in report.metrics if row.get("mfu") is not None]
    return {
        "held_out": held_out,
        "ledger": ledger,
        "seen_before": _seen_before(report.summary.get("seen_before")),
        "compared": [
            (title, bits, _against(held_out["bits_per_byte"], bits)) for title, bits in compared.items()
        ],
        "figures": _run_figures(report, {"this model": held_out["bits_per_byte"], **compared}),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "mfu": statistics.median(used) if used else None,
        "windows": [
            (title, windows[:WINDOWS_SHOWN])
            for title, windows in (("Easiest windows", report.easiest), ("Hardest windows", report.hardest))
            if windows
        ],
        "versions": report.summary.get("versions") or {},
    }


def _seen_before(counts: Mapping[str, Any] | None) -> str:
    """How many held-out documents the start model has learnt from; and where nobody could look."""
    if not counts:
        return ""
    found = [f"{sum(counts['reasons'].values()):,} of {counts['held_out']:,}"] if "held_out" in counts else []
    if counts["lost"]:
        found.append(f"not looked for in what {counts['lost']} learnt from, which is not beside it")
    return "; ".join(found)


def _run_figures(report: RunReport, compared: dict[str, float | None]) -> list[tuple[str, str]]:
    """(SVG, caption) of every figure that has data."""
    drawn = [
        (
            figures.loss_curves(report.metrics),
            "Cross-entropy a token: the pale line is what was logged, the strong one its moving mean.",
        ),
        (
            figures.ledger_bars(report.summary["ledger"]["by_kind"]),
            "Where the cost went; the table below has the tokens too.",
        ),
        (
            figures.throughput(report.metrics) + figures.time_by_phase(report.metrics),
            "What the training steps got through, and where the time of the loop went; reading is waiting "
            "for the next batch.",
        ),
        (
            figures.comparison_bars(compared) if len(compared) > 1 else "",
            "The same held-out windows under this model and under baselines that only count.",
        ),
        (
            figures.share_of_data(report.metrics),
            "The curriculum: easy windows first, up to the share that each step may draw from.",
        ),
        (
            figures.difficulty_histogram(report.difficulty[1], report.difficulty[0])
            if report.difficulty
            else "",
            "Difficulty of the training windows: what the curriculum orders them by.",
        ),
    ]
    return [(svg, caption) for svg, caption in drawn if svg]


def _against(model: float | None, baseline: float | None) -> str:
    """How the model stands to a baseline, in words; empty where either is not finite."""
    if model is None or not baseline or not math.isfinite(model) or not math.isfinite(baseline):
        return ""
    change = model / baseline - 1.0
    return f"the model is {100 * abs(change):.1f} % {'lower' if change < 0 else 'higher'}"


def _rank(trial: Trial) -> tuple[bool, float]:
    """Best first; trials without a finite value last."""
    bits = trial.bits_per_byte
    return (False, bits) if bits is not None and math.isfinite(bits) else (True, 0.0)


def _clipped(text: str) -> str:
    if len(text) <= TEXT_SHOWN:
        return text
    return f"{text[:TEXT_SHOWN]} … ({len(text) - TEXT_SHOWN:,} more characters)"
