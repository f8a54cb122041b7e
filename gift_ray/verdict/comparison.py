"""Compares the defenses of one study: a row for each arm, concept and attack, and tables made of these rows.

The functions read the folders of finished steps and have no other side effects.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd

from gift_ray.config.names import told_apart
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.records.record import read_record
from gift_ray.study.immunization import NO_DEFENSE
from gift_ray.study.plan import Arm, Plan, plan
from gift_ray.study.step import Step, closure
from gift_ray.training.diffusion import Seeds
from gift_ray.verdict.intervals import Interval, interval, paired_difference
from gift_ray.verdict.labels import COLUMNS, LABELS
from gift_ray.verdict.recovery import similarity_gap_ratio, steps_to_recovery
from gift_ray.verdict.resampling import Bounds, together
from gift_ray.verdict.scorecard import attack_results, curves, labelled_scores, scorecard
from gift_ray.verdict.verdict import NOT_SHOWN, REGAINED, RESISTS, decide
from gift_ray.verdict.yardstick import Yardstick

UNIT = ["concept", "attack"]
KEY = [*UNIT, "seed"]


def layouts(config: StudyConfig) -> dict[str, Plan]:
    """For each arm's name the plan of the study with that arm's defense; the undefended arm comes first.

    Steps that do not depend on the defense have the same fingerprint in all plans, and run once.
    """
    defenses = (NO_DEFENSE, config.defense, *config.rivals)
    titles = ["undefended" if each == NO_DEFENSE else each.title for each in defenses]
    return {
        name: plan(config.model_copy(update={"defense": defense}))
        for name, defense in zip(told_apart(titles, mark=" #"), defenses, strict=True)
    }


def steps(plans: Mapping[str, Plan]) -> list[Step]:
    """Every step of all arms, each once, inputs first."""
    return closure([step for layout in plans.values() for step in layout.steps()])


def set_aside(yardstick: Yardstick) -> dict[tuple[str, str, int], str]:
    """The units (concept, attack, seed) that no measure can judge, each with the reason."""
    without = yardstick.without_ruler()
    return {
        key: without[key[:2]] for key in yardstick.plan.undefended.attacks if key[:2] in without
    }


def without(
    plans: Mapping[str, Plan],
    units: Mapping[tuple[str, str, int], str] = MappingProxyType({}),
    failed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Plan]:
    """The same plans without some units, and without the models that can't be judged.

    A model can't be judged if no unit is left for one of its concepts, or if one of its steps failed. A
    defense of which no model is left is dropped.

    Args:
        units: (concept, attack, seed) -> why it is left out of every arm.
        failed: fingerprint of a step -> why it failed.

    Raises:
        ConfigError: nothing is left to compare; the message gives every reason.
    """

    def remaining(arm: Arm) -> Arm:
        left = {key: step for key, step in arm.attacks.items() if key not in units}
        return dataclasses.replace(arm, attacks=left)

    def is_judged(arm: Arm) -> bool:
        attacked = {concept for concept, _, _ in arm.attacks}
        return attacked.issuperset(arm.malicious) and not any(
            step.fingerprint in failed for step in arm.steps()
        )

    found = {
        name: dataclasses.replace(
            layout,
            undefended=remaining(layout.undefended),
            defended=tuple(a for arm in layout.defended if is_judged(a := remaining(arm))),
        )
        for name, layout in plans.items()
    }
    found = {name: layout for name, layout in found.items() if layout.defended}
    if len(found) < min(2, len(plans)):
        raise ConfigError(*units.values(), *failed.values())
    return found


def units(plans: Mapping[str, Plan], yardstick: Yardstick) -> pd.DataFrame:
    """One row for each arm, malicious concept and attack: how far the attacker came.

    The columns:
        resistance, low, high, verdict: 1 - the largest recovery over measures and steps, its bounds, and the
            verdict that the bounds give.
        worst_seed: the resistance of the worst single seed.
        sgr: IMMA's similarity gap ratio at the last step, the mean over measures and seeds.
        steps_to_recovery: the first step at which recovery reaches 0.9; NaN where it never does.
        The four labels: their shares among the images of the last step, if the study measures what they need.
    """
    rows = []
    for name, _, arm, key in _attacked(plans):
        if key[0] not in arm.malicious or key != _first(arm, key):
            continue
        found = attack_results(yardstick, arm, key[:2])
        results = [result for result, _ in found.values()]
        recovery = together([drawn for _, drawn in found.values()]).largest().bounds()
        reached = [k for r in results if (k := steps_to_recovery(r.curve)) is not None]
        values = [v for r in results for v in r.curve.values()]
        rows.append(
            {"arm": name, **dict(zip(UNIT, key, strict=False)),
             "verdict": decide(recovery, 1 - yardstick.config.gate.min_resistance),
             **_as_resistance(recovery),
             "worst_seed": 1 - max(r.tail for r in results),
             "mean_recovery": sum(values) / len(values),
             "final_recovery": max(r.curve[max(r.curve)] for r in results),
             "sgr": _sgr(yardstick, arm, key),
             "steps_to_recovery": min(reached, default=None),
             "images": results[0].images, "seeds": results[0].seeds,
             **_label_shares(yardstick, arm, key)}
        )  # fmt: skip
    return pd.DataFrame(rows)


def _as_resistance(recovery: Bounds) -> dict[str, float]:
    return {"resistance": 1 - recovery.mean, "low": 1 - recovery.high, "high": 1 - recovery.low}


def _first(arm: Arm, key: tuple[str, str, int]) -> tuple[str, str, int]:
    """The key of a concept and attack with its first seed, by which a row is made once for all seeds."""
    return next(other for other in arm.attacks if other[:2] == key[:2])


def retained(plans: Mapping[str, Plan], yardstick: Yardstick) -> pd.DataFrame:
    """One row for each arm, released model and retention group: the share that is kept, with its bounds."""
    rows = []
    for name, layout in plans.items():
        for arm in layout.defended:
            model = ", ".join(arm.malicious)
            rows += [
                {"arm": name, "model": model, "group": group, "retention": kept.mean,
                 "low": kept.low, "high": kept.high}
                for group, kept in scorecard(yardstick, arm).groups.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)


def points(plans: Mapping[str, Plan], study_dir: Path) -> pd.DataFrame:
    """All curves in long form: arm, concept, attack, seed, metric, step, and the score with its spread."""
    rows = []
    for name, _, arm, key in _attacked(plans):
        found = read_record(arm.attacks[key].folder(study_dir)).result["curves"]
        for metric, curve in found.items():
            for step, score in curve.items():
                rows.append({"arm": name, **dict(zip(KEY, key, strict=True)),
                             "metric": metric, "step": int(step), **score})  # fmt: skip
    return pd.DataFrame(rows)


def costs(plans: Mapping[str, Plan], study_dir: Path) -> pd.DataFrame:
    """What the immunizations of each arm took, as means over its models.

    The columns are the steps (or rounds) that were logged, the images seen, seconds, and peak memory in MiB:
    of the GPU, or of the whole process on a CPU. Peak memory is NaN where the record holds none.
    """
    rows = []
    for name, layout in plans.items():
        for arm in layout.defended:
            folder = arm.immunize.folder(study_dir)
            log = pd.read_parquet(folder / "training.parquet")
            took = read_record(folder).provenance
            rows.append({"arm": name, "logged_steps": len(log), "images_seen": images_seen(log),
                         "seconds": took["seconds"],
                         "peak_memory_mib": took.get("peak_memory_bytes", math.nan) / 2**20})  # fmt: skip
    return pd.DataFrame(rows).groupby("arm", sort=False).mean()


def standings(rows: pd.DataFrame, kept: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row for each arm and attack, over all concepts.

    It holds how often each verdict was given, the mean resistance with its interval (with a single concept,
    that concept's own bounds), the worst concept's resistance, and the arm's retention with its worst group.
    """
    retention = kept.groupby("arm")["retention"].agg(["mean", "min"])
    found = []
    for (arm, attack), group in rows.groupby(["arm", "attack"], sort=False):
        sure = _interval_of(group, "resistance", seed)
        low, high = (sure.low, sure.high) if len(group) > 1 else group[["low", "high"]].iloc[0]
        counted = group["verdict"].value_counts()
        found.append(
            {"arm": arm, "attack": attack,
             **{verdict: int(counted.get(verdict, 0)) for verdict in (RESISTS, REGAINED, NOT_SHOWN)},
             "resistance": sure.mean, "low": low, "high": high, "worst": group["resistance"].min(),
             "worst_seed": group["worst_seed"].min(),
             "final_recovery": group["final_recovery"].mean(), "sgr": group["sgr"].mean(),
             "relearnt": f"{int(group['steps_to_recovery'].notna().sum())} of {len(group)}",
             "retention": retention["mean"][arm], "worst_retention": retention["min"][arm],
             "concepts": sure.n_concepts, "seeds": int(group["seeds"].max())}
        )  # fmt: skip
    return pd.DataFrame(found)


