"""The same figures and tables for papers: PNG and SVG, CSV and LaTeX, in the study's `report` folder."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from gift_ray.records.record import digest
from gift_ray.report.contents import Study
from gift_ray.report.curve_plots import draw_curves
from gift_ray.report.heat_map import draw_cross
from gift_ray.report.pictures import attack_scenes, save_attack
from gift_ray.report.plane import draw_plane
from gift_ray.report.tables import tables
from gift_ray.report.training_log import draw_training

FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "curves": lambda study: draw_curves(study, study.malicious),
    "curves-safe": lambda study: draw_curves(study, study.safe),
    "plane": draw_plane,
    "cross": draw_cross,
    "training": draw_training,
}


def write_papers(study: Study) -> Path:
    """Write figures, tables and image grids; returns their folder. What has no data is left out."""
    folder = study.folder / "report"
    folder.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw(study)
        if figure is not None:
            _save(figure, folder / name)
    for name, table in tables(study).items():
        if len(table):
            table.to_csv(folder / f"{name}.csv", index=False)
            if name != "curves":
                # The points of curves are too many for a printed table.
                latex = table.to_latex(index=False, escape=True, float_format="%.3f", na_rep="--")
                (folder / f"{name}.tex").write_text(latex, encoding="utf-8")
    # An earlier report may have shown images that this one is to leave out.
    for old in folder.glob("attack-*"):
        old.unlink()
    for concept in study.malicious:
        for scene in attack_scenes(study, concept):
            save_attack(study, scene, folder / f"attack-{_file_name(concept)}-{scene.attack}")
    return folder


def _save(figure: Figure, path: Path) -> None:
    # Text stays text in the SVG: that is smaller and quicker, and a paper can set it in its own font.
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none"}):
        # A concept may be named in a script that the font lacks; it then shows boxes, and needs no warning.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path.with_suffix(".png"), dpi=150)
        # The layout was found for the PNG, which is most of the work: the SVG keeps it.
        figure.set_layout_engine("none")
        figure.savefig(path.with_suffix(".svg"))


def _file_name(concept: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", concept)[:40] + "-" + digest(concept)[:6]
