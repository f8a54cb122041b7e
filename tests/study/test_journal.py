"""Journals: what a long step keeps while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gift_ray.study.journal import LocalJournal


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_checkpoint_is_dropped_not_trusted(tmp_path: Path, cut: bool):
    journal = LocalJournal(tmp_path / "c.safetensors", every=1)
    journal.save(1, {"done": 1, "unet": {"w": torch.ones(3)}})
    whole = (tmp_path / "c.safetensors").read_bytes()
    damaged = whole[: len(whole) // 2] if cut else whole[:-1] + b"\0"
    (tmp_path / "c.safetensors").write_bytes(damaged)
    assert LocalJournal(tmp_path / "c.safetensors", every=1).load() is None


def test_a_process_that_was_asked_to_end_saves_first(tmp_path: Path):
    journal = LocalJournal(tmp_path / "c.safetensors", every=100)
    assert not journal.due(3)
    journal.leaving = lambda: True
    assert journal.due(4)
    with pytest.raises(SystemExit):
        journal.save(4, {"done": 4})
    assert LocalJournal(journal.path, every=100).load() == {"done": 4}


def test_checkpoint_brings_back_log_and_kept_results(tmp_path: Path):
    journal = LocalJournal(tmp_path / "c.safetensors", every=2)
    journal.log(1, loss=0.5)
    journal.keep("000000", torch.zeros(2, 2, dtype=torch.uint8))
    assert not journal.due(1)
    assert journal.due(2)
    journal.save(2, {"done": 2, "unet": {"w": torch.ones(3)}})

    later = LocalJournal(tmp_path / "c.safetensors", every=2)
    state = later.load()
    assert state is not None
    assert state["done"] == 2
    assert state["unet"]["w"].equal(torch.ones(3))
    assert later.rows == [{"step": 1, "loss": 0.5}]
    assert later.kept["000000"].dtype == torch.uint8
