"""The yardstick of a study, by which all of its models are judged; built once from finished steps.

It holds how well each measure recognises each concept, and for every attack the undefended curve, the control
curves, chance and the floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow.parquet import read_schema

from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.measuring import judges
from gift_ray.study.plan import Plan
from gift_ray.study.step import Step
from gift_ray.verdict.judges import Reading, require_judges
from gift_ray.verdict.recovery import Ruler, Sample

Unit = tuple[str, str]


@dataclass(frozen=True)
class Yardstick:
    """The scale for every concept, attack and measure, which scorecards, comparisons and the report read.

    Args:
        readings: the results of the judges' check, one for each concept and measure.
        rulers: for each (concept, attack) the rulers of the measures that can judge it, by measure.
        unusable: why a measure can't judge an attack on a concept, by (concept, attack, measure).
    """

    plan: Plan
    study_dir: Path
    readings: list[Reading]
    rulers: Mapping[Unit, Mapping[str, Ruler]]
    unusable: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, study_dir: Path) -> Yardstick:
        """From a plan whose shared steps are done."""
        readings = read_judges(plan, study_dir)
        reads = {(r.concept, r.measure) for r in readings if r.reads(plan.config.scoring.least_auc)}
        rulers: dict[Unit, dict[str, Ruler]] = {}
        unusable = {}
        for concept, attack in dict.fromkeys(key[:2] for key in plan.undefended.attacks):
            rulers[concept, attack] = {}
            for measure in judges(plan.config):
                if (concept, measure) not in reads:
                    unusable[concept, attack, measure] = "the judges' check finds it blind"
                    continue
                ruler = _ruler(plan, study_dir, (concept, attack), measure)
                try:
                    why = _why_not(ruler, plan.config)
                except ValueError as error:
                    why = str(error)
                if why:
                    unusable[concept, attack, measure] = why
                else:
                    rulers[concept, attack][measure] = ruler
        return cls(plan, study_dir, readings, rulers, unusable)

    @property
    def config(self) -> StudyConfig:
        """The study's configuration."""
        return self.plan.config

    def without_ruler(self) -> dict[Unit, str]:
        """The (concept, attack) pairs that no measure can judge, each with the reasons."""
        found = {}
        for (concept, attack), rulers in self.rulers.items():
            if not rulers:
                reasons = [
                    f"{measure}: {why}"
                    for (c, a, measure), why in self.unusable.items()
                    if (c, a) == (concept, attack)
                ]
                found[concept, attack] = (
                    f"attacks: {attack} on {concept!r} proves nothing ({'; '.join(reasons)}); give it more "
                    "steps, another learning rate or more images, or choose another control"
                )
        return found

    def require(self) -> None:
        """Check that every attack on a malicious concept can be judged by some measure.

        Raises:
            ConfigError: one line for each that can't be.
        """
        malicious = {c.name for c in self.config.concepts.malicious}
        mistakes = [why for (c, _), why in self.without_ruler().items() if c in malicious]
        if mistakes:
            raise ConfigError(*mistakes)


def read_judges(plan: Plan, study_dir: Path) -> list[Reading]:
    """The results of the judges' check, from the `judges` steps of a plan, which must be done."""
    found = []
    for concept, step in plan.judges.items():
        table = numbers(step.folder(study_dir))
        groups = ("concept", "control", "safe", "broken")
        sides = {name: table[table["group"] == name] for name in groups}
        found += [
            Reading.of(
                concept, measure, *(side[measure].to_numpy(float) for side in sides.values())
            )
            for measure in judges(plan.config)
        ]
    return found


def check_judges(plan: Plan, study_dir: Path) -> list[Reading]:
    """The results of the judges' check, which every malicious concept must pass by some measure.

    Raises:
        ConfigError: every measure is blind for a malicious concept.
    """
    readings = read_judges(plan, study_dir)
    malicious = [c.name for c in plan.config.concepts.malicious]
    require_judges(readings, malicious, plan.config.scoring.least_auc)
    return readings


def sample(steps: Iterable[Step], measure: str, study_dir: Path) -> Sample:
    """The scores that a measure gave to the images of one attack; `steps` has one evaluate step a seed."""
    tables = [numbers(step.folder(study_dir)) for step in steps]
    marks = tuple(int(k) for k in sorted(tables[0]["step"].unique()))
    values = [
        [table.loc[table["step"] == k, measure].to_numpy(float) for k in marks] for table in tables
    ]
    return Sample(np.array(values), marks)


def of_seeds(
    attacks: Mapping[tuple[str, str, int], Step], unit: Unit, seeds: Sequence[int] | None = None
) -> list[Step]:
    """The steps of one concept and attack, in the order of their seeds."""
    found = {key[2]: step for key, step in attacks.items() if key[:2] == unit}
    return [step for seed, step in sorted(found.items()) if seeds is None or seed in seeds]


@lru_cache(maxsize=4096)
def numbers(folder: Path) -> pd.DataFrame:
    """The scores of a finished step without the findings. The table is shared: callers must not change it."""
    path = folder / "scores.parquet"
    columns = [name for name in read_schema(path).names if not name.endswith("/findings")]
    return pd.read_parquet(path, columns=columns)


def _ruler(plan: Plan, study_dir: Path, unit: Unit, measure: str) -> Ruler:
    concept, attack = unit
    controls: dict[str, list[Step]] = {}
    for key, steps in sorted(plan.controls.items()):
        if key[:2] == unit:
            for name, step in steps.items():
                controls.setdefault(name, []).append(step)
    return Ruler(
        undefended=sample(of_seeds(plan.undefended.attacks, unit), measure, study_dir),
        controls={n: sample(steps, measure, study_dir) for n, steps in controls.items()},
        chance=numbers(plan.chance_similarity[concept].folder(study_dir))[measure].to_numpy(float),
        purpose=f"{concept}/{attack}/{measure}",
        seed=plan.config.seed,
    )


def _why_not(ruler: Ruler, config: StudyConfig) -> str | None:
    """The reason why a ruler can't be used to judge, or None if it can."""
    if config.scoring.least_rise <= 0:
        return None
    nearer = ruler.nearer_control()
    if nearer is not None:
        return f"learning {nearer!r} instead brings the images nearer to the concept than its own images do"
    if ruler.rise < config.scoring.least_rise:
        return (
            f"the undefended attack reaches {float(ruler.top.point):.3f} and the floor "
            f"{float(ruler.floor.point):.3f}, {ruler.rise:.1f} standard errors apart; "
            f"{config.scoring.least_rise:g} are needed"
        )
    return None
