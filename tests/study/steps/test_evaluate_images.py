"""Measuring saved images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import make_encoders

from gift_ray.config.plugin_choice import MetricConfig
from gift_ray.config.schema import EvaluationConfig
from gift_ray.data.examples import save_images
from gift_ray.study.journal import LocalJournal
from gift_ray.study.steps.evaluate_images import EvaluateImages


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
        step = EvaluateImages(label="two images", evaluation=chosen, asked=("a", "b"))
        step.run(inputs, tmp_path / name, LocalJournal(tmp_path / "unused", every=1))
        values[name] = pd.read_parquet(tmp_path / name / "scores.parquet")["clip_image"].tolist()
    assert values["legacy"] == pytest.approx(values["by hand"], abs=1e-6)
    assert values["legacy"] != pytest.approx(values["standard"], abs=1e-6)
