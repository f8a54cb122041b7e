"""Search a study's options for the best trade-off, track every trial, register what passes the gate.

    python jobs/sweep.py configs/demo.yaml [key=value ...] [--dry-run]
    ray job submit -- python jobs/sweep.py configs/demo.yaml

Running it again continues where it was; what is finished is not computed again.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
from typing import Any

from gift_ray import console, costs
from gift_ray.cluster.board import read_board, start_board
from gift_ray.cluster.run import run_steps
from gift_ray.cluster.search import Trial, search
from gift_ray.cluster.session import session
from gift_ray.config import StudyConfig
from gift_ray.console import LiveProgress, job_parser, leaderboard, run_job, say
from gift_ray.errors import ConfigError, GateRefused
from gift_ray.plan import Arm, Plan, check_data, configure, load_study, plan, protocol_id, scorecard
from gift_ray.records import digest, write_json_atomic
from gift_ray.release import export
from gift_ray.report.outline import write_study, write_trial
from gift_ray.report.page import write_report
from gift_ray.report.summary import arm_summary, slug, summarize, trial_curves
from gift_ray.tracking.registry import register
from gift_ray.tracking.tracker import Tracker


def main(arguments: argparse.Namespace) -> int:
    # Everything that can be wrong is found here, before a worker starts and before a file is written.
    config = load_study(arguments.config, arguments.overrides)
    if config.search is None:
        raise ConfigError(f"{arguments.config}: search is missing; add a space to search")
    layout = plan(config)
    # A longer search, or one with more at a time, is the same search.
    length = {"num_samples", "max_concurrent_trials", "budget_hours", "warm_start"}
    apart: Any = dict.fromkeys(("cluster", "output_dir", "gate", "report"), True)
    fingerprint = digest([config.model_dump(mode="json", exclude=apart | {"search": length}),
                          [step.fingerprint for step in layout.steps()]])  # fmt: skip
    if arguments.dry_run:
        return describe(layout, fingerprint)
    check_data(config)

    # What every trial shares is computed once: data, embeddings, the undefended arm, chance levels.
    study_dir = config.study_dir
    say(f"study {config.name} in {study_dir}")
    with session(config.cluster, study_dir):
        board = start_board()
        tracker = Tracker(config, fingerprint)
        write_study(layout, fingerprint)
        with LiveProgress(read_board(board), expected_units(layout)) as progress:
            run_steps(layout.shared(), study_dir, config.cluster, board)
            scorecard(layout, layout.undefended, study_dir)

            # One trial is one setting; each is tracked when it ends, or now if an earlier driver
            # was killed before it could.
            def on_trial(trial: Trial) -> None:
                track(tracker, config, trial, fingerprint)
                for line in verdicts_of(trial):
                    progress.say(f"trial {trial.trial_id}: {line}")

            trials = search(config, board, on_trial, fingerprint)
            for trial in trials:
                track(tracker, config, trial, fingerprint)

    for line in costs.account(layout, fingerprint, trials):
        say(line)

    # Each released model has its own best setting, which is put to the gate, exported, registered.
    rows = [asdict(trial) for trial in trials]
    console.console.print(leaderboard(rows, list(config.search.space)))
    chosen = [choose(config, arm, trials, tracker) for arm in layout.defended]
    write_json_atomic(study_dir / "summary.json", summarize(layout, fingerprint, rows, chosen))
    conclude(config, tracker, chosen)
    if not any(model["registered"] for model in chosen):
        raise GateRefused(*(f"gate: {m['malicious']}: {m['refused']}" for m in chosen))
    return console.OK


def verdicts_of(trial: Trial) -> list[str]:
    """A trial's models in a line each; why it failed, if it has none."""
    return [
        f"{arm['malicious']}: resistance {arm['resistance']:.3f}, retention {arm['retention']:.3f}"
        for arm in trial.arms
    ] or [trial.reason]


def expected_units(layout: Plan) -> int:
    """Units of the whole search, were no two trials alike."""
    assert layout.config.search is not None
    shared = len(layout.shared())
    per_trial = sum(len(arm.steps()) for arm in layout.defended)
    return shared + layout.config.search.num_samples * per_trial


