"""The figures of active learning: an ActiveReport in, inline SVG out.

    arms ─► differences, cost_by_round        curves ─► loss_by_cost        pools ─► pools

A figure without data is the empty string.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bkray.reporting.formats import SUPERSCRIPT
from bkray.reporting.records import ActiveArm, ActiveReport
from bkray.reporting.style import BLUE, GREEN, GREY, INK, ORANGE, render

_COLORS = (BLUE, ORANGE, GREEN)  # of the loop, the random control, all windows


def differences(report: ActiveReport) -> str:
    """Every arm's bits per byte less the reference's with its interval, and each seed's own difference."""
    reference = next(arm for arm in report.arms if arm.name == report.reference)
    arms = [arm for arm in report.arms if arm.difference][::-1]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0.0, color=INK, linewidth=1.0)
        for place, arm in enumerate(arms):
            mean, low, high = arm.difference or (0.0, 0.0, 0.0)
            color = GREY if low <= 0 <= high else ORANGE if low > 0 else GREEN
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=4)
            each = np.subtract(arm.by_seed, reference.by_seed)
            axes.plot(each, np.full(len(each), place - 0.22), "|", color=INK, markersize=7)
        axes.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(True, axis="x")
        axes.grid(False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_title("At equal total cost")
        axes.set_xlabel(f"bits per byte less {report.reference} (right is worse)")

    return render(draw, label="Differences at equal total cost", height=1.3 + 0.45 * len(arms))


def loss_by_cost(report: ActiveReport) -> str:
    """Validation loss against the FLOPs of training and scoring: a line an arm, a dot where a round ends."""
    looked = {
        arm: [row for row in rows if row.get("validation_loss") is not None]
        for arm, rows in report.curves.items()
    }
    curves = {arm: rows for arm, rows in looked.items() if rows}
    if not curves:
        return ""
    power = _power(max(row["flops"] for rows in curves.values() for row in rows))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        floors, middles = [], []
        for (arm, rows), color in zip(curves.items(), _COLORS, strict=False):
            x = np.array([row["flops"] for row in rows], dtype=np.float64) / 10.0**power
            y = np.array([row["validation_loss"] for row in rows], dtype=np.float64)
            axes.plot(x, y, color=color, label=arm, linewidth=1.5)
            steps = np.cumsum([each.steps for own in report.arms if own.name == arm for each in own.rounds])
            ends = np.isin([row["step"] for row in rows], steps)
            axes.plot(x[ends], y[ends], "o", color=color, markersize=4.5)
            floors.append(y.min())
            middles.append(np.median(y))
        spread = max(middles) - min(floors)
        axes.set_ylim(min(floors) - 0.2 * spread, max(middles) + 2.0 * spread)
        axes.set(
            title="Validation loss against cost",
            xlabel=f"10{str(power).translate(SUPERSCRIPT)} FLOPs of training and scoring",
            ylabel="nats per token",
        )
        axes.legend(loc="upper right", handlelength=1.4)

    return render(draw, label="Validation loss of every arm against its cost", height=3.2)


def cost_by_round(report: ActiveReport) -> str:
    """FLOPs of training and scoring by round: an <svg> an arm that has rounds, all to one scale."""
    arms = [arm for arm in report.arms if len(arm.rounds) > 1]
    if not arms:
        return ""
    most = max(each.training_flops + each.selecting_flops for arm in arms for each in arm.rounds)
    return "".join(_costs(arm, most) for arm in arms)


def _costs(arm: ActiveArm, most: float) -> str:
    power = _power(most)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        training = np.array([each.training_flops for each in arm.rounds]) / 10.0**power
        selecting = np.array([each.selecting_flops for each in arm.rounds]) / 10.0**power
        places = range(len(arm.rounds))
        axes.bar(places, selecting, color=ORANGE, width=0.62, label="scoring, before it")
        axes.bar(places, training, bottom=selecting, color=BLUE, width=0.62, label="training")
        axes.set(title=f"Cost by round: {arm.name}", xlabel="round", ylim=(0, 1.3 * most / 10.0**power))
        axes.set_ylabel(f"10{str(power).translate(SUPERSCRIPT)} FLOPs")
        axes.set_xticks(list(places))
        axes.legend(loc="upper left", handlelength=1.0)

    return render(draw, label=f"Cost of {arm.name} by round")


def pools(report: ActiveReport) -> str:
    """Histogram of the uncertainty of each round's pool, with the part that was added: an <svg> a round."""
    return "".join(_pool(number, *values, report.kind) for number, values in enumerate(report.pools, start=1))


def _pool(number: int, pool: np.ndarray, added: np.ndarray, kind: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        counts, edges = np.histogram(pool, bins=40)
        axes.stairs(counts, edges, fill=True, color=GREY, label=f"scored: {len(pool):,}")
        kept, _ = np.histogram(added, edges)
        axes.stairs(kept, edges, fill=True, color=BLUE, label=f"added: {len(added):,}")
        axes.set(title=f"Pool of round {number}", xlabel=kind, ylabel="windows", ylim=(0, 1.4 * counts.max()))
        axes.legend(loc="upper left", handlelength=1.0)

    return render(draw, label=f"Uncertainty of the pool of round {number}", width=4.2, height=2.6)


def _power(flops: float) -> int:
    return int(np.log10(flops or 1.0))  # of ten, for the axis
