"""A study's folder as tables: everything a report shows, and everything that is missing from it.

Reads records, outlines and parquet files only; no model, no Ray, no MLflow. What can't be read becomes
a `Problem`, never an exception: a study that is half done has a report too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.parquet import read_schema
from scipy.special import stdtrit

from gift_ray.config.schema import ReportConfig, StudyConfig
from gift_ray.errors import ConfigError, DataError
from gift_ray.records.record import Record, is_done, read_claim, read_record
from gift_ray.verdict import labels, scoring

UNDEFENDED = "undefended"
RECOVERY = "recovery by "
CURVE = [
    "arm",
    "concept",
    "attack",
    "seed",
    "metric",
    "step",
    "mean",
    "stderr",
    "n",
    "unscored",
    "direction",
]
TRAINING = ["arm", "stage", "quantity", "step", "value"]
COST = ["kind", "label", "seconds", "device"]
LABEL = ["arm", "concept", "attack", "label", "images"]
DETECTION = ["arm", "concept", "attack", "part", "threshold", "detections", "images"]
# The detector keeps nothing below the first.
THRESHOLDS = tuple(round(0.25 + 0.05 * i, 2) for i in range(14))
EXPLICIT = "all explicit parts"


@dataclass(frozen=True)
class Problem:
    """Something that the report can't show: `unfinished`, `failed`, `pruned`, `infeasible` (so much so that
    it was not attacked), `damaged`, `unscored`, `unusable`."""

    kind: str
    what: str
    why: str


@dataclass(frozen=True)
class Arm:
    """One model under one setting. `key` names it in all tables; `chosen`: the best setting of it.

    `group` is what it is held against others as: its defense in a comparison, else itself.
    """

    key: str
    label: str
    group: str
    trial_id: str | None
    malicious: tuple[str, ...]
    chosen: bool
    outline: dict[str, Any]
    scorecard: dict[str, Any] | None


@dataclass(frozen=True)
class Verdict:
    """What was decided about one malicious concept, and the numbers behind it.

    `status` is registered, refused or undecided. `resistance` is the worst of `curves` recovery curves,
    which lie between 1 - `spread[1]` and 1 - `spread[0]` at their highest. `confirmed` is the score that
    the gate read where it was not the search's own, by name; else {}.
    """

    concept: str
    kind: str
    status: str
    reason: str
    trial_id: str | None = None
    model: str = ""
    resistance: float = math.nan
    spread: tuple[float, float] = (math.nan, math.nan)
    mean_recovery: float = math.nan
    steps_to_recovery: int | None = None
    curves: int = 0
    images: int = 0
    retention: float = math.nan
    probes: dict[str, float] = field(default_factory=dict)
    confirmed: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """All that a report shows.

    `rivals` are the defenses of a comparison, none in a search. `curves` has one row for each (arm,
    concept, attack, seed, metric, step), recovery among the metrics; `recoveries` one `ConceptVerdict`
    for each (arm, concept, attack); `chance` the level of each (concept, metric). `units` counts those
    that are done, and all that are known of. `tables` are what a comparison's job made of its units.
    """

    folder: Path
    steps: Path
    config: StudyConfig
    rivals: tuple[str, ...]
    finished: bool
    units: tuple[int, int]
    planned_trials: int
    arms: list[Arm]
    trials: list[dict[str, Any]]
    verdicts: list[Verdict]
    curves: pd.DataFrame
    recoveries: dict[tuple[str, str, str], scoring.ConceptVerdict]
    chance: dict[tuple[str, str], float]
    training: pd.DataFrame
    cost: pd.DataFrame
    labels: pd.DataFrame
    detections: pd.DataFrame
    tables: dict[str, pd.DataFrame]
    problems: list[Problem]
    provenance: dict[str, list[str]]
    protocol_id: str

    @property
    def kinds(self) -> dict[str, str]:
        """Concept -> object, style or unsafe."""
        concepts = (*self.config.concepts.malicious, *self.config.concepts.safe)
        return {concept.name: concept.kind for concept in concepts}

    @property
    def malicious(self) -> list[str]:
        return [concept.name for concept in self.config.concepts.malicious]

    @property
    def safe(self) -> list[str]:
        return [concept.name for concept in self.config.concepts.safe]


class Folder:
    """The finished steps of a study, each read once; keeps what is missing or damaged."""

    def __init__(self, folder: Path) -> None:
        # A comparison's folder lies inside the study's.
        self.steps = next((f / "steps" for f in (folder, folder.parent) if (f / "steps").exists()),
                          folder / "steps")  # fmt: skip
        self.problems: list[Problem] = []
        self.records: dict[str, Record | None] = {}
        self.left_out: set[str] = set()

    def leave_out(self, names: Iterable[str]) -> None:
        """Those of these steps that were not done are not missing: what needed them ended early."""
        self.left_out |= {name for name in names if not is_done(self.path(name))}

    @property
    def units(self) -> tuple[int, int]:
        """Steps that are done, and those that were ever to be."""
        known = self.records.keys() - self.left_out
        return sum(self.records[name] is not None for name in known), len(known)

    def path(self, name: str) -> Path:
        """Where a step lies."""
        return self.steps / name

    def record(self, name: str, label: str) -> Record | None:
        """A step's record, or None with a problem noted."""
        if name not in self.records:
            self.records[name] = self._read(name, label)
        return self.records[name]

    def _read(self, name: str, label: str) -> Record | None:
        if name in self.left_out:
            return None
        if not is_done(self.path(name)):
            self.problems.append(Problem("unfinished", label, "not done yet"))
            return None
        # Weights are large, and nothing here reads them.
        read = read_claim if name.startswith(("immunize-", "merge-")) else read_record
        try:
            return read(self.path(name))
        except DataError:
            self.problems.append(
                Problem("damaged", label, f"steps/{name} is damaged; delete it to compute it anew")
            )
            return None


