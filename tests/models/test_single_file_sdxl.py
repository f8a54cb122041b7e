"""A single file of SDXL, as web UIs keep it: its denoiser is read into the base; another text encoder and the
refiner are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import make_sdxl, same_weights
from torch import Tensor

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.checkpoints import with_checkpoint
from gift_ray.models.families import load_backbone
from gift_ray.models.sdxl import StableDiffusionXL

# The tiny UNet's blocks, and what is in a residual block, as the published code of SDXL calls them.
BLOCKS = {
    "conv_in": "input_blocks.0.0", "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0", "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0", "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0", "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0", "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
INSIDE = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
# A layer of a text encoder, as open_clip calls what is in it.
LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def unet_name(name: str) -> str:
    theirs = max((b for b in BLOCKS if name.startswith(b + ".")), key=len)
    rest = name.removeprefix(theirs + ".")
    if ".resnets." in theirs:
        part, _, last = rest.rpartition(".")
        rest = f"{INSIDE[part]}.{last}"
    return f"model.diffusion_model.{BLOCKS[theirs]}.{rest}"


def open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights as open_clip has them: queries, keys and values in one."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    named = {
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "text_projection": plain["text_projection.weight"].T.contiguous(),
        "logit_scale": torch.tensor(4.6),
    }
    for name, tensor in plain.items():
        if not name.startswith("encoder.layers."):
            continue
        number, _, rest = name.removeprefix("encoder.layers.").partition(".")
        block, (part, _, kind) = f"transformer.resblocks.{number}", rest.rpartition(".")
        if part in LAYER:
            named[f"{block}.{LAYER[part]}.{kind}"] = tensor
        elif part == "self_attn.q_proj":
            parts = [plain[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            named[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    return named


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionXL:
    folder = tmp_path_factory.mktemp("single") / "sdxl"
    make_sdxl(folder)
    model = load_backbone(ModelConfig(pretrained_model_name_or_path=str(folder)))
    assert isinstance(model, StableDiffusionXL)
    return model


def single_file(base: StableDiffusionXL) -> dict[str, Tensor]:
    """All of a base but its VAE, with another denoiser."""
    first, second = (e.state_dict() for e in (base.text_encoder, base.text_encoder_2))
    unet = {unet_name(name): tensor + 0.01 for name, tensor in base.weights().items()}
    one = {f"0.transformer.text_model.{n.removeprefix('text_model.')}": t for n, t in first.items()}
    two = {f"1.model.{name}": tensor for name, tensor in open_clip(second).items()}
    words = {f"conditioner.embedders.{name}": t.clone() for name, t in (one | two).items()}
    return unet | words


def test_the_denoiser_of_a_single_file_is_read_into_the_base(
    base: StableDiffusionXL, tmp_path: Path
) -> None:
    save_file(single_file(base), tmp_path / "xl.safetensors")
    read = with_checkpoint(base, str(tmp_path / "xl.safetensors"))
    expected = {name: tensor + 0.01 for name, tensor in base.weights().items()}
    assert same_weights(dict(read.weights()), expected)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("text_encoder", "0.transformer.text_model.final_layer_norm.bias"),
        ("text_encoder_2", "1.model.transformer.resblocks.0.attn.in_proj_bias"),
        ("text_encoder_2", "1.model.text_projection"),
    ],
)
def test_another_text_encoder_is_refused_by_name(
    part: str, tensor: str, base: StableDiffusionXL, tmp_path: Path
) -> None:
    tensors = single_file(base)
    tensors[f"conditioner.embedders.{tensor}"] += 0.1
    save_file(tensors, tmp_path / "xl.safetensors")
    with pytest.raises(ModelError, match=rf"differs from the base in its {part} \("):
        with_checkpoint(base, str(tmp_path / "xl.safetensors"))


def test_a_file_of_the_refiner_is_refused_by_name(base: StableDiffusionXL, tmp_path: Path) -> None:
    tensors = {
        name.replace("embedders.1.", "embedders.0."): tensor
        for name, tensor in single_file(base).items()
        if "embedders.0" not in name
    }
    save_file(tensors, tmp_path / "refiner.safetensors")
    with pytest.raises(ModelError, match="a file of SDXL's refiner"):
        with_checkpoint(base, str(tmp_path / "refiner.safetensors"))
