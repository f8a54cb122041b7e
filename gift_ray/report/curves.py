"""Attack curves as figures for papers, in the manner of the paper's Figures 3-7."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from gift_ray.report.summary import slug

# Okabe and Ito's palette: told apart by every eye, and in grey by the markers.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = "osD^vP*"


def draw_curves(points: pd.DataFrame, metrics: Sequence[str], folder: Path) -> list[Path]:
    """One PNG and SVG for each concept and attack: a panel a metric, a line an arm, the band from the
    lowest to the highest seed. Returns the PNGs."""
    drawn = []
    for (concept, attack), group in points.groupby(["concept", "attack"], sort=False):
        figure = Figure(figsize=(4.2 * len(metrics), 3.4), layout="constrained")
        for panel, metric in zip(
            figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
        ):
            for place, (arm, line) in enumerate(
                group[group["metric"] == metric].groupby("arm", sort=False)
            ):
                spread = line.groupby("step")["mean"].agg(["mean", "min", "max"])
                colour = COLOURS[place % len(COLOURS)]
                panel.plot(spread.index, spread["mean"], color=colour, label=str(arm),
                           marker=MARKERS[place % len(MARKERS)], markersize=4)  # fmt: skip
                panel.fill_between(
                    spread.index, spread["min"], spread["max"], color=colour, alpha=0.15
                )
            panel.set(xlabel="attack step", ylabel=metric)
        figure.suptitle(f"{concept}: {attack}")
        figure.axes[0].legend(fontsize=7)
        for kind in ("svg", "png"):
            path = folder / f"{slug(str(concept))}-{slug(str(attack))}.{kind}"
            with matplotlib.rc_context({"svg.hashsalt": "gift-ray"}):
                figure.savefig(path, dpi=150)
        drawn.append(path)
    return drawn
