"""Files of ours that were cut short, or changed by as little as one bit: found, told, and computed anew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from battery import Case, run, study

from gift_ray.errors import DataError
from gift_ray.records.record import load_state, save_state
from gift_ray.records.trials import FAILED, Ledger, Trial
from gift_ray.search.sampler import Outcome, Search, propose

TITLE = "Damaged files of a study"
STATE = {"step": 7, "optimizer": {"0": {"exp_avg": torch.arange(3.0)}}, "rows": [{"loss": 0.5}]}
TRIAL = Trial("abcdef-00", {"defense.beta": 0.2}, 0.5, 0.6, 0.4, True, "", [], protocol="p")


def every_bit_of_a_checkpoint(folder: Path) -> None:
    """Each one-bit flip either leaves the very same state, or is found to be damage."""
    whole, file = folder / "whole.safetensors", folder / "flipped.safetensors"
    save_state(whole, STATE)
    content = whole.read_bytes()
    found = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            state = load_state(file)
        except DataError:
            found += 1
            continue
        tensor = state["optimizer"]["0"].pop("exp_avg")
        assert torch.equal(tensor, STATE["optimizer"]["0"]["exp_avg"])  # type: ignore[index]
        assert state == {"step": 7, "optimizer": {"0": {}}, "rows": [{"loss": 0.5}]}
    # Blanks that pad the header are all that may change unseen.
    assert found > 0.9 * 8 * len(content)


def every_length_of_a_checkpoint(folder: Path) -> None:
    save_state(folder / "whole.safetensors", STATE)
    content = (folder / "whole.safetensors").read_bytes()
    for length in range(len(content)):
        (folder / "cut.safetensors").write_bytes(content[:length])
        try:
            load_state(folder / "cut.safetensors")
        except DataError:
            continue
        raise AssertionError(f"the first {length} bytes were read as a whole checkpoint")


def trial_file(content: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> object:
        (folder / "00003.json").write_text(content)
        return Ledger(folder)

    return attempt


def shown(name: str, content: str, command: str) -> Callable[[Path], object]:
    """Try to show a study in which one file is damaged."""

    def attempt(folder: Path) -> object:
        config = study(folder).model_dump(mode="json")
        (folder / "study.json").write_text(json.dumps({"config": config, "fingerprint": "f"}))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        return run([command, str(folder)])

    return attempt


def searching(folder: Path, *trials: Trial) -> Search:
    config = study(
        folder, {"search": {"space": {"defense.beta": {"low": 0.1, "high": 0.9}}, "num_samples": 9}},
        command="sweep",
    )  # fmt: skip
    ledger = Ledger(folder / "ledger")
    for trial in trials:
        ledger.write(trial)
    return Search(config, ledger, "abcdef", protocol="p")


def a_lost_trial(folder: Path) -> None:
    search = searching(
        folder, *(replace(TRIAL, number=n, trial_id=f"abcdef-0{n}") for n in (0, 1, 3))
    )
    trials = [search.next(), search.next()]
    assert [trial.number for trial in trials if trial] == [2, 4]
    assert len(Ledger(folder / "ledger").trials) == 5


def not_a_number(folder: Path) -> None:
    search = searching(folder)
    for _ in range(6):
        trial = search.next()
        assert trial is not None
        arm = {"malicious": "cat", "objective": math.nan, "resistance": 1.0, "retention": 1.0,
               "feasible": True, "reason": ""}  # fmt: skip
        search.end(trial.number, Outcome(1, 1, "complete", "", [arm], 1.0))
    ended = Ledger(folder / "ledger").ended()
    assert {(t.state, t.objective, t.reason) for t in ended} == {
        ("failed", FAILED, "its objective is not a number")
    }
    assert math.isfinite(propose(search.config, ended, 6)["defense.beta"])


def unchoosable(choices: Any) -> Callable[[Path], object]:
    space = {"defense.beta": {"choices": choices}}
    return lambda folder: study(folder, {"search": {"space": space}}, command="sweep")


WHOLE = json.dumps(asdict(TRIAL))
CASES = [
    Case("any one bit of a checkpoint flipped", every_bit_of_a_checkpoint,
         outcome="found to be damaged, or the same state; the step begins again"),
    Case("a checkpoint cut at any length", every_length_of_a_checkpoint,
         outcome="found to be damaged; the step begins again"),
    Case("a trial's file cut short", trial_file(WHOLE[:40]), says="delete it, and that trial is run again"),
    Case("a trial's file that is empty", trial_file(""), says="delete it, and that trial is run again"),
    Case("a trial's file that is a list", trial_file("[]"), says="delete it, and that trial is run again"),
    Case("a trial's file of other fields", trial_file('{"trial": 1}'),
         says="delete it, and that trial is run again"),
    Case("a trial's file that was deleted", a_lost_trial, outcome="that trial is run again, and no other"),
    Case("trials whose objective is not a number", not_a_number,
         outcome="failed trials; the search goes on"),
    Case("`choices: []`", unchoosable([]), says="at least 1 item"),
    Case("`choices` of a wrong kind", unchoosable(["much"]), says="defense.beta = much is not possible"),
    Case("`gift-ray show` of a folder without a study", lambda folder: run(["show", str(folder)]),
         says="nothing of a study is there"),
    Case("`gift-ray report` of a folder without a study", lambda folder: run(["report", str(folder)]),
         says="no study.json"),
    Case("`gift-ray show` of a study whose study.json is cut short", shown("study.json", "{", "show"),
         says="not readable"),
    Case("`gift-ray show` of a study with a trial cut short", shown("trials/a.json", "{", "show"),
         says="not readable"),
    Case("`gift-ray report` of a study whose study.json is cut short", shown("study.json", "{", "report"),
         says="can't be read"),
]  # fmt: skip
