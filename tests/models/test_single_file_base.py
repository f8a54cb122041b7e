"""A single file as the base: the folder that is made of it is the model that it was made from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_checkpoints import original_name
from test_single_file_sdxl import open_clip, unet_name
from tiny import make_klein, make_pipeline, make_sdxl, same_weights
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.families import check_base, load_backbone
from gift_ray.models.locate import identity, locate

# What is in a VAE, as the original code of Stable Diffusion calls it.
IN_VAE = (
    (r"encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.down.\1.block."),
    (r"encoder\.down_blocks\.(\d)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
    # The decoder's levels are counted from the finest.
    (r"decoder\.up_blocks\.0\.resnets\.", "decoder.up.1.block."),
    (r"decoder\.up_blocks\.1\.resnets\.", "decoder.up.0.block."),
    (r"decoder\.up_blocks\.0\.upsamplers\.0\.", "decoder.up.1.upsample."),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"mid_block\.attentions\.0\.to_", "mid.attn_1."),
    ("conv_norm_out", "norm_out"),
    ("conv_shortcut", "nin_shortcut"),
)  # fmt: skip


def vae_part(vae: nn.Module) -> dict[str, Tensor]:
    """A VAE's weights under their original names; its attention was made of convolutions."""
    found = {}
    for name, tensor in vae.state_dict().items():
        original = name
        for ours, theirs in IN_VAE:
            original = re.sub(ours, theirs, original)
        linear = "attn_1" in original and tensor.ndim == 2
        found[f"first_stage_model.{original}"] = tensor[..., None, None] if linear else tensor
    return found


def plain(encoder: nn.Module) -> dict[str, Tensor]:
    return {
        f"text_model.{n.removeprefix('text_model.')}": t for n, t in encoder.state_dict().items()
    }


def of_sd(pipeline: Any) -> dict[str, Tensor]:
    words = {
        f"cond_stage_model.transformer.{n}": t for n, t in plain(pipeline.text_encoder).items()
    }
    unet = {original_name(n): t for n, t in pipeline.unet.state_dict().items()}
    return unet | words | vae_part(pipeline.vae)


def of_sdxl(pipeline: Any) -> dict[str, Tensor]:
    one = {f"0.transformer.{n}": t for n, t in plain(pipeline.text_encoder).items()}
    two = {f"1.model.{n}": t for n, t in open_clip(pipeline.text_encoder_2.state_dict()).items()}
    words = {f"conditioner.embedders.{n}": t for n, t in (one | two).items()}
    unet = {unet_name(n): t for n, t in pipeline.unet.state_dict().items()}
    return unet | words | vae_part(pipeline.vae)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "assets")
    )


def written(tensors: dict[str, Tensor], path: Path, **metadata: str) -> Path:
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, path, metadata)
    return path


def base(file: Path, like: Path | None) -> ModelConfig:
    config = None if like is None else str(like)
    return ModelConfig(
        pretrained_model_name_or_path=str(file), single_file_config=config, resolution=16
    )


@pytest.mark.parametrize(("make", "file_of"), [(make_pipeline, of_sd), (make_sdxl, of_sdxl)])
def test_the_base_is_the_model_of_the_file(
    make: Callable[[Path], Any], file_of: Callable[[Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    made = make(tmp_path / "made")
    # The configuration comes from a model of other weights.
    torch.manual_seed(1)
    like = tmp_path / "like"
    make(like)
    file = written(file_of(made), tmp_path / "model.safetensors")
    config = base(file, like)
    check_base(config)
    for own, theirs in ((load_backbone(config), load_backbone(base(tmp_path / "made", None))),):
        for part in ("denoiser", "vae", "text_encoder", "text_encoder_2"):
            if hasattr(theirs, part):
                assert same_weights(
                    getattr(own, part).state_dict(), getattr(theirs, part).state_dict()
                )
    # It is written once, and found again.
    folder = locate(config)
    assert locate(config) == folder
    assert len(list((tmp_path / "assets").rglob("model_index.json"))) == 1
    # Where the configuration lay does not matter for the identity of results.
    moved = like.rename(tmp_path / "moved")
    assert identity(base(file, moved)) == identity(base(folder, None))


def refused(file: Path, like: Path | None) -> str:
    with pytest.raises(ModelError) as error:
        check_base(base(file, like))
    (line,) = error.value.mistakes
    return line


def test_a_configuration_of_another_kind_is_refused(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "sd")
    make_sdxl(tmp_path / "sdxl")
    make_klein(tmp_path / "klein")
    file = written(of_sd(pipeline), tmp_path / "model.safetensors")
    assert "can't be read as" in refused(file, tmp_path / "sdxl")
    assert "a Flux2KleinPipeline is not read from a single file" in refused(
        file, tmp_path / "klein"
    )
    assert "has no model_index.json" in refused(file, tmp_path)
    assert "is no single file" in refused(tmp_path / "sd", tmp_path / "sd")


def test_a_file_that_says_another_prediction_type_is_refused(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "sd")
    file = written(of_sd(pipeline) | {"v_pred": torch.zeros(1)}, tmp_path / "model.safetensors")
    line = refused(file, tmp_path / "sd")
    assert "is not the configuration of" in line
    assert "prediction type (v_prediction; the base's is epsilon)" in line


def test_a_file_without_a_text_encoder_is_refused(tmp_path: Path) -> None:
    tensors = of_sd(make_pipeline(tmp_path / "sd"))
    unet = {n: t for n, t in tensors.items() if not n.startswith("cond_stage_model")}
    assert "can't be read as" in refused(
        written(unet, tmp_path / "unet.safetensors"), tmp_path / "sd"
    )
    assert not list((tmp_path / "assets").rglob("model_index.json"))


def test_a_configuration_that_the_hub_does_not_give_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = written(of_sd(make_pipeline(tmp_path / "sd")), tmp_path / "model.safetensors")
    line = refused(file, None)
    assert "model.single_file_config: 'stable-diffusion-v1-5/stable-diffusion-v1-5'" in line
    assert "is a single file, whose configuration is taken from there" in line
