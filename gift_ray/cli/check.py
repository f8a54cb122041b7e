"""Check that a study can tell a defended model from an undefended one: its judges, controls, bounds and cost.

    gift-ray check configs/demo.yaml [key=value ...] [--judges] [--damage 0.05] [--dry-run]

The positive control: every attack must bring the undefended model above the floor. The negative controls must
not be called resistant: the base itself, the base with its weights rescaled to the same function (`rescale`),
and a randomly damaged model (`damage`). --judges stops after the judges' check, which trains nothing.
"""

from __future__ import annotations

import argparse

import pandas as pd

from gift_ray.cli import console
from gift_ray.cli.console import LiveProgress, say
from gift_ray.cli.judge_first import describe_judging, judge_first, require_yardstick
from gift_ray.cluster.run import ray_executor
from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.search import costs
from gift_ray.study.load import check_data, load_study
from gift_ray.study.plan import plan
from gift_ray.verdict import comparison
from gift_ray.verdict.verdict import RESISTS
from gift_ray.verdict.yardstick import Yardstick


def main(arguments: argparse.Namespace) -> int:
    """Check a study; returns the exit code.

    Raises:
        ConfigError: the judges can't read a concept, an attack teaches nothing, or a negative control is
            called resistant.
    """
    config = load_study(arguments.config, arguments.overrides)
    plans = comparison.layouts(with_negative_controls(config, arguments.damage))
    undefended, steps = plans["undefended"], comparison.steps(plans)
    describe_judging(undefended)
    study = plan(config)
    estimated = costs.estimate(study.steps(), config.study_dir, None)
    say(
        f"cost: the check has {len(steps)} steps; one setting of the study has {len(study.steps())}, of "
        f"which {estimated.recorded} are known to take {estimated.seconds:.0f} s"
    )
    if arguments.dry_run:
        return console.OK
    check_data(config)

    study_dir = config.study_dir
    with (
        ray_executor(config.cluster, study_dir) as executor,
        LiveProgress(executor.events, len(steps)) as progress,
    ):
        judge_first([undefended], executor.run, progress.say)
        if arguments.judges:
            return console.OK
        executor.run(undefended.shared())
        yardstick = Yardstick.of(undefended, study_dir)
        show("positive control", floors(yardstick))
        require_yardstick(undefended)
        executor.run(steps)
    controls = {name: layout for name, layout in plans.items() if name != "undefended"}
    rows, kept = (made(controls, yardstick) for made in (comparison.units, comparison.retained))
    columns = ["arm", "concept", "attack", "verdict", "resistance", "low", "high"]
    show("negative controls", rows[columns])
    show("what they keep", kept.pivot_table("retention", "arm", "group").reset_index())
    fooled = rows[rows["verdict"] == RESISTS]
    if len(fooled):
        raise ConfigError(
            *(
                f"attacks: {row.attack} calls {row.arm!r}, a negative control, resistant for "
                f"{row.concept!r}: attack at other learning rates and for longer as well"
                for row in fooled.itertuples()
            )
        )
    say("the judges read, the attacks teach, and no negative control is called resistant")
    return console.OK


def with_negative_controls(config: StudyConfig, size: float) -> StudyConfig:
    """The study with the negative controls in place of its defenses.

    Each of them is one model for all concepts.
    """
    base = DefenseConfig(name="none", label="the base itself")
    others = (
        DefenseConfig(name="rescale", label="the base in other numbers"),
        DefenseConfig.model_validate({"name": "damage", "label": "damaged", "size": size}),
    )
    concepts = config.concepts.model_copy(update={"mode": "joint", "added": ()})
    return config.model_copy(
        update={"defense": base, "rivals": others, "concepts": concepts, "search": None}
    )


def floors(yardstick: Yardstick) -> pd.DataFrame:
    """How far the undefended attack rises above the floor, a row for each concept, attack and measure.

    Where a measure can't judge the attack, the row says why.
    """
    rows = [
        {"concept": concept, "attack": attack, "measure": measure,
         "floor": float(ruler.floor.point), "undefended": float(ruler.top.point),
         "standard errors": ruler.rise, "note": ""}
        for (concept, attack), rulers in yardstick.rulers.items()
        for measure, ruler in rulers.items()
    ]  # fmt: skip
    rows += [
        {"concept": concept, "attack": attack, "measure": measure, "note": why}
        for (concept, attack, measure), why in yardstick.unusable.items()
    ]
    return pd.DataFrame(rows)


def show(title: str, table: pd.DataFrame) -> None:
    """Print a table with a title."""
    say(f"\n{title}")
    console.console.print(comparison.as_text(table, "md"), markup=False)
