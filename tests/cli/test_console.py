"""What a job prints: the leaderboard and a verdict, as text."""

from __future__ import annotations

import io
import json
import threading
from dataclasses import asdict
from typing import Any

import pytest
from cards import attack, card, concept, sure
from rich.console import Console
from rich.table import Table

from gift_ray.cli.console import LiveProgress, Tally, leaderboard, verdict
from gift_ray.study.event import Event


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
        "malicious": [malicious], "objective": objective, "resistance": 0.25, "retention": 0.75,
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


def test_a_verdict_names_every_concept_and_group_with_bounds() -> None:
    concepts = {
        "cat": concept({"lora/dino": attack({0: 0.1, 9: 0.2})}),
        "dog": concept({"lora/dino": attack({0: 0.1, 7: 0.95})}),
        "fox": concept({"lora/dino": attack({0: 0.1, 7: 0.68})}),
    }
    found = card(concepts, {"safe prompts": sure(0.9, half=0.05), "neighbours": sure(0.8)})
    shown = "\n".join(text(verdict(asdict(found))))
    for part in (
        "recovery: cat",
        "0.150 to 0.250",
        "resists; lora/dino; not relearnt",
        "regained; lora/dino; relearnt by step 7",
        "not shown",
        "would settle it",
        "retention: safe prompts",
        "worst group 0.800",
    ):
        assert part in shown


def events() -> list[Event]:
    """Two units computed, one reused, one that runs on."""
    told = [
        ("started", "a", 0.0), ("started", "b", 0.0), ("done", "a", 30.0), ("started", "c", 0.0),
        ("reused", "c", 0.0), ("failed", "b", 60.0, "loss not finite"), ("started", "d", 0.0),
    ]  # fmt: skip
    return [Event(state, f"attack-{label}", label, "attack", *rest) for state, label, *rest in told]


def test_a_tally_tells_what_is_left_from_what_was_computed() -> None:
    tally = Tally(total=10, started=0.0, now=0.0)
    assert (tally.per_minute, tally.seconds_left) == (None, None)
    for event in events():
        tally.count(event)
    tally.now = 120.0
    assert (tally.ended, tally.running, tally.waiting) == (3, 1, 6)
    # Two computed in two minutes; seven are left.
    assert (tally.per_minute, tally.seconds_left) == (1.0, 420.0)
    assert "1 running, 6 waiting, 1.0 a minute, 07:00 left" in str(tally)


def test_a_unit_that_is_asked_for_again_counts_once() -> None:
    """Every job asks for the judges' check first, and for all of its units afterwards."""
    tally = Tally(total=4, started=0.0, now=0.0)
    again = [Event(s, "attack-a", "a", "attack", 0.0) for s in ("started", "reused")]
    for event in [*events(), *again]:
        tally.count(event)
    assert (tally.ended, tally.running, tally.computed) == (3, 1, 2)


def follow(monkeypatch: pytest.MonkeyPatch) -> str:
    """What a person reads of a job with these events; one model's trials are scored meanwhile."""
    heard = Console(width=200, file=io.StringIO(), soft_wrap=True)
    monkeypatch.setattr("gift_ray.cli.console.console", heard)
    scored = threading.Event()
    with LiveProgress(lambda seen: events()[seen:] if scored.is_set() else [], 10) as progress:
        for objective, trial in ((0.2, "one"), (0.5, "two"), (0.1, "three")):
            progress.scored("weapon", objective, f"trial {trial}")
        scored.set()
    return heard.file.getvalue()


def test_a_pipe_gets_a_line_for_each_unit_that_was_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = follow(monkeypatch).splitlines()
    assert ["1/10 done" in lines[0], "3/10 failed" in lines[1]] == [True, True]
    assert "b: loss not finite" in lines[1]
    assert "best weapon 0.500 (trial two)" in lines[1]
    assert len(lines) == 2


def test_json_alone_is_on_standard_output_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LiveProgress, "as_json", True)
    assert follow(monkeypatch) == ""
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["state"] for line in lines] == [event.state for event in events()]
    last = lines[-1]
    assert (last["ended"], last["running"], last["waiting"], last["total"]) == (3, 1, 6, 10)
    assert last["best"] == {"weapon": {"objective": 0.5, "by": "trial two"}}
