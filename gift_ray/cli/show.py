"""Show what a study found: its trials, the verdict on each model, and a benchmark's standings.

    gift-ray show runs/demo

A study that is still running, or was stopped, shows the trials that have ended.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from gift_ray.cli import console
from gift_ray.cli.console import say
from gift_ray.errors import DataError


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    folder = Path(arguments.study)
    standings = folder / "benchmark" / "standings.md"
    if standings.exists():
        say(standings.read_text(encoding="utf-8"))
    single = _single_models(folder)
    for title, model in single:
        say(title)
        console.console.print(console.verdict(model["scorecard"]))
    study = _read(folder / "study.json")
    if study is None and (single or standings.exists()):
        return console.OK
    if study is None:
        raise DataError(
            f"{folder}: nothing of a study is there; give the folder of one that was run, as runs/demo"
        )
    trials = [_read(path) for path in sorted((folder / "trials").glob("*.json"))]
    rows = [t for t in trials if t and t["fingerprint"] == study["fingerprint"]]
    searched = list(study["config"]["search"]["space"]) if study["config"]["search"] else []
    console.console.print(console.leaderboard(rows, searched))

    # A summary of an earlier configuration says nothing about this one.
    summary = _read(folder / "summary.json")
    if summary is None or summary["fingerprint"] != study["fingerprint"]:
        say(f"not finished: {len(rows)} trials have ended; the same command continues")
        return console.OK
    console.console.print(console.table("verdicts", [verdict(m) for m in summary["chosen"]]))
    # Printed on lines of their own, since a table would break paths that are to be copied.
    for model in summary["chosen"]:
        if model["registered"]:
            say(f"registered   {model['registered']['uri']}")
        if model.get("folder"):
            say(f"model        {model['folder']}")
    say(f"report       {folder / 'report.html'}")
    return console.OK


def _single_models(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """The models of `gift-ray immunize` and those of `gift-ray attack`, each with what it is called."""
    found = []
    for path in sorted(folder.glob("immunize-*.json")):
        for model in (_read(path) or {}).get("released", ()):
            found.append((f"immunized    {model['folder']}", model))
    for path in sorted(folder.glob("attack-*.json")):
        if model := _read(path):
            title = (
                f"attacked     {model['model']} (report: {path.with_suffix('') / 'report.html'})"
            )
            found.append((title, model))
    return found


def verdict(model: dict[str, Any]) -> dict[str, str]:
    """One released model as a row: the score that the gate read, and the outcome."""
    score, bias = model.get("confirmed") or model, model.get("selection_bias") or {}
    return {
        "model": ", ".join(model["malicious"]),
        "trial": model.get("trial_id", ""),
        **{name: f"{score[name]:.3f}" if name in score else "" for name in console.VERDICT},
        "verdict": "; ".join(in_bounds(*pair) for pair in model.get("concepts", {}).items()),
        "search was off by": f"{bias['objective']:+.3f}" if bias else "",
        "outcome": "registered" if model["registered"] else f"refused: {model['refused']}",
    }


def in_bounds(concept: str, found: dict[str, Any]) -> str:
    """One concept's verdict with the bounds of its recovery."""
    recovery = found["recovery"]
    return f"{concept} {found['verdict']} ({recovery['low']:.2f} to {recovery['high']:.2f})"


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON file of the study, or None if there is no such file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DataError(f"{path}: not readable ({error}); run the study again") from error
