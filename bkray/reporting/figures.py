"""The figures of the reports: data in, inline SVG out, nothing read or written.

    metrics ─► loss_curves, share_of_data,       difficulty ─► difficulty_histogram
               throughput, time_by_phase
    ledger  ─► ledger_bars                       held-out bits per byte ─► comparison_bars
    trials  ─► sweep_scatter                     comparison  ─► comparison_points, comparison_curves

A figure without data is the empty string. Values that are not finite are counted in the figure, never drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from bkray.reporting.formats import SUPERSCRIPT, duration, flops, share
from bkray.reporting.records import ComparisonReport, ComparisonRow, Trial
from bkray.reporting.style import BLUE, GREEN, GREY, INK, LINES, ORANGE, render

POINTS = 400  # a curve with more is drawn as means of neighbours
AXES = {"tokens": "tokens seen", "step": "optimizer steps", "seconds": "seconds"}

LOOKS = {  # of a trial: marker, colour, filling
    "baseline": ("D", ORANGE, ORANGE),
    "finished": ("o", BLUE, BLUE),
    "stopped early": ("o", BLUE, "white"),
    "failed": ("X", INK, INK),
}

Rows = Sequence[Mapping[str, Any]]


def loss_curves(metrics: Rows) -> str:
    """Loss against tokens, steps and seconds: three <svg> elements, so that they wrap in a narrow window."""
    return "".join(_loss_curve(metrics, key) for key in AXES)


def share_of_data(metrics: Rows) -> str:
    """The share of the training windows that the curriculum had made available at each step."""
    step, available, lost = _series(metrics, "step", "share")
    if not len(step):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.step(*_thinned(step, available), where="post", color=BLUE)
        axes.set(title="Share of the data available", xlabel=AXES["step"], ylim=(0, 1.04))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _note(axes, lost, "not finite")

    return render(draw, label="Share of the data available against optimizer steps")


def throughput(metrics: Rows) -> str:
    """Tokens a second of the training steps against steps."""
    step, speed, lost = _series(metrics, "step", "tokens_per_second")
    if not len(step):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*_thinned(step, speed), color=BLUE)
        axes.set(title="Tokens a second", xlabel=AXES["step"])
        axes.set_ylim(bottom=0)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(EngFormatter(sep=""))
        _note(axes, lost, "not finite")

    return render(draw, label="Tokens a second against optimizer steps", height=2.6)


def time_by_phase(metrics: Rows) -> str:
    """The share of the loop's time that each phase took, mean over the lines that have `time_*` keys."""
    lines = [{key: row[key] for key in row if key.startswith("time_")} for row in metrics]
    lines = [line for line in lines if line]
    if not lines:
        return ""
    keys = dict.fromkeys(key for line in lines for key in line)
    means = {key[5:]: sum(line.get(key, 0.0) for line in lines) / len(lines) for key in keys}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = sorted(means, key=lambda name: means[name])
        amounts = [means[name] for name in names]
        _bars(axes, names, amounts, [share(amount, 1.0) for amount in amounts], [GREEN] * len(names))
        axes.set_title("Time of the training loop by phase")

    return render(draw, label="Time of the training loop by phase", height=0.8 + 0.34 * len(means))


def difficulty_histogram(values: Sequence[float] | np.ndarray, name: str) -> str:
    """How many windows have which difficulty; `name` is the measure's."""
    every = np.asarray(values, dtype=np.float64)
    finite = every[np.isfinite(every)]
    if not len(finite):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        counts, edges = np.histogram(finite, bins=40)
        axes.stairs(counts, edges, fill=True, color=BLUE, alpha=0.75)
        median = float(np.median(finite))
        axes.axvline(median, color=INK, linewidth=1.2, linestyle=(0, (3, 2)), label=f"median {median:.3g}")
        axes.legend(loc="best", handlelength=1.4)
        axes.set(title=f"Difficulty of the windows: {name}", xlabel=name, ylabel="windows")
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        _note(axes, len(every) - len(finite), "not finite")

    return render(draw, label=f"Histogram of the difficulty of the windows by {name}")


def ledger_bars(table: Mapping[str, Mapping[str, Any]], by: str = "kind of work") -> str:
    """FLOPs and seconds by kind of work, or what else `by` says: two <svg> elements, the most on top.

    table: {kind: {flops, seconds, …}}. What took none is left out.
    """
    return _amounts(table, "flops", f"FLOPs by {by}", BLUE, flops) + _amounts(
        table, "seconds", f"Time by {by}", GREEN, duration
    )