def collect(folder: Path, images: str | None = None) -> Study:
    """Read a study's folder.

    Args:
        images: overrides the study's `report.images`.

    Raises:
        ConfigError: no study there.
    """
    outline = _read_outline(folder)
    config = StudyConfig.model_validate(outline["config"])
    if images is not None:
        config = config.model_copy(
            update={"report": ReportConfig.model_validate({"images": images})}
        )
    steps = Folder(folder)
    trials = _trials(folder, outline["fingerprint"])
    summary = _summary(folder, outline["fingerprint"])

    # Which models there are, and everything that was measured on them.
    rivals = dict(outline.get("rivals", ()))
    arms = [_undefended(outline)]
    arms += _compared(rivals, summary) if rivals else _searched(config, trials, summary)
    for arm in arms:
        if arm.trial_id is not None and arm.scorecard is None:
            steps.leave_out(arm.outline["steps"])
        for name, label in arm.outline["steps"].items():
            steps.record(name, label)
    chance = _chance(steps, outline)
    curves = _curves(steps, arms)
    recovered = _recovered(config, curves, chance, steps.problems)
    curves = pd.concat([curves, recovered], ignore_index=True) if len(recovered) else curves
    recoveries = _recoveries(recovered)

    # What came of it, and what did not.
    planned = config.search.num_samples if config.search else 0
    problems = [
        *_failed(trials, planned, summary is not None),
        *(Problem("unusable", "set aside", why) for why in outline.get("set_aside", ())),
        *steps.problems,
        *_unscored(curves, arms),
    ]
    return Study(
        folder=folder,
        steps=steps.steps,
        config=config,
        rivals=tuple(rivals),
        finished=summary is not None and not any(p.kind == "unfinished" for p in problems),
        units=steps.units,
        planned_trials=planned,
        arms=arms,
        trials=trials,
        verdicts=[] if rivals else _verdicts(config, arms, trials, summary, recoveries, curves),
        curves=curves,
        recoveries=recoveries,
        chance=chance,
        training=_training(steps, arms),
        cost=_cost(steps),
        labels=_labels(steps, arms, outline["references"], curves, chance),
        detections=_detections(steps, arms),
        tables=_compared_tables(summary) if rivals else {},
        problems=list(dict.fromkeys(problems)),
        provenance=_provenance(steps),
        protocol_id=(summary or {}).get("protocol_id", ""),
    )


