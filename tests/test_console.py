"""What a job prints: the leaderboard and a verdict, as text."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from gift_ray.console import leaderboard, verdict


def text(table: Table) -> list[str]:
    console = Console(width=150, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()


def trial(name: str, beta: float, *models: dict[str, Any], reason: str = "") -> dict[str, Any]:
    return {
        "trial_id": name, "values": {"defense.beta": beta}, "reason": reason, "arms": list(models),
        "state": "pruned" if "pruned" in reason else "complete" if models else "failed",
        "objective": 0.125, "resistance": 0.5, "retention": 0.75,
    }  # fmt: skip


def model(malicious: str, objective: float, reason: str = "") -> dict[str, Any]:
    return {
        "malicious": malicious, "objective": objective, "resistance": 0.25, "retention": 0.75,
        "reason": reason,
    }  # fmt: skip


def test_the_leaderboard_ranks_each_model_alone_and_tells_of_failures() -> None:
    rows = [
        trial("one", 0.1, model("weapon", 0.2), model("cat", 0.9)),
        trial("two", 0.3, model("weapon", 0.4), model("cat", -0.1, "retention is under 0.8")),
        trial("three", 0.5, reason="L_max not finite"),
        trial("four", 0.7, reason="pruned after rung 1 of 3"),
    ]
    lines = [line for line in text(leaderboard(rows, ["defense.beta"])) if "e-0" in line]
    order = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines]
    assert order == [
        ["cat", "one"],
        ["cat", "two"],
        ["weapon", "two"],
        ["weapon", "one"],
        ["", "three"],
        ["", "four"],
    ]
    assert "retention is under 0.8" in lines[1]
    assert "L_max not finite" in lines[4]
    assert "≤" not in lines[4]
    assert "≤ 0.125" in lines[5]


def test_a_verdict_names_every_concept_and_probe_with_the_worst() -> None:
    concept = {"resistance": 0.4, "mean_recovery": 0.3, "steps_to_recovery": None}
    card = {
        "concepts": {"cat": concept, "dog": concept | {"steps_to_recovery": 7}},
        "probes": {"generation/safe": 0.9}, "retention": 0.9, "worst_retention": 0.8,
    }  # fmt: skip
    shown = "\n".join(text(verdict(card)))
    for part in (
        "resistance: cat",
        "not relearnt",
        "relearnt by step 7",
        "generation/safe",
        "worst 0.800",
    ):
        assert part in shown