def _amounts(
    table: Mapping[str, Mapping[str, Any]], key: str, title: str, color: str, written: Callable[[float], str]
) -> str:
    taken = sorted((row[key], kind) for kind, row in table.items() if row[key])
    if not taken:
        return ""
    amounts, kinds = [amount for amount, _ in taken], [kind for _, kind in taken]
    texts = [f"{written(amount)}  ({share(amount, sum(amounts))})" for amount in amounts]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _bars(axes, kinds, amounts, texts, [color] * len(kinds))
        axes.set_title(title)

    return render(draw, label=title, height=0.8 + 0.26 * len(kinds))


def comparison_bars(values: Mapping[str, float | None]) -> str:
    """Held-out bits per byte by name, the model first; the names after it are what it is compared with."""
    known = {name: value for name, value in values.items() if value is not None and np.isfinite(value)}
    if not known:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(known)[::-1]
        colors = [BLUE if name == next(iter(values)) else GREY for name in names]
        _bars(axes, names, [known[name] for name in names], [f"{known[name]:.3f}" for name in names], colors)
        axes.set_title("Held-out bits per byte (lower is better)")
        _note(axes, len(values) - len(known), "not finite")

    return render(draw, label="Held-out bits per byte, model and baselines", height=0.8 + 0.42 * len(known))


def sweep_scatter(trials: Sequence[Trial]) -> str:
    """Bits per byte against FLOPs and by trial: two <svg> elements."""
    scored = [(n, trial) for n, trial in enumerate(trials, start=1) if _finite(trial.bits_per_byte)]
    priced = [(float(trial.flops or 0), trial) for _, trial in scored if _finite(trial.flops)]
    power = int(np.log10(max((cost for cost, _ in priced), default=0.0) or 1.0))
    return _scatter(
        [(cost / 10.0**power, trial) for cost, trial in priced],
        title="Bits per byte against cost",
        xlabel=f"10{str(power).translate(SUPERSCRIPT)} FLOPs",
        total=len(trials),
    ) + _scatter(scored, title="Bits per byte by trial", xlabel="trial, in order of start", total=len(trials))


def comparison_points(report: ComparisonReport) -> str:
    """Every arm's bits per byte less the reference's with its interval: an <svg> a kind and budget."""
    groups: dict[tuple[str, int], list[ComparisonRow]] = {}
    for row in report.rows:
        if row.difference:
            groups.setdefault((row.kind, row.reference_steps), []).append(row)
    return "".join(_differences(kind, steps, rows, report) for (kind, steps), rows in groups.items())


def comparison_curves(report: ComparisonReport) -> str:
    """Validation loss against steps and seconds: two <svg> elements, one line an arm."""
    return "".join(_arms_curve(report, key) for key in ("step", "seconds"))