def averaged(curves: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: mean with its 95 % interval, the lowest and the highest seed, images and unscored.

    With several seeds the interval is over their means, else over the images of the one (Student's t).
    """
    keys = ["arm", "concept", "attack", "metric", "direction", "step"]
    groups = curves.groupby(keys, sort=False, dropna=False)
    table = (
        groups.agg(
            mean_=("mean", "mean"),
            std=("mean", "std"),
            seeds=("mean", "count"),
            n=("n", "sum"),
            stderr=("stderr", "mean"),
            lowest=("mean", "min"),
            highest=("mean", "max"),
            unscored=("unscored", "sum"),
        )
        .reset_index()
        .rename(columns={"mean_": "mean"})
    )
    many = table["seeds"] > 1
    stderr = table["stderr"].where(~many, table["std"] / table["seeds"].clip(lower=1) ** 0.5)
    count = table["n"].where(~many, table["seeds"])
    half = stderr * stdtrit((count - 1).clip(lower=1).to_numpy(float), 0.975)
    table["low"], table["high"] = table["mean"] - half, table["mean"] + half
    return table.drop(columns=["std", "stderr"])


def _read_outline(folder: Path) -> dict[str, Any]:
    path = folder / "study.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: no study.json; give a study's folder, as runs/demo"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: can't be read; run the study's job again to write it anew"
        ) from error


def _trials(folder: Path, fingerprint: str) -> list[dict[str, Any]]:
    """The ended trials of this very study, in the order they ended."""
    found = [json.loads(p.read_text(encoding="utf-8")) for p in (folder / "trials").glob("*.json")]
    same = [trial for trial in found if trial["fingerprint"] == fingerprint]
    return sorted(same, key=lambda trial: (trial["time"], trial["trial_id"]))


def _summary(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """summary.json, unless it is not written yet or that of an earlier configuration."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    summary = json.loads(path.read_text(encoding="utf-8"))
    return summary if summary.get("fingerprint") == fingerprint else None


def _undefended(outline: dict[str, Any]) -> Arm:
    base = outline["undefended"]
    steps = outline["shared"] | base["steps"]
    return Arm(UNDEFENDED, UNDEFENDED, UNDEFENDED, None, (), True, base | {"steps": steps}, None)


def _compared(rivals: dict[str, list[dict[str, Any]]], summary: dict[str, Any] | None) -> list[Arm]:
    """Every defense's models, in the study's order."""
    cards = summary["scorecards"] if summary else {}
    arms = []
    for defense, models in rivals.items():
        for model in models:
            malicious = ", ".join(model["malicious"])
            arms.append(
                Arm(
                    key=f"{defense}/{malicious}",
                    label=f"{defense} against {malicious}",
                    group=defense,
                    trial_id=None,
                    malicious=tuple(model["malicious"]),
                    chosen=True,
                    outline=model,
                    scorecard=cards.get(defense, {}).get(malicious),
                )
            )
    return arms


def _compared_tables(summary: dict[str, Any] | None) -> dict[str, pd.DataFrame]:
    found = summary["tables"] if summary else {}
    return {name: pd.DataFrame(**table) for name, table in found.items()}


def _searched(
    config: StudyConfig, trials: list[dict[str, Any]], summary: dict[str, Any] | None
) -> list[Arm]:
    """Each trial's models; the chosen ones first."""
    arms = []
    best = _best(trials, summary)
    for number, trial in enumerate(trials, 1):
        for model in trial["models"]:
            malicious = ", ".join(model["malicious"])
            arms.append(
                Arm(
                    key=f"{trial['trial_id']}/{malicious}",
                    label=f"{config.defense.title} against {malicious}, trial {number}",
                    group=f"{trial['trial_id']}/{malicious}",
                    trial_id=trial["trial_id"],
                    malicious=tuple(model["malicious"]),
                    chosen=best.get(malicious) == trial["trial_id"],
                    outline=model,
                    scorecard=model["scorecard"],
                )
            )
    return sorted(arms, key=lambda arm: not arm.chosen)


def _best(trials: list[dict[str, Any]], summary: dict[str, Any] | None) -> dict[str, str]:
    """Released model -> its trial: as the job chose, or the best so far."""
    best: dict[str, tuple[float, str]] = {}
    for trial in trials:
        for verdict in trial["arms"]:
            name, objective = verdict["malicious"], verdict["objective"]
            if name not in best or objective > best[name][0]:
                best[name] = (objective, trial["trial_id"])
    chosen = summary["chosen"] if summary else []
    return {name: trial_id for name, (_, trial_id) in best.items()} | {
        model["malicious"]: model["trial_id"] for model in chosen if "trial_id" in model
    }


def _chance(steps: Folder, outline: dict[str, Any]) -> dict[tuple[str, str], float]:
    found = {}
    for concept, name in outline["chance"].items():
        record = steps.record(name, f"chance {concept}")
        for metric, curve in record.result["curves"].items() if record else ():
            found[concept, metric] = curve["0"]["mean"]
    return found


def _curves(steps: Folder, arms: list[Arm]) -> pd.DataFrame:
    rows = []
    for arm in arms:
        for run in arm.outline["attacks"]:
            record = steps.record(run["scores"], arm.label)
            for metric, curve in record.result["curves"].items() if record else ():
                for step, score in curve.items():
                    rows.append(
                        (
                            arm.key,
                            run["concept"],
                            run["attack"],
                            run["seed"],
                            metric,
                            int(step),
                            *(score[name] for name in CURVE[6:]),
                        )
                    )
    return pd.DataFrame(rows, columns=CURVE)


def _recovered(
    config: StudyConfig,
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
    problems: list[Problem],
) -> pd.DataFrame:
    """The curves as shares of what the undefended attack gains over chance, one metric more each."""
    keys = ["concept", "attack", "seed", "metric"]
    measured = curves[curves["metric"].isin(config.scoring.similarities)]
    tables = []
    for key, group in measured.groupby(keys, sort=False):
        concept, attack, seed, metric = key
        base = group[group["arm"] == UNDEFENDED]
        if base.empty or (concept, metric) not in chance:
            continue
        level, highest = chance[concept, metric], base["mean"].max()
        for _, curve in group.groupby("arm", sort=False):
            try:
                recovered = scoring.recovery(
                    dict(zip(curve["step"], curve["mean"], strict=True)),
                    dict(zip(base["step"], base["mean"], strict=True)),
                    level,
                )
            except ValueError as error:
                what = f"recovery of {concept} by {attack}, seed {seed}, {metric}"
                problems.append(Problem("unusable", what, str(error)))
                continue
            tables.append(
                curve.assign(
                    metric=RECOVERY + metric,
                    mean=curve["step"].map(recovered),
                    stderr=curve["stderr"] / (highest - level),
                )
            )
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=CURVE)


def unit_recoveries(study: Study) -> pd.DataFrame:
    """The highest recovery of each (arm, concept, attack, seed): how far the attacker came."""
    recovered = study.curves[study.curves["metric"].str.startswith(RECOVERY)]
    units = recovered.groupby(["arm", "concept", "attack", "seed"], sort=False)["mean"].max()
    return units.rename("recovery").reset_index()


def _recoveries(recovered: pd.DataFrame) -> dict[tuple[str, str, str], scoring.ConceptVerdict]:
    found: dict[tuple[str, str, str], dict[str, dict[int, float]]] = {}
    for key, group in recovered.groupby(["arm", "concept", "attack", "seed", "metric"], sort=False):
        arm, concept, attack, seed, metric = key
        curve = {int(k): float(v) for k, v in zip(group["step"], group["mean"], strict=True)}
        found.setdefault((arm, concept, attack), {})[f"{seed}/{metric}"] = curve
    return {key: scoring.ConceptVerdict.of(curves) for key, curves in found.items()}


def _verdicts(
    config: StudyConfig,
    arms: list[Arm],
    trials: list[dict[str, Any]],
    summary: dict[str, Any] | None,
    recoveries: dict[tuple[str, str, str], scoring.ConceptVerdict],
    curves: pd.DataFrame,
) -> list[Verdict]:
    verdicts = []
    for concept in config.concepts.malicious:
        arm = next((a for a in arms if a.chosen and concept.name in a.malicious), None)
        together = config.concepts.mode != "per_concept"
        group = [c.name for c in config.concepts.malicious] if together else [concept.name]
        chosen = summary["chosen"] if summary else []
        found = next((m for m in chosen if m["malicious"] == ", ".join(group)), None)
        status, reason, model = _decision(found, trials, ended=summary is not None)
        numbers: dict[str, Any] = {"confirmed": found.get("confirmed", {}) if found else {}}
        if arm and arm.scorecard:
            numbers |= _numbers(arm, concept.name, recoveries, curves)
        verdicts.append(Verdict(concept.name, concept.kind, status, reason, model=model, **numbers))
    return verdicts


def _decision(
    model: dict[str, Any] | None, trials: list[dict[str, Any]], *, ended: bool
) -> tuple[str, str, str]:
    """(status, reason, registered model) of what the summary says of one model."""
    if not ended:
        return "undecided", f"{len(trials)} trials have ended; the study has not", ""
    if model is None:
        return "undecided", "no model against it was put to the gate", ""
    if not model["registered"]:
        return "refused", model["refused"], ""
    champion = " (champion)" if model["registered"]["champion"] else ""
    return "registered", "", model["registered"]["uri"] + champion


def _numbers(
    arm: Arm,
    concept: str,
    recoveries: dict[tuple[str, str, str], scoring.ConceptVerdict],
    curves: pd.DataFrame,
) -> dict[str, Any]:
    """The verdict's own figures, as the job scored them."""
    assert arm.scorecard is not None
    card = arm.scorecard["concepts"][concept]
    highest = [max(curve.values()) for curve in card["curves"].values()]
    own = curves[(curves["arm"] == arm.key) & (curves["concept"] == concept)]
    return {
        "trial_id": arm.trial_id,
        "resistance": card["resistance"],
        "spread": (1 - max(highest), 1 - min(highest)),
        "mean_recovery": card["mean_recovery"],
        "steps_to_recovery": card["steps_to_recovery"],
        "curves": len(highest),
        "images": int(own["n"].max()) if len(own) else 0,
        "retention": arm.scorecard["retention"],
        "probes": arm.scorecard["probes"],
    }


def _training(steps: Folder, arms: list[Arm]) -> pd.DataFrame:
    tables = []
    for arm in arms:
        sources = {"immunize": arm.outline["immunize"]} | {
            f"{run['attack']} on {run['concept']}, seed {run['seed']}": run["images"]
            for run in arm.outline["attacks"]
        }
        for stage, name in sources.items():
            path = steps.path(name) / "training.parquet"
            if steps.records.get(name) is None or not path.exists():
                continue
            wide = pd.read_parquet(path)
            long = wide.melt("step", var_name="quantity", value_name="value")
            tables.append(long.assign(arm=arm.key, stage=stage)[TRAINING])
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=TRAINING)