def differences(rows: pd.DataFrame, kept: pd.DataFrame, reference: str, seed: int) -> pd.DataFrame:
    """How much better `reference` is than every other arm, in resistance and retention.

    Resistance is compared over the concepts and attacks that both arms have.
    """
    found = []
    for other in rows["arm"].unique():
        if other == reference:
            continue
        ours, theirs = (
            _as_units(rows[rows["arm"] == name], "resistance") for name in (reference, other)
        )
        shared = ours.keys() & theirs.keys()
        ours, theirs = ({u: side[u] for u in side if u in shared} for side in (ours, theirs))
        sure = paired_difference(ours, theirs, Seeds(seed).generator(f"difference/{other}"))
        means = kept.groupby("arm")["retention"].mean()
        found.append({"arms": f"{reference} - {other}", "resistance": sure.mean, "low": sure.low,
                      "high": sure.high, "n": sure.n,
                      "retention": means[reference] - means[other]})  # fmt: skip
    return pd.DataFrame(found)


def _attacked(
    plans: Mapping[str, Plan],
) -> Iterator[tuple[str, Plan, Arm, tuple[str, str, int]]]:
    for name, layout in plans.items():
        for arm in layout.defended:
            for key in arm.attacks:
                yield name, layout, arm, key


def images_seen(log: pd.DataFrame) -> int:
    """The images seen in a whole training. In a chain of defenses each member counts its own from zero."""
    if "images_seen" not in log:
        return 0
    seen = log["images_seen"]
    more = seen.diff()
    return int(more.where(more > 0, seen).sum())


