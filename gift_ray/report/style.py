"""How models look in every figure, on the page (plotly) and in the files for papers (matplotlib).

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; the dashes of the lines and
the symbols of the markers differ with the colours.
"""

from __future__ import annotations

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gift_ray.report.arms import UNDEFENDED, ReportArm

UNDEFENDED_COLOUR = "#D55E00"
CHANCE_COLOUR = "#8A8A8A"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
# The same in matplotlib's words.
LINES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "star": "*",
    "x": "X",
}
PANEL_INCHES = (4.2, 3.0)


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure: a colour, and plotly's names of a dash and a symbol."""

    colour: str
    dash: str
    symbol: str


def styles(arms: Sequence[ReportArm]) -> dict[str, Style]:
    """Key of an arm -> the look of its group; two groups look alike only once all combinations are used."""
    looks = itertools.cycle(
        Style(colour, DASHES[(i + j) % len(DASHES)], SYMBOLS[(i + j) % len(SYMBOLS)])
        for j in range(len(DASHES))
        for i, colour in enumerate(COLOURS)
    )
    groups = dict.fromkeys(arm.group for arm in arms if arm.key != UNDEFENDED)
    found = dict(zip(groups, looks, strict=False))
    found[UNDEFENDED] = Style(UNDEFENDED_COLOUR, "longdash", "x")
    return {arm.key: found[arm.group] for arm in arms}


def text(name: str, length: int = 48) -> str:
    """A name for plotly, which reads markup: shortened in the middle and escaped."""
    short = name if len(name) <= length else f"{name[: length - 12]} … {name[-9:]}"
    return html.escape(short)


def error_bars(middle: pd.Series, low: pd.Series, high: pd.Series) -> dict[str, Any]:
    """Plotly's error bars from `low` to `high`; of no length where the interval is not known."""
    return {
        "symmetric": False,
        "array": list((high - middle).fillna(0)),
        "arrayminus": list((middle - low).fillna(0)),
    }


def faint(colour: str) -> str:
    """The colour of a band around a line: `#rrggbb`, nearly transparent."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.13)"


def sheet(rows: int, columns: int) -> Figure:
    """A matplotlib figure of this many panels, made without pyplot, so that it needs no display."""
    figure = Figure(
        figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained"
    )
    FigureCanvasAgg(figure)
    return figure


def name_axes(axes: Axes, x: str, y: str, title: str) -> None:
    """Label a panel's axes and give it a title; a dollar sign in a name does not start a formula."""
    axes.set_xlabel(x)
    axes.set_ylabel(plain(y), parse_math=False)
    axes.set_title(plain(title), parse_math=False, fontsize=9)


def plain(name: str, length: int = 40) -> str:
    """A name for matplotlib: shortened, without what it would read as markup."""
    # Matplotlib reads a leading underscore as "hidden", and $ as the start of a formula.
    short = name if len(name) <= length else f"{name[: length - 3]}..."
    return short.replace("$", r"\$").lstrip("_")
