"""Journals: what a long stage keeps while it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import make_encoders

from gift_ray.config.schema import EvaluationConfig, MetricConfig
from gift_ray.data.examples import save_images
from gift_ray.study.stages import LocalJournal, evaluate


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
    journal.save(3, {"done": 3})
    assert journal.load() is None, "not due"
    journal.leaving = lambda: True
    with pytest.raises(SystemExit):
        journal.save(4, {"done": 4})
    assert LocalJournal(journal.path, every=100).load() == {"done": 4}


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


def test_the_legacy_protocol_measures_what_is_shrunk_to_64_pixels(tmp_path: Path):
    evaluation = EvaluationConfig(
        protocol="imma_legacy", metrics=(MetricConfig(name="clip_image"),), safe_prompts=("a", "b"),
        encoders=make_encoders(tmp_path / "encoders"), num_images_per_prompt=1,
    )  # fmt: skip
    draws = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    full = [Image.fromarray(draw) for draw in draws]
    small = [image.resize((64, 64), Image.Resampling.BILINEAR) for image in full]
    values = {}
    for name, images, protocol in (
        ("legacy", full, "imma_legacy"), ("by hand", small, "standard"), ("standard", full, "standard"),
    ):  # fmt: skip
        save_images(tmp_path / name / "attack" / "step-000000", images[:2])
        save_images(tmp_path / name / "concept" / "D_A", images[2:])
        inputs = {"images": tmp_path / name / "attack", "concept": tmp_path / name / "concept"}
        chosen = evaluation.model_copy(update={"protocol": protocol})
        evaluate(chosen, ["a", "b"], inputs, tmp_path / name)
        values[name] = pd.read_parquet(tmp_path / name / "scores.parquet")["clip_image"].tolist()
    assert values["legacy"] == pytest.approx(values["by hand"], abs=1e-6)
    assert values["legacy"] != pytest.approx(values["standard"], abs=1e-6)
