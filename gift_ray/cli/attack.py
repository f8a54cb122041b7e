"""Attack anyone's checkpoint and score it: what an attacker regains, and what honest users have lost.

    gift-ray attack configs/demo.yaml --model CHECKPOINT [--variant fp16] [key=value ...] [--dry-run]

CHECKPOINT is a hub id, a diffusers folder, a single .safetensors, or a delta of the study's base model (of
ESD and UCE as .safetensors, of IMMA and MIMA as .pt). The study gives the concepts, attacks and measures.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from gift_ray.cli import console
from gift_ray.cli.console import LiveProgress, say
from gift_ray.cli.judge_first import judge_first, require_yardstick
from gift_ray.cluster.run import ray_executor
from gift_ray.config.absolute import absolute
from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.models.checkpoints import checkpoint_hash
from gift_ray.records.record import write_json_atomic
from gift_ray.report.outline import write_comparison, write_yardstick
from gift_ray.report.page import write_report
from gift_ray.report.summary import arm_summary, summarize_comparison
from gift_ray.study.load import check_data, load_study
from gift_ray.verdict import comparison
from gift_ray.verdict.scorecard import scorecard


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    # The checkpoint takes the place of the study's defense; the plan and the undefended arm are the same.
    study = load_study(arguments.config, arguments.overrides)
    config = against(study, arguments.model, arguments.variant)
    plans = comparison.layouts(config)
    *_, layout = plans.values()
    if arguments.dry_run:
        for step in layout.steps():
            say(f"{step.name}  {step.label}")
        return console.OK
    check_data(config)

    study_dir = config.study_dir
    folder = study_dir / f"attack-{checkpoint_hash(arguments.model, arguments.variant)[:16]}"
    say(f"attacking {arguments.model}; study {config.name} in {study_dir}")
    with ray_executor(config.cluster, study_dir) as executor:
        fingerprint = write_comparison(config, plans, folder)
        with LiveProgress(executor.events, len(layout.steps())) as progress:
            judge_first([layout], executor.run, progress.say)
            executor.run(layout.shared())
            yardstick = require_yardstick(layout)
            executor.run(layout.steps())

    (arm,) = layout.defended
    card = scorecard(yardstick, arm)
    write_yardstick(yardstick, folder)
    console.console.print(console.verdict(asdict(card)))
    path = folder.with_suffix(".json")
    write_json_atomic(path, {"model": arguments.model, **arm_summary(yardstick, arm)})
    rows, kept = comparison.units(plans, yardstick), comparison.retained(plans, yardstick)
    tables = {"standings": comparison.standings(rows, kept, config.seed)}
    write_json_atomic(
        folder / "summary.json", summarize_comparison(plans, yardstick, fingerprint, tables)
    )
    say(f"summary      {path}")
    say(f"report       {write_report(folder)}")
    return console.OK


def against(config: StudyConfig, model: str, variant: str | None = None) -> StudyConfig:
    """The study with a finished model in place of its defense; as it is one model, the mode is `joint`."""
    chosen = {"variant": variant} if variant else {}
    return config.model_copy(
        update={
            "defense": DefenseConfig(
                name="checkpoint",
                label=Path(absolute(model)).name[-80:],
                path=absolute(model),
                **chosen,
            ),
            "rivals": (),
            "concepts": config.concepts.model_copy(update={"mode": "joint"}),
        }
    )