def describe(layout: Plan, fingerprint: str) -> int:
    """What would be computed and what it would cost, without computing more than a few steps of it."""
    config = layout.config
    assert config.search is not None
    shared = {step.fingerprint for step in layout.shared()}
    each = [s for arm in layout.defended for s in arm.steps() if s.fingerprint not in shared]
    say(f"search {fingerprint[:16]} of {config.name} in {config.study_dir}")
    for title, steps in (("once", layout.shared()), ("each trial", each)):
        counts = ", ".join(f"{n} {kind}" for kind, n in Counter(s.kind for s in steps).items())
        say(f"{title}: {len(steps)} steps ({counts})")
        for step in steps:
            done = "done" if step.folder(config.study_dir).exists() else "to do"
            say(f"  {step.name}  {done:6}{step.label}")
    for line in costs.forecast(layout, each, fingerprint):
        say(line)
    return console.OK


def track(tracker: Tracker, config: StudyConfig, trial: Trial, fingerprint: str) -> None:
    """One trial in MLflow and in the study's folder: its settings, its verdict, its curves."""
    metrics = {
        "objective": trial.objective,
        "resistance": trial.resistance,
        "retention": trial.retention,
    }
    tags = {"feasible": str(trial.feasible), "reason": trial.reason}
    layout = plan(configure(config, trial.values))
    curves = trial_curves(layout, config.study_dir)
    run = tracker.trial(trial.trial_id, trial.values, metrics, curves, tags)
    write_trial(layout, asdict(trial), tracker.link(run), fingerprint)


def choose(config: StudyConfig, arm: Arm, trials: list[Trial], tracker: Tracker) -> dict[str, Any]:
    """The best trial of one released model, registered if it meets the gate."""
    malicious = ", ".join(arm.malicious)
    verdicts = [(t, v) for t in trials for v in t.arms if v["malicious"] == malicious]
    if not verdicts:
        return {"malicious": malicious, "registered": None, "refused": "every trial failed"}
    # Objectives tie where nothing resists: there the model that lost least stands for all.
    best, verdict = max(verdicts, key=lambda pair: (pair[1]["objective"], pair[1]["retention"]))
    found = {"malicious": malicious, "trial_id": best.trial_id, "values": best.values, **verdict}
    refusal = refused(config, verdict)
    if refusal:
        say(f"refused      {malicious}: {refusal} (best: trial {best.trial_id})")
        return found | {"registered": None, "refused": refusal}
    return found | release(config, arm, best, tracker) | {"refused": ""}


def refused(config: StudyConfig, verdict: dict[str, Any]) -> str:
    """Why the gate refuses a model; empty if it passes."""
    if not verdict["feasible"]:
        return str(verdict["reason"])
    for name in ("resistance", "retention"):
        reached, least = verdict[name], getattr(config.gate, f"min_{name}")
        if reached < least:
            return f"{name} {reached:.3f} is under gate.min_{name} {least}"
    return ""


def release(config: StudyConfig, arm: Arm, best: Trial, tracker: Tracker) -> dict[str, Any]:
    """Export and register one model of the best trial."""
    layout = plan(configure(config, best.values))
    arm = next(other for other in layout.defended if other.malicious == arm.malicious)
    card = scorecard(layout, arm, config.study_dir)
    folder = export(layout, arm, card, best.values, config.study_dir)
    name = config.tracking.registered_model_name or f"gift-ray-{config.name}"
    if len(layout.defended) > 1:
        name += "-" + slug("-".join(arm.malicious))
    tags = {
        "concepts": ", ".join(arm.malicious),
        "defense": config.defense.title,
        "fingerprint": arm.immunize.fingerprint,
        "resistance": f"{card.resistance:.4f}",
        "retention": f"{card.retention:.4f}",
    }
    version = register(tracker, name, folder, card.objective, protocol_id(config), tags)
    say(f"registered   {version.uri}{'  (champion)' if version.champion else ''}")
    say(f"model folder {folder}")
    return {"registered": asdict(version), "folder": str(folder),
            **arm_summary(layout, arm, config.study_dir)}  # fmt: skip


def conclude(config: StudyConfig, tracker: Tracker, chosen: list[dict[str, Any]]) -> None:
    """Close the study's run and say where everything is."""
    summary = config.study_dir / "summary.json"
    metrics = {
        f"best/{slug(model['malicious'])}/{name}": model[name]
        for model in chosen
        for name in ("objective", "resistance", "retention")
        if name in model
    }
    passed = [model for model in chosen if model["registered"]]
    report = write_report(config.study_dir)
    tracker.summary(metrics, {"gate": f"{len(passed)} of {len(chosen)} passed"}, [summary, report])
    tracker.close("FINISHED")
    say(f"summary      {summary}")
    say(f"report       {report}")
    say(f"mlflow       mlflow ui --backend-store-uri {tracker.uri}")


if __name__ == "__main__":
    sys.exit(run_job(main, job_parser(__doc__ or "")))
