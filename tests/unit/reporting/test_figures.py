"""The figures: well-formed, deterministic, and true to their data."""

import functools
import math
import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from bkray.reporting import figures
from bkray.reporting.records import ComparisonReport, Trial

SVG = "{http://www.w3.org/2000/svg}"
METRICS = [
    {
        "step": step,
        "tokens": 100 * step,
        "seconds": step / 2,
        "loss": 5.0 / step,
        "share": min(1.0, 0.3 + step / 20),
        "tokens_per_second": 1000.0 + step,
        "time_forward": 0.25,
        "time_backward": 0.5,
        **({"time_validation": 0.2, "time_other": 0.05} if step % 5 == 0 else {"time_other": 0.25}),
        **({"validation_loss": 5.1 / step} if step % 5 == 0 else {}),
    }
    for step in range(1, 31)
]
LEDGER = {
    "training": {"flops": 3e12, "tokens": 100, "seconds": 75.0},
    "scoring": {"flops": 1e12, "tokens": 50, "seconds": 25.0},
}
TRIALS = [
    Trial("off", {"lr": 1}, "finished", 1.5, 2e15, 10.0, baseline=True),
    Trial("a", {"lr": 2}, "finished", 1.4, 1e15, 10.0),
    Trial("b", {"lr": 3}, "stopped early", 1.7, 5e14, 4.0),
    Trial("c", {"lr": 4}, "failed", error="diverged"),
]
DRAWN = {
    "loss": lambda: figures.loss_curves(METRICS),
    "throughput": lambda: figures.throughput(METRICS),
    "phases": lambda: figures.time_by_phase(METRICS),
    "share": lambda: figures.share_of_data(METRICS),
    "difficulty": lambda: figures.difficulty_histogram(np.linspace(0, 1, 50) ** 2, "rarity"),
    "ledger": lambda: figures.ledger_bars(LEDGER),
    "comparison": lambda: figures.comparison_bars({"this model": 1.4, "3-gram": 2.0}),
    "sweep": lambda: figures.sweep_scatter(TRIALS),
}


@functools.cache
def drawn(name):
    return DRAWN[name]()


def elements(svg):
    """Every <svg> of a figure, parsed strictly."""
    return list(ElementTree.fromstring(f"<figure>{svg}</figure>"))


