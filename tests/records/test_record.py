"""What a finished step leaves: whole or not at all, and verified when read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filled import write_step
from killed import full_disk
from safetensors import SafetensorError, safe_open

from gift_ray.errors import DataError, is_storage_full
from gift_ray.records.record import (
    RECORD,
    Score,
    canonical,
    digest,
    is_done,
    load_state,
    read_record,
    save_state,
    write_json_atomic,
)

IDENTITY = {"kind": "test", "rate": 0.1}


def work(out: Path) -> dict[str, Any]:
    (out / "images").mkdir()
    (out / "images" / "0.txt").write_text("pixels")
    return {"count": 1}


def test_a_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    written = write_step(folder, IDENTITY, work, label="a label")
    assert is_done(folder)
    assert read_record(folder) == written
    assert (written.kind, written.fingerprint) == ("test", digest(IDENTITY))
    assert written.result == {"count": 1}
    assert list(written.files) == ["images/0.txt"]
    assert written.provenance["label"] == "a label"


def test_work_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(out: Path) -> dict[str, Any]:
        work(out)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        write_step(tmp_path / "steps" / "step", IDENTITY, fails)
    assert list((tmp_path / "steps").iterdir()) == []


def test_a_result_that_json_cannot_hold_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_step(tmp_path / "steps" / "step", IDENTITY, lambda out: {"weights": torch.ones(1)})
    assert list((tmp_path / "steps").iterdir()) == []


def test_the_second_writer_of_a_step_takes_the_first_ones_result(tmp_path: Path) -> None:
    folder = tmp_path / "step"

    def overtaken(out: Path) -> dict[str, Any]:
        write_step(folder, IDENTITY, work)
        return {"count": 2}

    assert write_step(folder, IDENTITY, overtaken).result == {"count": 1}
    assert read_record(folder).result == {"count": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_what_killed_attempts_have_left_goes_with_the_next_success(tmp_path: Path) -> None:
    (tmp_path / ".0badc0de.step").mkdir()
    (tmp_path / ".0badc0de.stepping").mkdir()
    write_step(tmp_path / "step", IDENTITY, work)
    assert {p.name for p in tmp_path.iterdir()} == {"step", ".0badc0de.stepping"}


def test_a_writer_whose_folder_the_first_one_took_away_has_its_result(tmp_path: Path) -> None:
    def overtaken(out: Path) -> dict[str, Any]:
        write_step(tmp_path / "step", IDENTITY, work)
        (out / "late.txt").write_text("nowhere to go")
        return {"count": 2}

    assert write_step(tmp_path / "step", IDENTITY, overtaken).result == {"count": 1}


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    large = {"unet": {"w": torch.randn(10_000)}}

    def writes(out: Path) -> dict[str, Any]:
        save_state(out / "weights", large)
        return {}

    for write in (
        lambda: save_state(tmp_path / "state", large),
        lambda: write_step(tmp_path / "step", IDENTITY, writes),
        lambda: write_step(tmp_path / "step", IDENTITY, lambda out: {"numbers": list(range(5000))}),
        lambda: write_json_atomic(tmp_path / "summary.json", list(range(5000))),
    ):
        with pytest.raises((OSError, SafetensorError)) as error, full_disk():
            write()
        assert is_storage_full(error.value)
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_file_is_refused_by_name(damage: str, tmp_path: Path) -> None:
    write_step(tmp_path / "step", IDENTITY, work)
    file = tmp_path / "step" / "images" / "0.txt"
    file.unlink() if damage == "missing" else file.write_text("pixelz")
    with pytest.raises(DataError, match=r"images/0\.txt: missing or damaged") as error:
        read_record(tmp_path / "step")
    assert len(error.value.mistakes) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "test"}'])
def test_a_damaged_record_is_refused(text: str, tmp_path: Path) -> None:
    write_step(tmp_path / "step", IDENTITY, work)
    (tmp_path / "step" / RECORD).write_text(text)
    with pytest.raises(DataError, match="no readable record"):
        read_record(tmp_path / "step")


def test_a_folder_without_a_record_is_not_done(tmp_path: Path) -> None:
    (tmp_path / "step").mkdir()
    assert not is_done(tmp_path / "step")
    with pytest.raises(DataError, match="no readable record"):
        read_record(tmp_path / "step")


def test_state_comes_back_equal(tmp_path: Path) -> None:
    state = {
        "done": 3,
        "rate": 0.1 + 0.2,
        "name": "psi",
        "nothing": None,
        "seen": [1, 2.5, "x"],
        "empty": {},
        "unet": {"a.weight": torch.randn(2, 3), "a.steps": torch.tensor(7)},
        "deep": {"inner": {"exp_avg": torch.randn(2, dtype=torch.float64), "step": 4}},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "rows": [{"step": 0, "loss": 0.25}],
    }
    save_state(tmp_path / "sub" / "state.safetensors", state)
    loaded = load_state(tmp_path / "sub" / "state.safetensors")
    assert_equal(loaded, state)
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["state.safetensors"]


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(right, dict):
        assert left.keys() == right.keys()
        for key in right:
            assert_equal(left[key], right[key])
    elif isinstance(right, torch.Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    else:
        assert left == right
        assert type(left) is type(right)


def test_a_state_with_one_changed_bit_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"done": 3, "unet": {"w": torch.ones(100)}})
    content = bytearray((tmp_path / "s").read_bytes())
    content[-7] ^= 1
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        load_state(tmp_path / "s")


def test_state_with_shared_or_strided_tensors_is_stored(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    save_state(tmp_path / "s", {"a": tensor, "b": tensor, "c": tensor.T})
    loaded = load_state(tmp_path / "s")
    assert torch.equal(loaded["b"], tensor)
    assert torch.equal(loaded["c"], tensor.T)


def test_state_is_safetensors_and_never_a_pickle(tmp_path: Path) -> None:
    save_state(tmp_path / "s", {"a": torch.ones(1), "n": 1})
    with safe_open(tmp_path / "s", framework="pt") as file:
        assert json.loads(file.metadata()["state"]) == {"n": 1}
    with pytest.raises(TypeError):
        save_state(tmp_path / "t", {"object": object()})
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_one_value_has_one_text() -> None:
    assert canonical({"b": (1, 2), "a": 1.0}) == '{"a":1.0,"b":[1,2]}'
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical({"rate": math.nan})
    with pytest.raises(TypeError):
        canonical({"path": Path("x")})


def test_scores_count_what_was_not_scored() -> None:
    score = Score.of(np.array([1.0, math.nan, 3.0]), direction=1)
    assert (score.mean, score.n, score.unscored, score.worst) == (2.0, 2, 1, 1.0)
    assert score.stderr == pytest.approx(1.0)
    assert Score.of(np.array([1.0, 3.0]), direction=-1).worst == 3.0
    nothing = Score.of(np.array([math.nan]), direction=1)
    assert math.isnan(nothing.mean)
    assert (nothing.n, nothing.unscored) == (0, 1)
