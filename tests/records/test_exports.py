"""Models leave a study in the forms that others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from tiny import make_encoders, tiny_study

from gift_ray.errors import ConfigError
from gift_ray.models.checkpoints import with_checkpoint
from gift_ray.models.families import base_model
from gift_ray.records.exports import Format, export
from gift_ray.study.execute import execute
from gift_ray.study.plan import Plan, plan

LORA = {"name": "lora", "max_train_steps": 3, "learning_rate": 1e-2, "rank": 2}


@pytest.fixture(scope="module")
def layout(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study whose model is immunized and attacked."""
    config = tiny_study(
        output_dir=str(tmp_path_factory.mktemp("runs")),
        model={"pretrained_model_name_or_path": str(tiny_folder)},
        attacks=[LORA, {"name": "dreambooth", "max_train_steps": 2}],
        evaluation={
            "encoders": make_encoders(tmp_path_factory.mktemp("encoders")),
            "num_images_per_prompt": 1,
        },
    )
    layout = plan(config)
    for step in layout.defended[0].steps():
        execute(step, config.study_dir)
    return layout


def take(layout: Plan, form: Format, path: Path, **options: Any) -> Path:
    export(layout, "cat", form, path, **{"attack": "lora", "seed": 0, **options})
    return path


def immunized(layout: Plan) -> Any:
    folder = layout.defended[0].immunize.folder(layout.config.study_dir)
    return base_model(layout.config.model).with_weights(folder / "unet.safetensors")


def test_a_folder_and_a_delta_are_the_immunized_model(layout: Plan, tmp_path: Path) -> None:
    expected = immunized(layout).denoiser.state_dict()
    folder = take(layout, "diffusers", tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    delta = take(layout, "delta", tmp_path / "deep" / "delta.safetensors")
    applied = with_checkpoint(base_model(layout.config.model), str(delta))
    for weights in (pipeline.unet.state_dict(), applied.denoiser.state_dict()):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
    assert list(tmp_path.glob("**/.*")) == []


def test_an_adapter_is_the_attack_trained_again(layout: Plan, tmp_path: Path) -> None:
    released = immunized(layout)
    first = take(layout, "lora", tmp_path / "one")
    second = take(layout, "lora", tmp_path / "two")
    one, two = (load_file(f / "pytorch_lora_weights.safetensors") for f in (first, second))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    # It draws what the stage drew at the attack's last step.
    step = layout.defended[0].attacks["cat", "lora", 0].inputs["images"]
    assert drawn(layout, released.load_lora(first)) == pictures(layout, step, "step-000003")
    kohya = take(layout, "kohya", tmp_path / "kohya.safetensors")
    assert released.load_lora(kohya).has_adapter


def drawn(layout: Plan, model: Any) -> list[bytes]:
    from gift_ray.study.drawing import draw

    return [image.tobytes() for image in draw(model, ["a cat"], layout.config.evaluation, 0)]


def pictures(layout: Plan, step: Any, name: str) -> list[bytes]:
    from gift_ray.data.examples import load_images

    images = load_images(step.folder(layout.config.study_dir) / name)
    return [image.tobytes() for image in images]


def test_mistakes_are_named_and_write_nothing(layout: Plan, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(ConfigError, match="there already"):
        take(layout, "diffusers", there)
    with pytest.raises(
        ConfigError, match="no lora with seed 7 on 'cat'; there are: lora with seed 0"
    ):
        take(layout, "lora", tmp_path / "x", seed=7)
    with pytest.raises(ConfigError, match="dreambooth trains no adapter; give lora"):
        take(layout, "lora", tmp_path / "x", attack="dreambooth")
    with pytest.raises(ConfigError, match="no malicious concept 'dog'; the study's: cat"):
        export(layout, "dog", "delta", tmp_path / "x", attack="lora", seed=0)
    other = layout.config.model_copy(update={"seed": 5})
    with pytest.raises(ConfigError, match="not computed yet with these settings: gift against cat"):
        take(plan(other), "delta", tmp_path / "x")
    assert not (tmp_path / "x").exists()
