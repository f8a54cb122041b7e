"""Compare all defenses of a study under all of its attacks: scores, tables and curves.

    gift-ray benchmark configs/builtin/objects.yaml [key=value ...] [--dry-run]
    ray job submit -- python jobs/benchmark.py configs/paper/objects.yaml

The arms are the undefended model, the study's `defense` and its `rivals`. Running it again continues where it
was.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from gift_ray.cli import console
from gift_ray.cli.console import LiveProgress, say
from gift_ray.cli.judge_first import describe_judging, judge_first
from gift_ray.cluster.run import ray_executor
from gift_ray.records.record import write_json_atomic
from gift_ray.report.eval_unlearn import write_reports
from gift_ray.report.outline import write_comparison, write_yardstick
from gift_ray.report.page import write_report
from gift_ray.report.summary import judges_table, summarize_comparison
from gift_ray.study.load import check_data, load_study
from gift_ray.study.plan import Plan
from gift_ray.study.step import Step
from gift_ray.verdict import comparison, retention
from gift_ray.verdict.yardstick import Yardstick


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    config = load_study(arguments.config, arguments.overrides)
    plans = comparison.layouts(config)
    steps = comparison.steps(plans)
    if arguments.dry_run:
        return describe(plans, steps, config.study_dir)
    check_data(config)

    study_dir, folder = config.study_dir, config.study_dir / "benchmark"
    say(f"benchmark {config.name} in {study_dir}: {', '.join(plans)}")
    with ray_executor(config.cluster, study_dir) as executor:
        write_comparison(config, plans, folder)
        undefended = plans["undefended"]
        with LiveProgress(executor.events, len(steps)) as progress:
            # First the judges, then the undefended model, with which all arms are compared. An attack that
            # teaches it nothing can't show resistance, and is set aside before hours are spent on it.
            judge_first([undefended], executor.run, progress.say)
            executor.run(undefended.shared())
            yardstick = Yardstick.of(undefended, study_dir)
            retention.probes(yardstick, undefended.undefended, ())
            units = comparison.set_aside(yardstick)
            plans = comparison.without(plans, units)

            # A model that can't be trained is a result too; the others continue.
            failed: dict[str, str] = {}
            executor.run(
                comparison.steps(plans),
                on_failed=lambda step, error: failed.update({step.fingerprint: str(error)}),
            )  # fmt: skip
            plans = comparison.without(plans, failed=failed)

    # Tables and the page show what can be judged, and name what can't.
    aside = [*units.values(), *failed.values()]
    for reason in aside:
        say(f"set aside    {reason}")
    fingerprint = write_comparison(config, plans, folder, aside)
    write_yardstick(yardstick, folder)
    tables = write_tables(plans, yardstick, aside, folder)
    summary = summarize_comparison(plans, yardstick, fingerprint, tables)
    write_json_atomic(folder / "summary.json", summary)
    say(f"tables       {folder}")
    say(f"report       {write_report(folder)}")
    return console.OK


def describe(plans: dict[str, Plan], steps: list[Step], study_dir: Path) -> int:
    """What would be computed, without computing it."""
    todo = [step for step in steps if not step.folder(study_dir).exists()]
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(s.kind for s in todo).items())
    say(f"arms: {', '.join(plans)}")
    concepts = plans["undefended"].config.concepts
    say(f"concepts: {', '.join(concept.name for concept in concepts.malicious)}")
    say(f"{len(steps)} steps, {len(todo)} to do ({counts})")
    describe_judging(plans["undefended"])
    return console.OK


def write_tables(
    plans: dict[str, Plan], yardstick: Yardstick, set_aside: list[str], folder: Path
) -> dict[str, pd.DataFrame]:
    """Write scores.parquet with all curves, and the tables as Markdown, CSV and LaTeX.

    Returns the tables that are shown.
    """
    config, study_dir = yardstick.config, yardstick.study_dir
    comparison.points(plans, study_dir).to_parquet(folder / "scores.parquet")
    rows, kept = comparison.units(plans, yardstick), comparison.retained(plans, yardstick)
    # The others are compared with the study's own defense, unless none of its models could be trained.
    reference = next(n for n in (config.defense.title, *list(plans)[1:]) if n in plans)
    tables: dict[str, pd.DataFrame] = {
        "standings": comparison.standings(rows, kept, config.seed),
        "differences": comparison.differences(rows, kept, reference, config.seed),
        "units": rows,
        "retention": kept,
        "judges": pd.DataFrame(judges_table(yardstick)),
        "costs": comparison.costs(plans, study_dir).reset_index(),
        "set_aside": pd.DataFrame({"reason": set_aside}),
    }
    for name, table in tables.items():
        for kind in ("md", "csv", "tex"):
            (folder / f"{name}.{kind}").write_text(comparison.as_text(table, kind), "utf-8")
    settings = config.model_dump(mode="json", exclude={"output_dir", "cluster", "tracking"})
    arms = [arm for layout in plans.values() for arm in layout.defended]
    concepts_of = {", ".join(arm.malicious): arm.malicious for arm in arms}
    write_reports(rows, kept, concepts_of, settings, time.time(), folder / "eval-unlearn")
    shown = {name: tables[name] for name in ("judges", "standings", "differences", "costs")}
    for table in shown.values():
        console.console.print(comparison.as_text(table, "md"), markup=False)
    return shown
