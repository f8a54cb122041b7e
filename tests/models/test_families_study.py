"""A whole study of each family, from drawings to files that plain diffusers reads: prepared, immunized,
attacked, measured and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import make_encoders, make_klein, make_sdxl, tiny_study

from gift_ray.models.checkpoints import with_checkpoint
from gift_ray.models.families import base_model
from gift_ray.records.exports import export
from gift_ray.records.record import is_done, read_record
from gift_ray.study.execute import execute
from gift_ray.study.plan import plan
from gift_ray.training.diffusion import Seeds

MAKERS = {"sdxl": make_sdxl, "klein": make_klein}


@pytest.mark.parametrize("family", list(MAKERS))
def test_from_drawings_to_files_that_others_read(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / family)
    config = tiny_study(
        output_dir=str(tmp_path / "runs"),
        model={"pretrained_model_name_or_path": str(tmp_path / family), "resolution": 16},
        attacks=[
            {"name": "dreambooth", "max_train_steps": 2},
            {"name": "lora", "max_train_steps": 3, "learning_rate": 1e-2, "rank": 2},
        ],
        evaluation={
            "encoders": make_encoders(tmp_path / "encoders"), "num_images_per_prompt": 1,
        },
    )  # fmt: skip
    layout = plan(config)
    for step in layout.steps():
        execute(step, config.study_dir)
    assert all(is_done(step.folder(config.study_dir)) for step in layout.steps())
    (arm,) = layout.defended
    for step in arm.attacks.values():
        curves = read_record(step.folder(config.study_dir)).result["curves"]
        assert {"clip_text", "clip_image", "dino"} <= curves.keys()

    def to(form: str, path: Path) -> Path:
        export(layout, "cat", form, path, attack="lora", seed=0)
        return path

    base = base_model(config.model)
    folder = to("diffusers", tmp_path / "released")
    plain = DiffusionPipeline.from_pretrained(folder)
    immunized = with_checkpoint(base, str(folder))
    changed = [n for n, t in base.weights().items() if not torch.equal(t, immunized.weights()[n])]
    assert changed
    delta = with_checkpoint(base, str(to("delta", tmp_path / "delta.safetensors")))
    assert all(torch.equal(t, delta.weights()[n]) for n, t in immunized.weights().items())

    # The attacker's adapter on the released model: ours, and plain diffusers with the exported file.
    adapter = to("lora", tmp_path / "adapter")
    ours = immunized.load_lora(adapter).generate(
        ["a cat"], seeds=Seeds(0), num_inference_steps=2, guidance_scale=3.0, batch_size=1
    )[0]
    plain.load_lora_weights(adapter)
    options = {"max_sequence_length": 16} if family == "klein" else {}
    theirs = plain(
        prompt="a cat", height=16, width=16, num_inference_steps=2, guidance_scale=3.0,
        generator=[Seeds(0).generator("image", 0)], **options,
    ).images[0]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