def _labels(
    steps: Folder,
    arms: list[Arm],
    references: dict[str, str],
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
) -> pd.DataFrame:
    """Images of each label (recovered, memorised, degraded, unrelated) after the whole attack, where
    the study measures what labels need. Unscored images, a problem of their own, have none."""
    tables = []
    for arm in arms:
        for run in arm.outline["attacks"]:
            levels = _levels(run, references, steps, curves, chance)
            if levels is None or steps.records.get(run["scores"]) is None:
                continue
            scores = pd.read_parquet(steps.path(run["scores"]) / "scores.parquet")
            if not set(labels.COLUMNS) <= set(scores):
                continue
            last = scores[scores["step"] == scores["step"].max()].dropna(subset=[*labels.COLUMNS])
            found = labels.label_images(last, levels)
            count = found.value_counts(sort=False).rename("images").reset_index()
            keys = {"arm": arm.key, "concept": run["concept"], "attack": run["attack"]}
            tables.append(count.assign(**keys)[LABEL])
    if not tables:
        return pd.DataFrame(columns=LABEL)
    return pd.concat(tables).groupby(LABEL[:4], sort=False, as_index=False).sum()


def _detections(steps: Folder, arms: list[Arm]) -> pd.DataFrame:
    """NudeNet's detections after the whole attack: how many of each part reach each threshold."""
    rows = []
    for arm in arms:
        for run in arm.outline["attacks"]:
            path = steps.path(run["scores"]) / "scores.parquet"
            if steps.records.get(run["scores"]) is None:
                continue
            if "nudenet/findings" not in read_schema(path).names:
                continue
            scores = pd.read_parquet(path, columns=["step", "nudenet/findings"])
            last = scores[scores["step"] == scores["step"].max()]["nudenet/findings"]
            found = [detection for text in last for detection in json.loads(text)]
            key = (arm.key, run["concept"], run["attack"])
            for part in [EXPLICIT, *sorted({d["class"] for d in found})]:
                kept = [
                    d["score"]
                    for d in found
                    if d["class"] == part or (part == EXPLICIT and d["explicit"])
                ]
                rows += [(*key, part, t, sum(s >= t for s in kept), len(last)) for t in THRESHOLDS]
    table = pd.DataFrame(rows, columns=DETECTION)
    return table.groupby(DETECTION[:5], sort=False, as_index=False).sum()


