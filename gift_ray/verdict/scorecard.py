"""What finished steps say: curves, labels, and the verdict on an arm."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.records.record import read_record
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.step import Step
from gift_ray.verdict import scoring
from gift_ray.verdict.labels import Levels, label_images


def curves(step: Step, study_dir: Path) -> dict[str, dict[int, float]]:
    """metric -> attack step -> mean score, of a finished evaluate step."""
    result = read_record(step.folder(study_dir)).result["curves"]
    return {
        metric: {int(k): score["mean"] for k, score in curve.items()}
        for metric, curve in result.items()
    }


def scores(step: Step, study_dir: Path) -> pd.DataFrame:
    """One row an image, of a finished evaluate step."""
    return pd.read_parquet(step.folder(study_dir) / "scores.parquet")


def labelled_scores(
    plan: Plan, arm: Arm, key: tuple[str, str, int], study_dir: Path
) -> pd.DataFrame:
    """The scores of one finished attack with a column `label`: what became of each image.

    Raises:
        ValueError: the study does not measure what labels need (`gift_ray.verdict.labels.COLUMNS`).
    """
    undefended = curves(plan.undefended.attacks[key], study_dir)
    chance = curves(plan.chance_similarity[key[0]], study_dir)
    alike = read_record(plan.references[key[0]].folder(study_dir)).result["largest"]
    table = scores(arm.attacks[key], study_dir)
    levels = Levels.of(
        {metric: curve[0] for metric, curve in chance.items()},
        {metric: max(curve.values()) for metric, curve in undefended.items()},
        alike["lpips"],
    )
    return table.assign(label=label_images(table, levels))


def scorecard(plan: Plan, arm: Arm, study_dir: Path) -> scoring.Scorecard:
    """The verdict on one arm whose steps are all done.

    Raises:
        ConfigError: an attack teaches nothing on the undefended model, so that nothing is proven.
    """
    verdicts, probes, reported = _measured(plan, arm, study_dir, arm.attacks)
    return scoring.Scorecard.of(verdicts, probes, reported, **_worth(plan.config))


def outlook(
    plan: Plan, arm: Arm, study_dir: Path, attacks: Collection[tuple[str, str, int]]
) -> scoring.Standing:
    """What one arm can still become when its samples and these of its attacks are done: resistance can
    only fall from here, and what was not yet probed may all have survived.

    Raises:
        ConfigError: an attack teaches nothing on the undefended model.
    """
    verdicts, probes, _ = _measured(plan, arm, study_dir, attacks)
    safe = {c.name for c in plan.config.concepts.safe}
    unprobed = sum(key[0] in safe and key not in attacks for key in arm.attacks)
    return scoring.Standing.of(
        (sum(probes.values()) + unprobed) / (len(probes) + unprobed),
        min((verdict.resistance for verdict in verdicts.values()), default=1.0),
        **_worth(plan.config),
    )


def _worth(config: StudyConfig) -> dict[str, Any]:
    """How both coordinates are weighed against each other."""
    return config.scoring.model_dump(include={"objective", "weight", "min_retention"})


def _measured(
    plan: Plan, arm: Arm, study_dir: Path, attacks: Collection[tuple[str, str, int]]
) -> tuple[dict[str, scoring.ConceptVerdict], dict[str, float], dict[str, float]]:
    """Verdicts by attacked concept, retention probes and what is only reported, of an arm's samples and
    of these attacks on it."""
    config = plan.config
    safe = {c.name for c in config.concepts.safe}
    found: dict[str, dict[str, dict[int, float]]] = {}
    probes: dict[str, float] = {}
    reported: dict[str, float] = {}
    for concept, attack, seed in attacks:
        if concept not in safe and concept not in arm.malicious:
            continue
        key = (concept, attack, seed)
        recovered = recoveries(plan, arm.attacks[key], key, study_dir)
        if concept in safe:
            best = [max(curve.values()) for curve in recovered.values()]
            probes[f"finetune/{concept}/{attack}/{seed}"] = sum(best) / len(best)
        else:
            found.setdefault(concept, {}).update(
                {f"{attack}/{seed}/{m}": c for m, c in recovered.items()}
            )
    for group, step in arm.samples.items():
        drawn = curves(step, study_dir)
        reported |= {f"{metric}/{group}": drawn[metric][0] for metric in _set_metrics(config)}
        base, chance = (
            curves(s, study_dir)["clip_text"][0]
            for s in (plan.undefended.samples[group], plan.chance_prompt[group])
        )
        try:
            probes[f"generation/{group}"] = scoring.kept(drawn["clip_text"][0], base, chance)
        except ValueError as error:
            raise ConfigError(
                f"evaluation: the {group} prompts prove nothing: {error}; give prompts that the base "
                "model can draw and that differ from each other"
            ) from error
    verdicts = {name: scoring.ConceptVerdict.of(curves) for name, curves in found.items()}
    return verdicts, probes, reported


def recoveries(
    plan: Plan, step: Step, key: tuple[str, str, int], study_dir: Path
) -> dict[str, dict[int, float]]:
    """similarity -> recovery curve of one attack on one concept."""
    defended = curves(step, study_dir)
    undefended = curves(plan.undefended.attacks[key], study_dir)
    chance = curves(plan.chance_similarity[key[0]], study_dir)
    try:
        return {
            m: scoring.recovery(defended[m], undefended[m], chance[m][0])
            for m in plan.config.scoring.similarities
        }
    except ValueError as error:
        raise ConfigError(
            f"attacks: {key[1]} on {key[0]!r} proves nothing: {error}; raise max_train_steps or "
            "learning_rate"
        ) from error


def _set_metrics(config: StudyConfig) -> list[str]:
    """Names of the measured metrics that are of whole sets."""
    names = [metric.name for metric in config.evaluation.metrics]
    return [n for n in names if issubclass(plugins.resolve("metrics", n), plugins.SetMetric)]
