"""The look of every figure, and the way from a drawing to SVG that can stand inside an HTML page.

Colours: Okabe and Ito (2008), told apart under the common colour-vision deficiencies. Text stays text, so
that the page's own font is used and a reader can select it. The same drawing gives the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

INK, MUTED, RULE = "#1b1f24", "#5b6570", "#dfe3e8"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#007a5a", "#a9b1ba"
LINES = cycler(linestyle=["-", "--", ":"]) * cycler(
    color=[BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", MUTED]
)
"""Of many lines in one figure, no two alike."""

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9.5,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
}


def render(draw: Callable[[Figure], None], *, label: str, height: float = 2.8, width: float = 4.6) -> str:
    """What `draw` puts on a figure of that many inches, as one <svg> element as wide as its surroundings.

    `label` is the text alternative; it also keeps the ids of figures on one page apart.
    """
    with matplotlib.style.context(["default", {**STYLE, "svg.hashsalt": label}]):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
    return _inline(buffer.getvalue(), label)


def _inline(svg: str, label: str) -> str:
    """Without prolog, metadata (it holds the date) and the ids of groups, which repeat among figures."""
    body = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', body)
    if view_box is None:
        raise ValueError("matplotlib wrote an SVG without a viewBox")
    body = re.sub(r"<metadata>.*?</metadata>\s*", "", body[body.index(">") + 1 :], flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'{view_box.group()} width="100%" role="img" aria-label="{html.escape(label)}">{body.strip()}'
    )