def texts(svg):
    return [text.text for element in elements(svg) for text in element.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", DRAWN)
def test_svg_is_well_formed_scales_and_says_what_it_shows(name):
    for element in elements(drawn(name)):
        assert element.tag == f"{SVG}svg"
        assert element.get("width") == "100%"
        assert element.get("height") is None
        assert re.fullmatch(r"0 0 [\d.]+ [\d.]+", element.get("viewBox"))
        assert element.get("role") == "img"
        assert element.get("aria-label")
        assert list(element.iter(f"{SVG}text"))


@pytest.mark.parametrize("name", DRAWN)
def test_same_input_same_bytes_whatever_the_surroundings(name):
    first = drawn(name)
    with matplotlib.rc_context({"font.size": 30, "xtick.major.size": 20, "svg.fonttype": "path"}):
        assert DRAWN[name]() == first
    assert not re.search(r"\d{4}-\d{2}-\d{2}", first)


def test_ids_are_unique_across_the_figures_of_a_page():
    ids = re.findall(r'\bid="([^"]+)"', "".join(map(drawn, DRAWN)))
    assert len(ids) == len(set(ids))


def test_loss_has_three_panels_with_all_validation_points():
    panels = elements(drawn("loss"))
    assert [panel.get("aria-label") for panel in panels] == [
        "Loss against tokens seen", "Loss against optimizer steps", "Loss against seconds",
    ]  # fmt: skip
    without = [{k: v for k, v in row.items() if k != "validation_loss"} for row in METRICS]
    bare_svg = figures.loss_curves(without)
    for panel, bare in zip(panels, elements(bare_svg), strict=True):
        points = [len(list(p.iter(f"{SVG}use"))) for p in (panel, bare)]
        assert points[0] - points[1] == 6 + 1  # six points and one in the legend
    assert "validation" not in texts(bare_svg)


def test_losses_that_are_not_finite_are_counted_and_not_drawn():
    rows = [*METRICS, {**METRICS[-1], "loss": None}, {**METRICS[-1], "loss": math.nan}]
    svg = figures.loss_curves(rows)
    assert texts(svg).count("(not finite: 2)") == 3
    assert "nan" not in svg.lower()
    assert not any("finite" in text for text in texts(drawn("loss")))


def test_long_logs_keep_their_mean_and_stay_small():
    x, y = np.arange(100_003.0), np.random.default_rng(0).normal(size=100_003)
    x_thin, y_thin = figures._thinned(x, y)
    assert len(x_thin) == figures.POINTS
    assert (np.diff(x_thin) > 0).all()
    assert y_thin.mean() == pytest.approx(y.mean(), abs=1e-3)
    rows = [{"step": int(n), "loss": float(v)} for n, v in zip(x, y, strict=True)]
    assert len(figures.loss_curves(rows)) < 100_000


def test_smoothing_keeps_a_constant_and_shrinks_noise():
    np.testing.assert_allclose(figures._smoothed(np.full(100, 2.5)), 2.5)
    noise = np.random.default_rng(0).normal(size=400)
    assert figures._smoothed(noise).std() < 0.4 * noise.std()


def test_histogram_shows_the_median_and_counts_what_is_not_finite():
    shown = texts(figures.difficulty_histogram([1.0, 2.0, 4.0, math.nan], "$rarity$ <b>"))
    assert "median 2" in shown
    assert "Difficulty of the windows: $rarity$ <b>" in shown
    assert "(not finite: 1)" in shown


def test_ledger_bars_carry_amounts_and_shares():
    shown = texts(drawn("ledger"))
    assert "3.00 × 10¹² (75.0 %)" in [re.sub(" +", " ", text) for text in shown]
    assert "1 min 15 s (75.0 %)" in [re.sub(" +", " ", text) for text in shown]
    assert "scoring" in shown


def test_ledger_leaves_out_what_took_none():
    table = {"training": {"flops": 2e9, "seconds": 3.0}, "startup": {"flops": 0.0, "seconds": 5.0}}
    flops, seconds = elements(figures.ledger_bars(table))
    named = [
        [text.text for text in panel.iter(f"{SVG}text") if text.text in table] for panel in (flops, seconds)
    ]
    assert named == [["training"], ["training", "startup"]]  # from the bottom up: the most on top


def test_phases_are_means_over_the_lines_largest_on_top():
    shown = texts(drawn("phases"))
    names = [text for text in shown if text in {"forward", "backward", "validation", "other"}]
    assert names == ["validation", "other", "forward", "backward"]
    assert {"50.0 %", "25.0 %", "21.0 %", "4.0 %"} == {text for text in shown if text.endswith(" %")}


def test_comparison_leaves_out_what_has_no_value():
    shown = texts(figures.comparison_bars({"this model": None, "3-gram": 2.0}))
    assert "this model" not in shown
    assert {"3-gram", "2.000", "(not finite: 1)"} <= set(shown)


def test_sweep_marks_the_baseline_and_counts_failures():
    cost, order = elements(drawn("sweep"))
    for panel in (cost, order):
        shown = [text.text for text in panel.iter(f"{SVG}text")]
        assert {"baseline", "finished", "stopped early", "(trials without a value: 1)"} <= set(shown)
        assert "failed" not in shown
    assert "10¹⁵ FLOPs" in [text.text for text in cost.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    "svg",
    [
        figures.loss_curves([]),
        figures.loss_curves([{"step": 1, "loss": None}]),
        figures.share_of_data([{"step": 1, "loss": 2.0}]),
        figures.throughput([{"step": 1, "loss": 2.0}]),
        figures.time_by_phase([{"step": 1, "loss": 2.0}]),
        figures.difficulty_histogram([], "rarity"),
        figures.ledger_bars({}),
        figures.ledger_bars({"cache": {"flops": 0.0, "seconds": 0.0}}),
        figures.comparison_bars({"this model": math.nan}),
        figures.sweep_scatter([TRIALS[3]]),
    ],
)
def test_without_data_there_is_no_figure(svg):
    assert svg == ""


def test_many_arms_are_told_apart_and_named_below_their_curves():
    curves = {
        f"arm {number}": [{"step": 1, "validation_loss": 5.0}, {"step": 2, "validation_loss": 4.0 - number}]
        for number in range(16)
    }
    drawn = figures.comparison_curves(ComparisonReport("many", "arm 0", [], [], curves))
    root = ElementTree.fromstring(drawn)
    styles = [path.get("style", "") for path in root.iter(f"{SVG}path") if path.get("clip-path")]
    looks = {
        re.sub(r"stroke-width: [^;]*", "", style) for style in styles if "stroke-width: 0.8" not in style
    }
    assert len(looks) == 16
    height = {text.text: float(text.get("y", 0)) for text in root.iter(f"{SVG}text")}
    assert min(height[arm] for arm in curves) > height["optimizer steps"]