def _differences(kind: str, steps: int, rows: list[ComparisonRow], report: ComparisonReport) -> str:
    rows = sorted(rows, key=lambda row: row.difference or (0.0,), reverse=True)
    title = f"{steps:,} steps" if kind == "steps" else f"the time of {steps:,} steps"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for place, row in enumerate(rows):
            mean, low, high = row.difference or (0.0, 0.0, 0.0)
            color = GREY if low <= 0 <= high else ORANGE if low > 0 else GREEN
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3)
        axes.set_yticks(range(len(rows)), [row.arm for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(True, axis="x")
        axes.set(title=f"At {title}", xlabel=f"bits per byte less {report.reference} (right is worse)")

    return render(draw, label=f"Differences at {title}", height=1.1 + 0.3 * len(rows))


def _arms_curve(report: ComparisonReport, key: str) -> str:
    drawn = {arm: _series(rows, key, "validation_loss")[:2] for arm, rows in report.curves.items()}
    drawn = {arm: points for arm, points in drawn.items() if len(points[0])}
    if not drawn:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_prop_cycle(LINES)
        for arm, (x, y) in drawn.items():
            axes.plot(x, y, label=arm, linewidth=2.2 if arm == report.reference else 1.3)
        axes.set(title=f"Validation loss against {AXES[key]}", xlabel=AXES[key], ylabel="nats per token")
        floor, middle = min(y.min() for _, y in drawn.values()), max(np.median(y) for _, y in drawn.values())
        axes.set_ylim(floor - 0.1 * (middle - floor), middle + 1.5 * (middle - floor))
        figure.legend(loc="outside lower center", ncols=2, handlelength=2.2)

    height = 3.0 + 0.2 * math.ceil(len(drawn) / 2)
    return render(draw, label=f"Validation loss of every arm against {AXES[key]}", height=height)


def _loss_curve(metrics: Rows, key: str) -> str:
    x, loss, lost = _series(metrics, key, "loss")
    x_validation, validation, lost_validation = _series(metrics, key, "validation_loss")
    if not len(x) and not len(x_validation):
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x_drawn, loss_drawn = _thinned(x, loss)
        axes.plot(x_drawn, loss_drawn, color=BLUE, alpha=0.4, linewidth=0.9)
        axes.plot(x_drawn, _smoothed(loss_drawn), color=BLUE, label="training, smoothed")
        if len(validation):
            axes.plot(x_validation, validation, "o", color=ORANGE, markersize=4.5, label="validation")
        axes.set(title=f"Loss against {AXES[key]}", xlabel=AXES[key], ylabel="nats per token")
        if key != "seconds":  # "200m" would read as minutes
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(loc="upper right", handlelength=1.4)
        _note(axes, lost + lost_validation, "not finite")

    return render(draw, label=f"Loss against {AXES[key]}", width=4.2, height=2.9)


def _scatter(points: Sequence[tuple[float, Trial]], *, title: str, xlabel: str, total: int) -> str:
    """points: (x, trial) of the trials that have a value, out of `total`."""
    if not points:
        return ""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for look, (marker, color, face) in LOOKS.items():
            chosen = [(x, trial.bits_per_byte) for x, trial in points if look == _look(trial)]
            if chosen:
                x, y = zip(*chosen, strict=True)
                axes.plot(
                    x,
                    y,
                    marker,
                    color=color,
                    markerfacecolor=face,
                    markersize=7,
                    linestyle="none",
                    label=look,
                )
        axes.set(title=title, xlabel=xlabel, ylabel="held-out bits per byte")
        axes.margins(0.08, 0.12)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=all(isinstance(x, int) for x, _ in points)))
        figure.legend(loc="outside upper right", ncols=4, handletextpad=0.2, columnspacing=1.2)
        _note(axes, total - len(points), "trials without a value")

    return render(draw, label=f"{title}, held out", height=3.0)


def _bars(axes: Axes, names: list[str], amounts: list[float], texts: list[str], colors: list[str]) -> None:
    """Horizontal bars, the last name on top, each with its text at its end."""
    bars = axes.barh(names, amounts, color=colors, height=0.62)
    axes.bar_label(bars, texts, padding=4, fontsize=9, color=INK)
    axes.set_xlim(0, (max(amounts) or 1.0) * 1.55)
    axes.set_xticks([])
    axes.grid(False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def _series(metrics: Rows, x: str, y: str) -> tuple[np.ndarray, np.ndarray, int]:
    """The finite points of the lines that have `x` and `y`, and how many of these lines are not finite."""
    pairs = [(row[x], row[y]) for row in metrics if x in row and y in row]
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    finite = np.isfinite(points).all(axis=1)
    return points[finite, 0], points[finite, 1], int((~finite).sum())


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points, each the mean of neighbours."""
    if len(x) <= POINTS:
        return x, y
    starts = np.linspace(0, len(x), POINTS, endpoint=False).astype(int)
    sizes = np.diff(starts, append=len(x))
    return np.add.reduceat(x, starts) / sizes, np.add.reduceat(y, starts) / sizes


def _smoothed(y: np.ndarray) -> np.ndarray:
    """Centred moving mean over a twentieth of the curve; shorter at both ends."""
    if not len(y):
        return y
    window = np.ones(max(1, len(y) // 20) | 1)
    return np.convolve(y, window, "same") / np.convolve(np.ones_like(y), window, "same")


def _note(axes: Axes, missing: int, what: str) -> None:
    """Under the axis: how many values were not drawn."""
    if missing:
        axes.set_xlabel(f"{axes.get_xlabel()}\n({what}: {missing})".strip())


def _look(trial: Trial) -> str:
    return "baseline" if trial.baseline else trial.status


def _finite(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
