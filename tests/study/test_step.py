"""A kind of step is one class: what makes two of its steps the same, and what running one leaves."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gift_ray.errors import DataError
from gift_ray.records.record import read_record
from gift_ray.study.execute import execute
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step, closure, seeds_for


@dataclass(frozen=True, kw_only=True)
class Count(Step):
    """A kind as anyone would add one: a control, a new judge. Reads a file that may change meanwhile."""

    kind: ClassVar[str] = "count"
    version: ClassVar[int] = 1

    file: Path
    times: int = 1

    def identity(self) -> dict[str, Any]:
        return {"content": self.file.read_text(), "times": self.times}

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        (out / "count.txt").write_text("x" * self.times)
        return {"inputs": {name: path.name for name, path in inputs.items()}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_text("content")
    return path


def test_a_new_kind_runs_like_any_other(file: Path, tmp_path: Path) -> None:
    first = Count(label="first", file=file)
    second = Count(label="second", file=file, times=3, inputs={"before": first})
    for step in closure([second]):
        execute(step, tmp_path)
    folder = second.folder(tmp_path)
    assert folder.name == f"count-{second.fingerprint[:16]}"
    assert (folder / "count.txt").read_text() == "xxx"
    record = read_record(folder)
    assert record.identity == {
        "kind": "count", "version": 1, "content": "content", "times": 3,
        "inputs": {"before": first.fingerprint},
    }  # fmt: skip
    assert record.result == {"inputs": {"before": first.name}}
    assert record.provenance["label"] == "second"


def test_the_version_is_identity_and_the_label_is_not(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Count(label="a", file=file)
    assert replace(step, label="b").fingerprint == step.fingerprint
    assert replace(step, times=2).fingerprint != step.fingerprint
    monkeypatch.setattr(Count, "version", 2)
    assert Count(label="a", file=file).fingerprint != step.fingerprint


def test_an_input_is_identity(file: Path) -> None:
    one, two = (Count(label="before", file=file, times=n) for n in (1, 2))
    steps = [Count(label="after", file=file, inputs={"before": before}) for before in (one, two)]
    assert steps[0].fingerprint != steps[1].fingerprint


def test_a_step_that_travels_stays_what_was_planned(file: Path) -> None:
    step = Count(label="a", file=file)
    packed, planned = pickle.dumps(step), step.fingerprint
    file.unlink()
    assert pickle.loads(packed).fingerprint == planned, "another node hasn't got the file"


def test_what_it_reads_comes_before_it_and_once(file: Path) -> None:
    first = Count(label="first", file=file)
    left, right = (Count(label="x", file=file, times=n, inputs={"a": first}) for n in (2, 3))
    last = Count(label="last", file=file, inputs={"l": left, "r": right})
    assert closure([last, first]) == [first, left, right, last]


def test_an_unfinished_input_is_refused(file: Path, tmp_path: Path) -> None:
    first = Count(label="first", file=file)
    with pytest.raises(DataError, match="no readable record"):
        execute(Count(label="second", file=file, inputs={"before": first}), tmp_path)


def test_no_two_purposes_share_a_stream() -> None:
    draws = {
        seeds_for(seed, purpose).generator("x").initial_seed()
        for seed in range(3)
        for purpose in ("source", "immunize", "attack", "evaluation")
    }
    assert len(draws) == 12
