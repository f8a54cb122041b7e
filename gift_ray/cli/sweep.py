"""Search a study's options for the best trade-off, track every trial, and register what passes the gate.

    gift-ray sweep configs/demo.yaml [key=value ...] [--dry-run]
    ray job submit -- python jobs/sweep.py configs/demo.yaml

Running it again continues where it was: finished steps are not computed again.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from typing import Any

from gift_ray.cli import console
from gift_ray.cli.console import VERDICT, LiveProgress, leaderboard, say
from gift_ray.cli.judge_first import describe_judging, judge_first, require_yardstick
from gift_ray.cluster.run import ray_executor
from gift_ray.cluster.tune import Trial, search
from gift_ray.config.names import slug
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import GateRefused
from gift_ray.records.record import digest, write_json_atomic
from gift_ray.records.release import export, registry_tags
from gift_ray.records.storage import require_writable
from gift_ray.report.outline import write_study, write_trial, write_yardstick
from gift_ray.report.page import write_report
from gift_ray.report.series import attack_series
from gift_ray.report.summary import arm_summary, mean_curves, summarize, trial_curves
from gift_ray.search import costs
from gift_ray.search.confirm import Judgement, finalists, held_out, judge
from gift_ray.study import battery, memory
from gift_ray.study.load import check_data, configure, load_study
from gift_ray.study.plan import Arm, Plan, plan
from gift_ray.study.protocol import verdict_id
from gift_ray.study.step import Step, closure
from gift_ray.tracking.tracker import Tracker, open_tracker
from gift_ray.verdict.yardstick import Yardstick


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    # Everything that can be wrong is found here, before a worker starts and before a file is written.
    config = load_study(arguments.config, arguments.overrides, searched=True)
    assert config.search is not None
    layout, examined = plan(config), plan(held_out(config))
    # A search with more trials, or with more of them at a time, is the same search.
    length = {"num_samples", "max_concurrent_trials", "budget_hours", "warm_start"}
    apart: Any = dict.fromkeys(("cluster", "output_dir", "confirm", "gate", "report"), True)
    fingerprint = digest([config.model_dump(mode="json", exclude=apart | {"search": length}),
                          [step.fingerprint for step in layout.steps()]])  # fmt: skip
    if arguments.dry_run:
        return describe(layout, examined, fingerprint)
    check_data(config)

    say(f"study {config.name} in {config.study_dir}")
    require_writable(config.study_dir)
    with open_tracker(config, fingerprint) as tracker:
        chosen = run_search(layout, examined, tracker, fingerprint)
    if not any(model["registered"] for model in chosen):
        raise GateRefused(*(f"gate: {', '.join(m['malicious'])}: {m['refused']}" for m in chosen))
    return console.OK


def run_search(
    layout: Plan, examined: Plan, tracker: Tracker, fingerprint: str
) -> list[dict[str, Any]]:
    """Run the search, its confirmation and its report; returns the outcome of each released model."""
    config, study_dir = layout.config, layout.config.study_dir
    assert config.search is not None

    # The steps that all trials share are computed once: data, embeddings, the undefended arm, chance levels.
    with ray_executor(config.cluster, study_dir) as executor:
        write_study(layout, fingerprint)
        with LiveProgress(executor.events, expected_units(layout, examined)) as progress:
            judge_first([layout, examined], executor.run, progress.say)
            executor.run([*layout.shared(), *examined.shared()])
            yardstick, _ = [require_yardstick(undefended) for undefended in (layout, examined)]
            write_yardstick(yardstick, study_dir)
            tracker.undefended(
                mean_curves([layout.undefended], study_dir),
                attack_series(layout, layout.undefended),
            )

            # A trial is one setting. It is tracked when it ends; trials that an earlier driver could not
            # track, because it was killed, are tracked after the search.
            def on_trial(trial: Trial) -> None:
                track(tracker, config, trial, fingerprint)
                for arm in trial.arms:
                    against = ", ".join(arm["malicious"])
                    progress.scored(against, arm["objective"], f"trial {trial.trial_id}")
                for line in verdicts_of(trial):
                    progress.say(f"trial {trial.trial_id}: {line}")

            trials = search(config, executor.board, on_trial, fingerprint)
            for trial in trials:
                track(tracker, config, trial, fingerprint)

            # The score by which a setting was chosen is too high, so the gate reads the score under attacks
            # that the search has not seen.
            rows = [asdict(trial) for trial in trials]
            judged = judge(finalists(config, rows), executor.run)

    for line in costs.account(layout, fingerprint, trials):
        say(line)

    # The best finalist of each released model is registered if it has passed the gate.
    console.console.print(leaderboard(rows, list(config.search.space)))
    chosen = [choose(arm, judged, tracker) for arm in layout.defended]
    write_json_atomic(study_dir / "summary.json", summarize(yardstick, fingerprint, rows, chosen))
    conclude(config, tracker, chosen)
    return chosen


def verdicts_of(trial: Trial) -> list[str]:
    """One line for each model of a trial, or the reason why the trial ended without one."""
    return [
        f"{', '.join(arm['malicious'])}: resistance {arm['resistance']:.3f}, "
        f"retention {arm['retention']:.3f}"
        for arm in trial.arms
    ] or [trial.reason]


def expected_units(layout: Plan, examined: Plan) -> int:
    """The number of units of the whole search and its confirmation, if no two trials share any."""
    search, confirm = layout.config.search, layout.config.confirm
    assert search is not None
    shared = {step.name for step in closure([*layout.shared(), *examined.shared()])}
    per_setting, confirmed = (
        len({step.name for arm in each.defended for step in arm.steps()} - shared)
        for each in (layout, examined)
    )
    confirming = confirm.top_k * confirmed if confirm else 0
    return len(shared) + search.num_samples * per_setting + confirming


def describe(layout: Plan, examined: Plan, fingerprint: str) -> int:
    """Print what would be computed and what it would cost. This computes a few training steps at most."""
    config = layout.config
    assert config.search is not None
    shared = {step.fingerprint for step in layout.shared()}
    each = [s for arm in layout.defended for s in arm.steps() if s.fingerprint not in shared]
    say(f"search {fingerprint[:16]} of {config.name} in {config.study_dir}")
    confirming = only_confirmed(layout, examined)
    for title, steps in (
        ("once", layout.shared()),
        ("each trial", each),
        ("confirming", confirming),
    ):
        counts = ", ".join(f"{n} {kind}" for kind, n in Counter(s.kind for s in steps).items())
        say(f"{title}: {len(steps)} steps ({counts})")
        for step in steps:
            done = "done" if step.folder(config.study_dir).exists() else "to do"
            say(f"  {step.name}  {done:6}{step.label}")
    describe_judging(examined)
    for line in [
        *battery.described(config),
        *memory.described(config),
        *costs.forecast(layout, each, confirming, fingerprint),
    ]:
        say(line)
    return console.OK


def only_confirmed(layout: Plan, examined: Plan) -> list[Step]:
    """The steps that a confirmation adds to the search: its undefended arm, and each finalist's own steps."""
    confirm = layout.config.confirm
    searched = {step.fingerprint for step in layout.steps()}
    once = {step.fingerprint: step for step in examined.shared()}
    own = [
        step
        for arm in examined.defended
        for step in arm.steps()
        if step.fingerprint not in searched | once.keys()
    ]
    added = [step for fingerprint, step in once.items() if fingerprint not in searched]
    return [*added, *(own * confirm.top_k if confirm else [])]


