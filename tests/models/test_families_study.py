"""A whole study of each family, from drawings to the registry: prepared, immunized, attacked, judged,
released, registered in MLflow, served, and exported to files that plain diffusers reads."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import make_encoders, make_klein, make_sdxl, tiny_study

from gift_ray.config.schema import StudyConfig
from gift_ray.models.checkpoints import with_checkpoint
from gift_ray.models.families import base_model
from gift_ray.records import release
from gift_ray.records.exports import export
from gift_ray.records.record import is_done, read_record
from gift_ray.study.inline import InlineExecutor
from gift_ray.study.plan import Plan, plan
from gift_ray.study.protocol import verdict_id
from gift_ray.study.step import closure
from gift_ray.tracking.mlflow_tracker import MlflowTracker
from gift_ray.training.diffusion import Seeds
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick

MAKERS = {"sdxl": make_sdxl, "klein": make_klein}


def study_of(family: str, folder: Path, seed: int) -> StudyConfig:
    # A random model shows nothing; what is tried is the way.
    return tiny_study(
        output_dir=str(folder / "runs"),
        model={"pretrained_model_name_or_path": str(folder / family), "resolution": 16},
        scoring={"least_auc": 0, "least_rise": 0},
        attacks=[
            {"name": "dreambooth", "max_train_steps": 2},
            {"name": "lora", "max_train_steps": 3, "learning_rate": 1e-2, "rank": 2},
        ],
        evaluation={
            "encoders": {role: str(folder / "encoders" / role) for role in ("clip", "dino", "lpips")},
            "num_images_per_prompt": 1, "seed": seed,
        },
    )  # fmt: skip


def above_chance(layout: Plan, executor: InlineExecutor) -> bool:
    """Whether the random base happens to draw what its prompts say: a study of another one is refused."""
    steps = layout.undefended.samples["safe"], layout.chance_prompt["safe"]
    executor.run(closure(steps))
    drawn, chance = (
        read_record(step.folder(layout.config.study_dir)).result["curves"]["clip_text"]["0"]["mean"]
        for step in steps
    )
    return drawn > chance + 1e-3


@pytest.mark.parametrize("family", list(MAKERS))
def test_from_drawings_to_files_that_others_read(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / family)
    make_encoders(tmp_path / "encoders")
    layouts = (plan(study_of(family, tmp_path, seed)) for seed in range(20))
    executor = InlineExecutor(tmp_path / "runs" / "tiny")
    layout = next(each for each in layouts if above_chance(each, executor))
    config = layout.config
    executor.run(layout.steps())
    assert all(is_done(step.folder(config.study_dir)) for step in layout.steps())
    (arm,) = layout.defended
    for step in arm.attacks.values():
        curves = read_record(step.folder(config.study_dir)).result["curves"]
        assert {"clip_text", "clip_image", "dino"} <= curves.keys()

    # Judged, released and registered: what plain diffusers and MLflow make of it is the same.
    yardstick = Yardstick.of(layout, config.study_dir)
    card = scorecard(yardstick, arm)
    assert card.concepts["cat"].verdict in ("resists", "regained", "not shown")
    released = release.export(layout, arm, card, {}, config.study_dir)
    with MlflowTracker(config, "f1") as tracker:
        version = tracker.register(
            f"loop-{family}", released, card.objective, verdict_id(config),
            release.registry_tags(layout, arm, card),
        )  # fmt: skip
    assert version.champion
    served = mlflow.pyfunc.load_model(f"models:/loop-{family}@champion")
    (png,) = served.predict(
        ["a cat"], params={"seed": 3, "num_inference_steps": 2, "guidance_scale": 3.0}
    )
    drawn = DiffusionPipeline.from_pretrained(released)(
        prompt="a cat", generator=torch.Generator().manual_seed(3), num_inference_steps=2,
        guidance_scale=3.0,
    ).images[0]  # fmt: skip
    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(drawn))

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

    def theirs() -> np.ndarray:
        drawn = plain(
            prompt="a cat", height=16, width=16, num_inference_steps=2, guidance_scale=3.0,
            generator=[Seeds(0).generator("image", 0)], **options,
        ).images[0]  # fmt: skip
        return np.asarray(drawn)

    np.testing.assert_array_equal(np.asarray(ours), theirs())
    # And in kohya's format, which keeps alpha beside the matrices instead of in them.
    plain.unload_lora_weights()
    plain.load_lora_weights(to("kohya", tmp_path / "kohya.safetensors"))
    assert np.abs(theirs().astype(int) - np.asarray(ours)).max() <= 1
