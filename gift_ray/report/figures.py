"""All figures of the page by name.

A trace's `meta` says what it shows ({"arm": ..., "metric": ...}); the page's script shows the traces whose
meta agrees with its controls.
"""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from gift_ray.report.contents import Study
from gift_ray.report.curve_plots import attack_curves
from gift_ray.report.detections import nudity
from gift_ray.report.heat_map import heat_map
from gift_ray.report.label_shares import label_bars
from gift_ray.report.parallel_coordinates import parallel
from gift_ray.report.plane import plane
from gift_ray.report.standings import standings
from gift_ray.report.training_log import training


def all_figures(study: Study) -> Mapping[str, go.Figure]:
    """Name on the page -> figure; those without data are left out."""
    drawn = {
        "standings": standings(study),
        "curves": attack_curves(study),
        "plane": plane(study),
        "parallel": parallel(study),
        "cross": heat_map(study),
        "training": training(study),
        "labels": label_bars(study),
        "nudity": nudity(study),
    }
    return {name: figure for name, figure in drawn.items() if figure.data}