def track(tracker: Tracker, config: StudyConfig, trial: Trial, fingerprint: str) -> None:
    """Write one trial to the tracker and to the study's folder: its settings, verdicts, curves and images."""
    metrics = {
        "objective": trial.objective,
        "resistance": trial.resistance,
        "retention": trial.retention,
    }
    tags = {"feasible": str(trial.feasible), "reason": trial.reason}
    layout = plan(configure(config, trial.values))
    curves = trial_curves(layout, config.study_dir)
    images = (one for arm in layout.defended for one in attack_series(layout, arm))
    link = tracker.trial(trial.trial_id, trial.values, metrics, curves, tags, images)
    write_trial(layout, asdict(trial), link, fingerprint)


def choose(arm: Arm, judged: list[Judgement], tracker: Tracker) -> dict[str, Any]:
    """The outcome of one released model: its best finalist, which is registered if it passes the gate."""
    own = [j for j in judged if j.finalist.arm.malicious == arm.malicious]
    if not own:
        return {
            "malicious": list(arm.malicious),
            "registered": None,
            "refused": "no trial left a model to judge",
        }
    for judgement in own:
        say(f"gate         {', '.join(arm.malicious)}: {judgement}")
    best = max(own, key=lambda judgement: judgement.rank)
    released = {"registered": None} if best.refusals else release(best, tracker)
    return best.summary() | released


def release(judgement: Judgement, tracker: Tracker) -> dict[str, Any]:
    """Export and register a finalist that passed the gate."""
    finalist, card = judgement.finalist, judgement.card
    assert card is not None, "what was not measured does not pass"
    layout, arm, config = finalist.plan, finalist.arm, finalist.plan.config
    folder = export(layout, arm, card, finalist.values, config.study_dir)
    name = config.tracking.registered_model_name or f"gift-ray-{config.name}"
    if len(layout.defended) > 1:
        name += "-" + slug("-".join(arm.malicious))
    tags = registry_tags(layout, arm, card)
    version = tracker.register(name, folder, card.objective, verdict_id(config), tags)
    say(f"registered   {version.uri}{'  (champion)' if version.champion else ''}")
    say(f"model folder {folder}")
    return {"registered": asdict(version), "folder": str(folder),
            **arm_summary(Yardstick.of(layout, config.study_dir), arm)}  # fmt: skip


def conclude(config: StudyConfig, tracker: Tracker, chosen: list[dict[str, Any]]) -> None:
    """Give the study's outcome to the tracker, and say where everything is."""
    summary = config.study_dir / "summary.json"
    metrics = {
        f"{kind}/{slug(', '.join(model['malicious']))}/{name}": value
        for model in chosen
        for kind, score in (
            ("best", {name: model[name] for name in VERDICT if name in model}),
            ("confirmed", model.get("confirmed", {})),
            ("selection_bias", model.get("selection_bias", {})),
        )
        for name, value in score.items()
    }
    passed = [model for model in chosen if model["registered"]]
    report = write_report(config.study_dir)
    tracker.summary(metrics, {"gate": f"{len(passed)} of {len(chosen)} passed"}, [summary, report])
    say(f"summary      {summary}")
    say(f"report       {report}")
    if tracker.how_to_look():
        say(f"mlflow       {tracker.how_to_look()}")