def _sgr(yardstick: Yardstick, arm: Arm, key: tuple[str, str, int]) -> float:
    """The similarity gap ratio at the last step, as a mean over seeds and the measures with a ruler."""
    base, study_dir = yardstick.plan.undefended.attacks, yardstick.study_dir
    ratios = []
    for other in (k for k in arm.attacks if k[:2] == key[:2]):
        ours, theirs = (curves(attacks[other], study_dir) for attacks in (arm.attacks, base))
        ratios += [
            similarity_gap_ratio(theirs[m][max(theirs[m])], ours[m][max(ours[m])])
            for m in yardstick.rulers[key[0], key[1]]
        ]
    return sum(ratios) / len(ratios)


def _label_shares(yardstick: Yardstick, arm: Arm, key: tuple[str, str, int]) -> dict[str, float]:
    """The share of each label among the images of the last step, over all seeds."""
    measured = {metric.title for metric in yardstick.config.evaluation.metrics}
    if not measured.issuperset(COLUMNS):
        return {}
    tables = [labelled_scores(yardstick, arm, k) for k in arm.attacks if k[:2] == key[:2]]
    table = pd.concat(tables)
    last = table[table["step"] == table["step"].max()]["label"]
    return {name: float((last == name).mean()) for name in LABELS}


def _interval_of(group: pd.DataFrame, column: str, seed: int) -> Interval:
    return interval(_as_units(group, column), Seeds(seed).generator(f"interval/{column}"))


def _as_units(group: pd.DataFrame, column: str) -> dict[tuple[str, str, int], float]:
    """A column as one value for each concept and attack, under the seed 0.

    The spread of seeds and images is already in each row's own bounds.
    """
    keys = ((concept, attack, 0) for concept, attack in group[UNIT].itertuples(index=False))
    return dict(zip(keys, group[column], strict=True))


def as_text(table: pd.DataFrame, kind: str) -> str:
    """A table as text: Markdown (`md`), `csv` or LaTeX (`tex`)."""
    writers: dict[str, Any] = {
        "md": lambda t: t.to_markdown(index=False, floatfmt=".3f"),
        "csv": lambda t: t.to_csv(index=False, float_format="%.6g"),
        "tex": lambda t: t.to_latex(index=False, float_format="%.3f", escape=True),
    }
    return str(writers[kind](table))
