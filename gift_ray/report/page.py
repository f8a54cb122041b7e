"""One offline HTML page per study: no network, one file, everything inside."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.io
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from gift_ray import THREAT_MODEL
from gift_ray.records.whole import written_whole
from gift_ray.report import figures, papers, pictures
from gift_ray.report.collect import collect
from gift_ray.report.contents import Study
from gift_ray.report.curves import RECOVERY
from gift_ray.report.detections import EXPLICIT
from gift_ray.report.finished_steps import Problem
from gift_ray.report.tables import tables
from gift_ray.report.training_log import family

logger = logging.getLogger(__name__)

PAGE = "report.html"
ASSETS = files("gift_ray.report") / "assets"
PROBLEMS_SHOWN = 60


def write_report(folder: Path, images: str | None = None) -> Path:
    """Write `report.html` and the `report` folder of a study; returns the page's path.

    Args:
        folder: of the study, of its benchmark or of an attacked checkpoint.
        images: `all`, `safe_only` or `none`; None: as the study says.

    Raises:
        ConfigError: no study in the folder.
    """
    logger.info("Reading the records of %s for its report.", folder)
    study = collect(folder, images)
    papers.write_papers(study)
    page = folder / PAGE
    with written_whole(page) as private:
        private.write_text(render(study), encoding="utf-8", newline="\n")
    return page


def render(study: Study) -> str:
    """The page's HTML."""
    strips = pictures.strips(study)
    encoded, trouble = pictures.encode(strips)
    drawn = figures.all_figures(study)
    problems = [*study.problems, *trouble]
    scripts = {"plotly": get_plotlyjs(), "page": _asset("page.js")}
    scripts = {name: text.replace("\r\n", "\n") for name, text in scripts.items()}
    environment = Environment(
        loader=PackageLoader("gift_ray.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    # Keys keep their order: the undefended model, the chosen ones, the others.
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "allow_nan": False}
    return environment.get_template("page.html").render(
        study=study,
        groups=_groups(study),
        choices=_choices(study),
        figures=drawn,
        scenes=_scenes(strips),
        tables=tables(study),
        runs={trial["trial_id"]: trial["run_link"] for trial in study.trials},
        problems=problems[:PROBLEMS_SHOWN],
        more=max(0, len(problems) - PROBLEMS_SHOWN),
        progress=_progress(study, problems),
        threat_model=THREAT_MODEL,
        data=_data(study, drawn, strips, encoded),
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in scripts.values()),
        css=Markup(_asset("page.css")),
    )


def _data(
    study: Study, drawn: Any, strips: list[pictures.Strip], encoded: list[list[str]]
) -> dict[str, Any]:
    """The data for the page's script."""
    rows: dict[str, list[Any]] = {}
    for strip, uris in zip(strips, encoded, strict=True):
        rows.setdefault(strip.scene.label, []).append([strip.arm, strip.step, uris])
    arms = {arm.key: {"label": arm.label, "group": arm.group} for arm in study.arms}
    trials = {
        trial["trial_id"]: {
            "title": f"Trial {number} ({trial['trial_id']})",
            "link": trial["run_link"],
            "values": {name: _number(value) for name, value in trial["values"].items()},
        }
        for number, trial in enumerate(study.trials, 1)
    }
    return {
        "figures": {name: json.loads(plotly.io.to_json(f)) for name, f in drawn.items()},
        "arms": arms,
        "images": rows,
        "scenes": _scenes(strips),
        "trials": trials,
    }


def _scenes(strips: list[pictures.Strip]) -> list[dict[str, Any]]:
    unique = dict.fromkeys(strip.scene for strip in strips)
    return [
        {
            "label": s.label,
            "concept": s.concept,
            "attack": s.attack,
            "malicious": s.malicious,
            "veiled": s.veiled,
        }
        for s in unique
    ]


def _groups(study: Study) -> list[dict[str, Any]]:
    """The check boxes: the defenses of a comparison or the models of a search; the chosen ones are ticked."""
    first = {arm.group: arm for arm in reversed(study.arms)}
    return [
        {
            "name": group,
            "label": group if study.rivals else first[group].label,
            "shown": first[group].chosen,
        }
        for group in dict.fromkeys(arm.group for arm in study.arms)
    ]


def _choices(study: Study) -> dict[str, dict[str, list[str]]]:
    """Figure -> field -> the values that can be chosen, the default first."""
    curves, log = study.curves, study.training
    metrics = sorted(set(curves["metric"]), key=lambda m: (not m.startswith(RECOVERY), m))
    concepts = _in_order(study, curves["concept"])
    stages = sorted(set(log["stage"]), key=lambda stage: (stage != "immunize", stage))
    families = sorted({family(q) for q in log["quantity"]})
    return {
        "curves": {
            "concept": concepts,
            "attack": list(dict.fromkeys(curves["attack"])),
            "metric": metrics,
        },
        "labels": {
            "concept": _in_order(study, study.labels["concept"]),
            "attack": list(dict.fromkeys(study.labels["attack"])),
        },
        "nudity": {
            "concept": _in_order(study, study.detections["concept"]),
            "attack": list(dict.fromkeys(study.detections["attack"])),
            "part": sorted(set(study.detections["part"]), key=lambda p: (p != EXPLICIT, p)),
        },
        "training": {"stage": stages, "quantity": families},
    }


def _in_order(study: Study, concepts: pd.Series) -> list[str]:
    found = set(concepts)
    return [name for name in (*study.malicious, *study.safe) if name in found]


def _progress(study: Study, problems: list[Problem]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for problem in problems:
        counts[problem.kind] = counts.get(problem.kind, 0) + 1
    done, known = study.units
    return {
        "finished": study.finished,
        "trials": len(study.trials),
        "planned": study.planned_trials,
        "done": done,
        "known": known,
        "counts": counts,
    }


def _number(value: Any) -> str:
    """A value as text: numbers with three places, a dash for what is not known."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2e}"
    return str(value)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
