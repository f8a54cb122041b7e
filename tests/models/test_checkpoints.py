"""Other people's checkpoints: every format in, verified key by key; what is not understood refused."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_pipeline, same_weights, weights
from torch import Tensor

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.checkpoints import checkpoint_hash, save_delta, with_checkpoint
from gift_ray.models.families import load_backbone
from gift_ray.models.stable_diffusion import StableDiffusion


@pytest.fixture
def changed(tiny_model: StableDiffusion) -> StableDiffusion:
    """The tiny model with other cross-attentions, as a defense would leave it."""
    model = tiny_model.clone()
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters("cross_attention").values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def delta(model: StableDiffusion) -> dict[str, Tensor]:
    """What ESD and IMMA save: the cross-attentions alone."""
    return {n: p.detach().clone() for n, p in model.parameters("cross_attention").items()}


def test_reads_a_diffusers_folder(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    changed.save_pretrained(tmp_path / "folder")
    read = with_checkpoint(tiny_model, str(tmp_path / "folder"))
    assert same_weights(weights(read), weights(changed))


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_reads_a_partial_delta(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path, prefix: str
) -> None:
    path = tmp_path / "esd.safetensors"
    save_file({prefix + name: tensor for name, tensor in delta(changed).items()}, path)
    before = weights(tiny_model)
    assert same_weights(weights(with_checkpoint(tiny_model, str(path))), weights(changed))
    assert same_weights(weights(tiny_model), before), "the base was changed"


def test_reads_the_pt_file_of_imma(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    path = tmp_path / "imma_unet_xatten_layer.pt"
    torch.save({n: torch.nn.Parameter(t) for n, t in delta(changed).items()}, path)
    assert same_weights(weights(with_checkpoint(tiny_model, str(path))), weights(changed))


def test_reads_a_single_file_stable_diffusion(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({original_name(n): t for n, t in weights(changed).items()}, path)
    assert same_weights(weights(with_checkpoint(tiny_model, str(path))), weights(changed))


def original_name(name: str) -> str:
    """A diffusers key of the tiny unet as the original Stable Diffusion code calls it."""
    blocks = {
        "conv_in": "input_blocks.0.0", "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0", "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1", "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0", "up_blocks.1.attentions.1": "output_blocks.3.1",
        "conv_norm_out": "out.0", "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    }  # fmt: skip
    inside = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    theirs = max((b for b in blocks if name.startswith(b + ".")), key=len)
    rest = name.removeprefix(theirs + ".")
    if ".resnets." in theirs:
        part, _, last = rest.rpartition(".")
        rest = f"{inside[part]}.{last}"
    return f"model.diffusion_model.{blocks[theirs]}.{rest}"


def test_a_delta_of_ours_knows_its_base(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    path = tmp_path / "delta.safetensors"
    save_delta(tiny_model, changed, path)
    assert same_weights(weights(with_checkpoint(tiny_model, str(path))), weights(changed))
    make_pipeline(tmp_path / "other", seed=1)
    other = load_backbone(ModelConfig(pretrained_model_name_or_path=str(tmp_path / "other")))
    with pytest.raises(ModelError, match="another base"):
        with_checkpoint(other, str(path))


def test_refuses_what_it_does_not_understand_by_name(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    good = delta(changed)
    name = next(iter(good))
    cases = {
        "unknown unet weights, first 'not.there'": {**good, "not.there": torch.zeros(1)},
        f"{name!r} has shape": {**good, name: torch.zeros(3)},
        "NaN or infinity": {**good, name: good[name] * float("nan")},
        "LoRA adapter": {"unet.down.lora_A.weight": torch.zeros(1)},
        "missing unet weights": {"conv_in.weight": tiny_model.denoiser.conv_in.weight.data.clone()},
    }
    for number, (reason, tensors) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(tensors, path)
        with pytest.raises(ModelError, match=re.escape(reason)):
            with_checkpoint(tiny_model, str(path))


def test_no_code_of_a_pickle_is_run(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    ran = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple:
            return (Path.touch, (ran,))

    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps({"weight": Payload()}))
    with pytest.raises(ModelError, match="not trusted"):
        with_checkpoint(tiny_model, str(path))
    assert not ran.exists()


def test_missing_or_foreign_files_are_refused(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    for name, reason in (
        ("absent.safetensors", "not a folder"),
        ("model.ckpt", "not a checkpoint that is read"),
        ("cut.safetensors", "not a readable safetensors file"),
    ):
        with pytest.raises(ModelError, match=reason):
            with_checkpoint(tiny_model, str(tmp_path / name))


def test_the_content_names_a_checkpoint_not_its_place(
    tiny_model: StableDiffusion, changed: StableDiffusion, tmp_path: Path
) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(delta(changed), tmp_path / name)
    one, other = (checkpoint_hash(str(tmp_path / f"{n}.safetensors")) for n in "ab")
    assert one == other
    save_delta(tiny_model, changed, tmp_path / "b.safetensors")
    assert checkpoint_hash(str(tmp_path / "b.safetensors")) != one
