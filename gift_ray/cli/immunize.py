"""Immunize with one setting, attack the result and score it, without a search and without the registry.

    gift-ray immunize configs/builtin/multi_concept.yaml concepts.mode=joint [key=value ...]
    ray job submit -- python jobs/immunize.py CONFIG --matrix

`concepts.mode`: per_concept (a model for each malicious concept), joint (one trained against all), or
merge (one merged from those for each). `concepts.added=[NAME]` continues from the joint model of the other
concepts. --matrix attacks every model with every malicious concept.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from gift_ray.cli import console
from gift_ray.cli.console import LiveProgress, say
from gift_ray.cli.judge_first import judge_first, require_yardstick
from gift_ray.cluster.run import ray_executor
from gift_ray.records.record import write_json_atomic
from gift_ray.records.release import export
from gift_ray.report.summary import arm_summary
from gift_ray.study import memory
from gift_ray.study.immunization import before_added
from gift_ray.study.load import check_data, load_study
from gift_ray.study.plan import Plan, plan
from gift_ray.study.step import closure
from gift_ray.verdict.comparison import as_text
from gift_ray.verdict.multi_concept import cost, matrix, regressions, standing
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    config = load_study(arguments.config, arguments.overrides)
    layout = plan(config, matrix=arguments.matrix)
    # The effect of an added concept on the earlier ones is measured against the model without it.
    before = plan(before_added(config)) if config.concepts.added else None
    steps = closure([*layout.steps(), *(before.steps() if before else ())])
    if arguments.dry_run:
        for step in steps:
            say(f"{step.name}  {step.label}")
        for line in memory.described(config):
            say(line)
        return console.OK
    check_data(config)

    study_dir = config.study_dir
    say(f"immunizing {config.name} ({config.concepts.mode}) in {study_dir}")
    with (
        ray_executor(config.cluster, study_dir) as executor,
        LiveProgress(executor.events, len(steps)) as progress,
    ):
        # The judges are checked first, then the undefended model: an attack from which that learns nothing
        # could not show resistance.
        judge_first([layout], executor.run, progress.say)
        executor.run(layout.shared())
        require_yardstick(layout)
        executor.run(steps)
    write_results(layout, before, study_dir)
    return console.OK


def write_results(layout: Plan, before: Plan | None, study_dir: Path) -> None:
    """Print and write the verdicts and tables, and write the models as diffusers folders."""
    models = []
    yardstick = Yardstick.of(layout, study_dir)
    for arm in layout.defended:
        card = scorecard(yardstick, arm)
        folder = export(layout, arm, card, layout.config.defense.options, study_dir)
        models.append({**arm_summary(yardstick, arm), "folder": str(folder)})
        say(f"{arm.label}: {folder}")
        console.console.print(console.verdict(asdict(card)))

    mode = layout.config.concepts.mode
    row = {"mode": mode, **standing(layout, yardstick), **cost(layout, study_dir)}
    table = matrix(layout, yardstick)
    for text in (table, pd.DataFrame([row])):
        console.console.print(as_text(text, "md"), markup=False)
    path = study_dir / f"immunize-{mode}.json"
    found = {**row, "matrix": table.astype(object).where(table.notna(), None).to_dict("records")}
    if before:
        changes = regressions(Yardstick.of(before, study_dir), yardstick)
        console.console.print(as_text(changes, "md"), markup=False)
        found["regressions"] = changes.to_dict("records")
    write_json_atomic(path, {**found, "released": models})
    say(f"summary      {path}")
