"""Journals: what a long stage keeps while it runs."""

from __future__ import annotations

from pathlib import Path

import torch

from gift_ray.stages import LocalJournal


def test_damaged_checkpoint_is_dropped_not_trusted(tmp_path: Path):
    journal = LocalJournal(tmp_path / "c.safetensors", every=1)
    journal.save(1, {"done": 1, "unet": {"w": torch.ones(3)}})
    whole = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(whole[: len(whole) // 2])
    assert LocalJournal(tmp_path / "c.safetensors", every=1).load() is None
    assert not (tmp_path / "c.safetensors").exists()


def test_checkpoint_brings_back_log_and_kept_results(tmp_path: Path):
    journal = LocalJournal(tmp_path / "c.safetensors", every=2)
    journal.log(1, loss=0.5)
    journal.keep("000000", torch.zeros(2, 2, dtype=torch.uint8))
    journal.save(1, {"done": 1})
    assert LocalJournal(tmp_path / "c.safetensors", every=2).load() is None, "not due yet"
    journal.save(2, {"done": 2, "unet": {"w": torch.ones(3)}})

    later = LocalJournal(tmp_path / "c.safetensors", every=2)
    state = later.load()
    assert state is not None
    assert state["done"] == 2
    assert state["unet"]["w"].equal(torch.ones(3))
    assert later.rows == [{"step": 1, "loss": 0.5}]
    assert later.kept["000000"].dtype == torch.uint8