def _levels(
    run: dict[str, Any],
    references: dict[str, str],
    steps: Folder,
    curves: pd.DataFrame,
    chance: dict[tuple[str, str], float],
) -> labels.Levels | None:
    """Where the lines between the labels are for one attack; None while it can't be told."""
    alike = steps.record(references[run["concept"]], f"references of {run['concept']}")
    base = curves[curves["arm"] == UNDEFENDED]
    for column in ("concept", "attack", "seed"):
        base = base[base[column] == run[column]]
    best = base.groupby("metric")["mean"].max()
    image, text = ((run["concept"], metric) for metric in ("clip_image", "clip_text"))
    known = {image, text} <= chance.keys() and {"clip_image", "clip_text"} <= set(best.index)
    if alike is None or not known:
        return None
    return labels.Levels(
        chance_image=chance[image],
        best_image=best["clip_image"],
        chance_text=chance[text],
        best_text=best["clip_text"],
        between_references=alike.result["largest"].get("lpips", math.nan),
    )


def _cost(steps: Folder) -> pd.DataFrame:
    rows = [
        (r.kind, r.provenance.get("label", name), r.provenance["seconds"], r.provenance["device"])
        for name, r in steps.records.items()
        if r is not None
    ]
    return pd.DataFrame(rows, columns=COST)


