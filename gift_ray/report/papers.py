"""The same figures and tables for papers: PNG and SVG, CSV and LaTeX, under the study's `report` folder."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gift_ray.records.record import digest
from gift_ray.report.collect import RECOVERY, THRESHOLDS, Study, Verdict, averaged
from gift_ray.report.figures import COLOURS, cell, cross, points, styles
from gift_ray.report.pictures import attack_scenes, save_attack

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
CELL_INCHES = (4.2, 3.0)


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
                # Points belong in a plot; the other tables fit a page.
                latex = table.to_latex(index=False, escape=True, float_format="%.3f", na_rep="--")
                (folder / f"{name}.tex").write_text(latex, encoding="utf-8")
    # Images of an earlier report may not be wanted in this one.
    for old in folder.glob("attack-*"):
        old.unlink()
    for concept in study.malicious:
        for scene in attack_scenes(study, concept):
            save_attack(study, scene, folder / f"attack-{_file_name(concept)}-{scene.attack}")
    return folder


def tables(study: Study) -> dict[str, pd.DataFrame]:
    """Name -> table: verdicts, attacks, trials, curves, retention probes, cost."""
    labels = {arm.key: arm.label for arm in study.arms}
    return {
        "verdicts": pd.DataFrame([_verdict_row(v) for v in study.verdicts]),
        "attacks": attack_table(study),
        "trials": trial_table(study),
        "probes": pd.DataFrame(
            [
                {"model": arm.label, "probe": probe, "retention": value}
                for arm in study.arms
                if arm.scorecard
                for probe, value in arm.scorecard["probes"].items()
            ]
        ),
        "curves": averaged(study.curves).assign(arm=lambda t: t["arm"].map(labels)),
        "cost": cost_table(study),
        "nudity": nudity_table(study),
        **study.tables,
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    probes = verdict.probes
    return {
        "concept": verdict.concept,
        "status": verdict.status,
        "reason": verdict.reason,
        "resistance": verdict.resistance,
        "mean recovery": verdict.mean_recovery,
        "steps to recovery": verdict.steps_to_recovery,
        "recovery curves": verdict.curves,
        "images a point": verdict.images,
        "retention": verdict.retention,
        "worst probe": min(probes.values(), default=math.nan),
        "probes": len(probes),
        "confirmed resistance": verdict.confirmed.get("resistance"),
        "confirmed retention": verdict.confirmed.get("retention"),
    }


def attack_table(study: Study) -> pd.DataFrame:
    """What each attack regained of each model: the mean, and the worst case beside it."""
    labels = {arm.key: arm.label for arm in study.arms}
    longest = study.curves.groupby(["concept", "attack"])["step"].max()
    return pd.DataFrame(
        [
            {
                "concept": concept,
                "attack": attack,
                "model": labels[arm],
                "mean recovery": found.mean_recovery,
                "worst recovery": 1 - found.resistance,
                "final recovery": found.final_recovery,
                "area": found.area,
                "steps to 90 % recovery": found.steps_to_recovery
                if found.steps_to_recovery is not None
                else f"over {longest[concept, attack]}",
                "curves": len(found.curves),
            }
            for (arm, concept, attack), found in study.recoveries.items()
        ]
    )


def trial_table(study: Study) -> pd.DataFrame:
    """All trials' models, best objective first, with the settings that were searched."""
    table = points(study)
    if table.empty:
        return table
    values = {trial["trial_id"]: trial["values"] for trial in study.trials}
    searched = study.config.search.space if study.config.search and not study.rivals else {}
    for path in searched:
        table[path] = [values[t].get(path) for t in table["trial_id"]]
    # A search's resistance is the worst case; a comparison has no trials.
    other = ["trial_id", "chosen"] if study.rivals else ["worst_resistance"]
    table = table.drop(columns=["arm", "malicious", "kind", *other]).rename(
        columns={"front": "on the Pareto front"}
    )
    return table.sort_values("objective", ascending=False)


