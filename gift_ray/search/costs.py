"""What a study costs: what its finished steps took, by their records, and an estimate for the others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gift_ray.plugins import Plugin
from gift_ray.records.record import (
    Record,
    canonical,
    is_done,
    provenance,
    read_claim,
    write_json_atomic,
)
from gift_ray.records.trials import Trial
from gift_ray.search.calibration import Rates, calibrate, key
from gift_ray.study.plan import Plan
from gift_ray.study.step import Step

ESTIMATE = "estimate.json"


@dataclass(frozen=True)
class Estimate:
    """The seconds that some steps take together, and the largest peak memory of one of them, in bytes.

    `recorded` counts the steps that are estimated from a record, `unknown` those for which there is neither a
    record nor a measurement.
    """

    seconds: float
    peak_memory_bytes: int
    recorded: int
    unknown: int


def seconds(steps: Iterable[Step], study_dir: Path, clock: str = "seconds") -> float:
    """Seconds (or `cpu_seconds`) that the finished ones of these steps took, each counted once."""
    folders = {step.folder(study_dir) for step in steps}
    return sum(float(read_claim(f).provenance[clock]) for f in sorted(folders) if is_done(f))


def trained_plugins(steps: Iterable[Step]) -> list[Plugin]:
    """The plug-ins that train in these steps, each once."""
    return list({key(p): p for step in steps for p in step.trained_plugins()}.values())


def estimate(steps: Sequence[Step], study_dir: Path, rates: Rates | None) -> Estimate:
    """What these steps take.

    A finished step counts with what it took; others with what steps like it took in this study, or else by
    the measured rates.
    """
    records = [read_claim(path.parent) for path in (study_dir / "steps").glob("*/record.json")]
    own = {record.fingerprint: record for record in records}
    like: dict[str, list[Record]] = {}
    for record in records:
        like.setdefault(_likeness(record.identity), []).append(record)
    total, peaks, recorded, unknown = 0.0, [0], 0, 0
    for step in steps:
        known = (
            [own[step.fingerprint]]
            if step.fingerprint in own
            else like.get(_likeness(step.full_identity))
        )
        if known:
            recorded += 1
            total += fmean(r.provenance["seconds"] for r in known)
            peaks += [r.provenance.get("peak_memory_bytes", 0) for r in known]
        elif rates:
            todo = step.work()
            total += sum(rates.training[key(plugin)] for plugin in step.trained_plugins())
            total += rates.draw * todo.drawn + rates.measure * todo.measured
            peaks.append(rates.peak_memory_bytes)
        else:
            unknown += 1
    return Estimate(total, max(peaks), recorded, unknown)


def _likeness(identity: Mapping[str, Any]) -> str:
    """What steps of equal cost share: kind, plug-in and lengths, but not rates, seeds or prompts."""
    plugin = identity.get("defense") or identity.get("attack") or {}
    sizes = [plugin.get(n) for n in ("name", "defenses", "max_train_steps", "train_batch_size")]
    asked = [len(identity.get(name, ())) for name in ("prompts", "asked")]
    return canonical([identity["kind"], sizes, asked, identity.get("drawing")])


def forecast(
    layout: Plan, each: Sequence[Step], confirming: Sequence[Step], fingerprint: str
) -> list[str]:
    """What a search will take, in lines; kept in the study's folder, for the run to say how far off it was.

    Args:
        each: the steps of one trial that others don't share.
        confirming: the steps that only the confirmation of the best settings needs.
    """
    config = layout.config
    assert config.search is not None
    trials, study_dir = config.search.num_samples, config.study_dir
    parts = {"once": layout.shared(), "each trial": each, "confirming": confirming}
    found = {name: estimate(steps, study_dir, None) for name, steps in parts.items()}
    source = f"{sum(part.recorded for part in found.values())} units of this study"
    if any(part.unknown for part in found.values()):
        if config.cluster.gpus_per_unit and not torch.cuda.is_available():
            return ["cost: unknown; units ask for a GPU, and this machine has none to be timed on"]
        rates = calibrate(
            config, trained_plugins(step for steps in parts.values() for step in steps)
        )
        source += f" and a calibration on {provenance()['device']}"
        found = {name: estimate(steps, study_dir, rates) for name, steps in parts.items()}

    once, one, last = (found[name].seconds for name in parts)
    study_dir.mkdir(parents=True, exist_ok=True)
    kept = {"fingerprint": fingerprint, "once": once, "each": one}
    write_json_atomic(study_dir / ESTIMATE, kept)
    total = once + trials * one + last
    peak = max(part.peak_memory_bytes for part in found.values()) / 2**30
    return [
        *(_in_words(name, steps, found[name]) for name, steps in parts.items() if steps),
        f"{trials} trials, none pruned: {total / 3600 * (config.cluster.gpus_per_unit or 1):.2f} "
        f"{'GPU' if config.cluster.gpus_per_unit else 'unit'}-hours, a unit's peak memory {peak:.1f} GiB "
        f"(from {source})",
    ]


def _in_words(name: str, steps: Sequence[Step], found: Estimate) -> str:
    todo = [step.work() for step in steps]
    training, drawn = (sum(getattr(w, part) for w in todo) for part in ("training_steps", "drawn"))
    return f"{name}: {training} training steps, {drawn} images, {found.seconds:.0f} s"


def account(layout: Plan, fingerprint: str, trials: Sequence[Trial]) -> list[str]:
    """What a search took, in lines: compared with separate runs, with the estimate and with its budget."""
    search, study_dir = layout.config.search, layout.config.study_dir
    assert search is not None
    once = seconds(layout.shared(), study_dir)
    spent = once + sum(trial.seconds for trial in trials)
    whole = [trial.seconds for trial in trials if trial.state == "complete"]
    lines = [
        f"cost         {spent / 60:.1f} unit-minutes, {once / 60:.1f} of them once, "
        f"for {len(trials)} trials, {len(whole)} to their end"
    ]
    if whole:
        cold = len(trials) * (once + fmean(whole))
        lines[0] += f"; {spent / cold:.2f} of as many cold runs"
    path = study_dir / ESTIMATE
    said = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if said.get("fingerprint") == fingerprint:
        guess = said["once"] + len(trials) * said["each"]
        lines.append(
            f"estimated    {guess / 60:.1f} unit-minutes with none pruned: {guess / spent:.2f} of the cost"
        )
    if len(trials) < search.num_samples:
        lines.append(
            f"budget       the {search.budget_hours} hours are spent after {len(trials)} of "
            f"{search.num_samples} trials; with a larger search.budget_hours the same command continues"
        )
    return lines