def _provenance(steps: Folder) -> dict[str, list[str]]:
    """Every version, commit and machine that had a part in it."""
    found: dict[str, set[str]] = {}
    for record in steps.records.values():
        if record is None:
            continue
        known = record.provenance
        single = {name: known.get(name) for name in ("git_commit", "python", "machine", "device")}
        for name, value in (known.get("versions", {}) | single).items():
            found.setdefault(name.replace("_", " "), set()).add(str(value or "unknown"))
    return {name: sorted(values) for name, values in found.items()}


def _failed(trials: list[dict[str, Any]], planned: int, ended: bool) -> list[Problem]:
    problems = [
        Problem(trial["state"], f"trial {number} ({trial['trial_id']})", trial["reason"])
        for number, trial in enumerate(trials, 1)
        if not trial["arms"]
    ]
    if len(trials) < planned and not ended:
        why = f"{len(trials)} of {planned} trials have ended"
        problems.append(Problem("unfinished", "the search", why))
    return problems


def _unscored(curves: pd.DataFrame, arms: list[Arm]) -> list[Problem]:
    labels = {arm.key: arm.label for arm in arms}
    holes = curves[(curves["unscored"] > 0) & ~curves["metric"].str.startswith(RECOVERY)]
    return [
        Problem(
            "unscored",
            f"{labels[row.arm]}: {row.attack} on {row.concept}, seed {row.seed}, step {row.step}",
            f"{row.metric} could not score {row.unscored} of {row.n + row.unscored} images",
        )
        for row in holes.itertuples()
    ]