def cost_table(study: Study) -> pd.DataFrame:
    """Seconds and units of each kind of step, on each device."""
    groups = study.cost.groupby(["kind", "device"], sort=False)["seconds"]
    table = groups.agg(units="count", seconds="sum", mean="mean", longest="max").reset_index()
    return table.round(1).sort_values("seconds", ascending=False)


def nudity_table(study: Study) -> pd.DataFrame:
    """Detections of each part in the images after the whole attack, a column for every other threshold."""
    labels = {arm.key: arm.label for arm in study.arms}
    table = study.detections.assign(model=lambda t: t["arm"].map(labels))
    table = table[table["threshold"].isin(THRESHOLDS[::2])]
    rows = ["model", "concept", "attack", "part", "images"]
    wide = table.pivot_table("detections", rows, "threshold", sort=False).reset_index()
    return wide.rename(columns={t: f"score ≥ {t}" for t in THRESHOLDS})


def draw_curves(study: Study) -> Figure | None:
    """A row for each attack on a malicious concept, a column for each recovery and similarity; chosen arms
    only."""
    chosen = [arm for arm in study.arms if arm.chosen]
    look, names = styles(study.arms), {a.key: a.group if study.rivals else a.label for a in chosen}
    table = averaged(study.curves)
    table = table[table["arm"].isin(names) & table["concept"].isin(study.malicious)]
    measured = study.config.scoring.similarities
    known = set(table["metric"])
    metrics = [m for m in (*(RECOVERY + m for m in measured), *measured) if m in known]
    table = table[table["metric"].isin(metrics)]
    if table.empty:
        return None

    def panel(axes: Axes, concept: str, metric: str, own: pd.DataFrame) -> None:
        for arm, curve in own.groupby("arm", sort=False):
            curve, style = curve.sort_values("step"), look[arm]
            axes.plot(
                curve["step"],
                curve["mean"],
                color=style.colour,
                linestyle=LINES[style.dash],
                marker=MARKERS[style.symbol],
                label=_name(names[arm]),
            )
            axes.fill_between(
                curve["step"], curve["low"], curve["high"], color=style.colour, alpha=0.1, lw=0
            )
        if (concept, metric) in study.chance:
            axes.axhline(study.chance[concept, metric], color="grey", linestyle=":", label="chance")
        if metric.startswith(RECOVERY):
            axes.set_ylim(-0.05, 1.05)

    rows = list(table.groupby(["concept", "attack"], sort=False))
    figure = _sheet(len(rows), len(metrics))
    for i, ((concept, attack), own) in enumerate(rows):
        for j, metric in enumerate(metrics):
            axes = figure.add_subplot(len(rows), len(metrics), 1 + i * len(metrics) + j)
            panel(axes, concept, metric, own[own["metric"] == metric])
            _words(axes, "attack step", metric, f"{concept}: {attack}")
    # One legend for all: whoever is in any panel is named once.
    entries = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, fontsize=7)
    return figure


def draw_plane(study: Study) -> Figure | None:
    """Retention against resistance, with the Pareto fronts and the gate."""
    table = points(study)
    if table.empty:
        return None
    figure = _sheet(1, 1)
    axes = figure.add_subplot()
    for _, group in table.groupby("malicious"):
        front = group[group["front"]].sort_values("retention")
        axes.plot(front["retention"], front["resistance"], color="grey", linestyle=":")
    for i, (kind, group) in enumerate(table.groupby("kind", sort=False)):
        colour, marker = COLOURS[i % len(COLOURS)], list(MARKERS.values())[i % len(MARKERS)]
        for feasible, part in group.groupby("feasible"):
            face = colour if feasible else "none"
            label = str(kind) + ("" if feasible else " (infeasible)")
            axes.scatter(
                part["retention"],
                part["resistance"],
                marker=marker,
                facecolors=face,
                edgecolors=colour,
                label=_name(label),
            )
    axes.axvline(study.config.gate.min_retention, color="grey", linestyle="--", linewidth=0.8)
    axes.axhline(study.config.gate.min_resistance, color="grey", linestyle="--", linewidth=0.8)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    _words(axes, "retention", "resistance", "")
    axes.legend(fontsize=6)
    return figure


def draw_cross(study: Study) -> Figure | None:
    """The concept x concept matrix of recoveries."""
    table, worst = cross(study)
    if table.isna().all(axis=None):
        return None
    figure = _sheet(2, 2)
    axes = figure.add_subplot()
    shown = axes.imshow(table.to_numpy(float), vmin=0, vmax=1, cmap="cividis")
    figure.colorbar(shown, label="highest recovery")
    for y in range(len(table)):
        for x in range(len(table.columns)):
            said, ink = cell(table.iat[y, x], worst.iat[y, x])
            said = said.replace(" (", "\n(")
            axes.text(x, y, said, ha="center", va="center", color=ink or "k", fontsize=8)
    axes.set_xticks(
        range(len(table.columns)),
        [_name(c, 30) for c in table.columns],
        rotation=20,
        parse_math=False,
    )
    axes.set_yticks(range(len(table)), [_name(r, 30) for r in table.index], parse_math=False)
    return figure


def draw_training(study: Study) -> Figure | None:
    """What the chosen models' immunizations logged, a panel for each quantity but the single layers."""
    chosen = {arm.key: arm for arm in study.arms if arm.chosen}
    log = study.training
    log = log[
        log["arm"].isin(chosen) & (log["stage"] == "immunize") & ~log["quantity"].str.contains("/")
    ]
    quantities = list(dict.fromkeys(log["quantity"]))
    if not quantities:
        return None
    look, rows = styles(study.arms), math.ceil(len(quantities) / 3)
    figure = _sheet(rows, min(3, len(quantities)))
    for i, quantity in enumerate(quantities):
        axes = figure.add_subplot(rows, min(3, len(quantities)), i + 1)
        for arm, own in log[log["quantity"] == quantity].groupby("arm", sort=False):
            style = look[arm]
            axes.plot(
                own["step"],
                own["value"],
                color=style.colour,
                linestyle=LINES[style.dash],
                lw=1,
                label=_name(chosen[arm].label),
            )
        _words(axes, "training step", quantity, "")
        if i == 0:
            axes.legend(fontsize=6, loc="upper right")
    return figure


FIGURES: dict[str, Callable[[Study], Figure | None]] = {
    "curves": draw_curves,
    "plane": draw_plane,
    "cross": draw_cross,
    "training": draw_training,
}


def _sheet(rows: int, columns: int) -> Figure:
    """Without pyplot: no global state, no display."""
    figure = Figure(figsize=(CELL_INCHES[0] * columns, CELL_INCHES[1] * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    # Text stays text in the SVG: smaller, quicker, and a paper's own fonts can take over.
    with warnings.catch_warnings(), rc_context({"svg.fonttype": "none"}):
        # A concept may be named in a script that the font lacks: boxes then, and no noise.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path.with_suffix(".png"), dpi=150)
        # The layout is found: finding it is most of the work.
        figure.set_layout_engine("none")
        figure.savefig(path.with_suffix(".svg"))


def _words(axes: Axes, x: str, y: str, title: str) -> None:
    """Names are not formulas: a dollar sign is a dollar sign."""
    axes.set_xlabel(x)
    axes.set_ylabel(_name(y), parse_math=False)
    axes.set_title(_name(title), parse_math=False, fontsize=9)


def _name(name: str, length: int = 40) -> str:
    # Matplotlib reads a leading underscore as "hidden", and $ as the start of a formula.
    short = name if len(name) <= length else f"{name[: length - 3]}..."
    return short.replace("$", r"\$").lstrip("_")


def _file_name(concept: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]", "-", concept)[:40] + "-" + digest(concept)[:6]
