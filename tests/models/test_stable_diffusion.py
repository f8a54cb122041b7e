"""The model under attack: groups of parameters, weights on disk, and images that depend on nothing
but their seed and prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_examples, make_pipeline, same_weights, weights

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, UnitFailed
from gift_ray.models.families import load_backbone
from gift_ray.models.locate import identity
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.training.diffusion import Seeds

# On Stable Diffusion 1.5, counted by hand from its layers.
COUNTS = {
    "cross_attention": 43_962_560,
    "cross_attention_kv": 19_169_280,
    "attention": 93_536_640,
    "noxattn": 813_495_680,
    "all": 859_520_964,
}


def test_groups_of_stable_diffusion_have_their_published_sizes(tiny_model: StableDiffusion) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
    model = replace(tiny_model, denoiser=unet)
    found = {g: sum(p.numel() for p in model.parameters(g).values()) for g in COUNTS}
    assert found == COUNTS


def test_a_group_or_layer_that_is_not_there_is_refused(tiny_model: StableDiffusion) -> None:
    bare = replace(tiny_model, denoiser=torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="'cross_attention' selects no parameter"):
        bare.parameters("cross_attention")
    with pytest.raises(ModelError, match="'attn2' selects no layer"):
        bare.layers("attn2")


def test_layers_are_all_blocks_or_all_cross_attentions(tiny_model: StableDiffusion) -> None:
    blocks = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert list(tiny_model.layers("blocks")) == blocks
    assert len(tiny_model.layers("attn2")) == 4


def test_a_clone_shares_everything_but_the_unet(tiny_model: StableDiffusion) -> None:
    clone = tiny_model.clone()
    assert same_weights(weights(clone), weights(tiny_model))
    assert clone.denoiser is not tiny_model.denoiser
    assert clone.vae is tiny_model.vae
    assert all(p.requires_grad for p in clone.denoiser.parameters())
    assert not any(p.requires_grad for p in tiny_model.denoiser.parameters())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_follows_the_prediction_type_of_the_scheduler(kind: str, tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / kind, prediction_type=kind)
    model = load_backbone(ModelConfig(pretrained_model_name_or_path=str(tmp_path / kind)))
    batch = make_examples(2, seed=0).batch(2, Seeds(0).generator("b"))
    noise, timesteps = model.draw(2, Seeds(0).generator("n"))
    scheduler = pipeline.scheduler
    noisy = scheduler.add_noise(batch.latents, noise, timesteps)
    target = noise if kind == "epsilon" else scheduler.get_velocity(batch.latents, noise, timesteps)
    with torch.no_grad():
        predicted = pipeline.unet(noisy, timesteps, batch.conditioning.tokens).sample
        ours = model.denoising_loss(batch.latents, batch.conditioning, timesteps, noise)
    torch.testing.assert_close(ours, ((predicted - target) ** 2).mean((1, 2, 3)))


def images(model: StableDiffusion, batch_size: int) -> list[np.ndarray]:
    drawn = model.generate(
        ["a cat", "a dog", "a cow"], seeds=Seeds(0), num_inference_steps=2, guidance_scale=3.0,
        batch_size=batch_size,
    )  # fmt: skip
    return [np.asarray(image, dtype=float) for image in drawn]


def test_images_do_not_depend_on_the_batching(tiny_model: StableDiffusion) -> None:
    together, alone = images(tiny_model, 3), images(tiny_model, 1)
    for one, other in zip(together, alone, strict=True):
        assert np.abs(one - other).max() <= 1  # a rounding of the last bit of a pixel
    assert not np.array_equal(together[0], together[1])


def test_encoded_images_are_posteriors_that_decode_to_the_image_size(
    tiny_model: StableDiffusion,
) -> None:
    drawn = tiny_model.generate(
        ["a cat"], seeds=Seeds(0), num_inference_steps=1, guidance_scale=1.0, batch_size=1
    )
    examples = tiny_model.encode(drawn, ["a cat"], ["key"])
    assert examples.latents_mean.shape == examples.latents_std.shape == (1, 4, 8, 8)
    assert (examples.latents_std > 0).all()
    assert examples.conditioning.tokens.shape == (1, 16, 16)
    posterior = tiny_model.vae.encode(
        torch.from_numpy(np.asarray(drawn[0]) / 127.5 - 1).float().permute(2, 0, 1)[None]
    ).latent_dist
    scaled = posterior.mean * tiny_model.vae.config.scaling_factor
    torch.testing.assert_close(examples.latents_mean, scaled, atol=1e-5, rtol=1e-4)


def test_a_saved_model_is_a_plain_diffusers_folder(
    tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    tiny_model.save_pretrained(tmp_path / "released")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "released", safety_checker=None)
    assert same_weights(plain.unet.state_dict(), weights(tiny_model))
    assert not [
        p for p in (tmp_path / "released").rglob("*") if p.suffix in {".bin", ".pt", ".pkl"}
    ]


def drawn_by(pipeline: DiffusionPipeline) -> np.ndarray:
    """One image of a plain diffusers pipeline."""
    generator = torch.Generator().manual_seed(3)
    return pipeline(
        "a cat", num_inference_steps=2, generator=generator, output_type="np", height=16, width=16
    ).images


def adapted(model: StableDiffusion) -> StableDiffusion:
    """With an adapter that shows: lora_alpha is not the rank, B is not 0."""
    adapted = model.with_lora(
        rank=2, lora_alpha=5, lora_dropout=0.0, target_modules=["to_q", "to_out.0"],
        generator=Seeds(0).generator("a"),
    )  # fmt: skip
    shake(adapted.denoiser)
    return adapted


@torch.no_grad()
def shake(module: torch.nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if ".lora_B." in name:
            parameter += torch.randn(parameter.shape, generator=Seeds(0).generator(name))


def test_a_saved_adapter_is_read_by_plain_diffusers(
    tiny_model: StableDiffusion, tiny_folder: Path, tmp_path: Path
) -> None:
    model = adapted(tiny_model)
    model.save_lora(tmp_path)
    plain = DiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    before = drawn_by(plain)
    plain.load_lora_weights(tmp_path)
    after = drawn_by(plain)
    np.testing.assert_array_equal(after, drawn_by(model.pipeline()))
    assert np.abs(after - before).max() > 0.01


def test_a_kohya_file_is_read_by_plain_diffusers_and_by_us(
    tiny_model: StableDiffusion, tiny_folder: Path, tmp_path: Path
) -> None:
    model, file = adapted(tiny_model), tmp_path / "adapter.safetensors"
    model.save_lora_kohya(file)
    plain = DiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    before = drawn_by(plain)
    plain.load_lora_weights(file)
    np.testing.assert_allclose(drawn_by(plain), drawn_by(model.pipeline()), atol=1e-6)
    assert np.abs(drawn_by(plain) - before).max() > 0.01
    read = tiny_model.load_lora(file)
    np.testing.assert_allclose(drawn_by(read.pipeline()), drawn_by(plain), atol=1e-6)
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_network_dim"] == "2"
        assert {n.rpartition(".")[2] for n in opened.keys()} == {"weight", "alpha"}


def test_an_adapter_of_plain_diffusers_is_read(
    tiny_model: StableDiffusion, tiny_folder: Path, tmp_path: Path
) -> None:
    plain = DiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None)
    plain.unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_k", "to_v"]))
    shake(plain.unet)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(plain.unet))
    plain.save_lora_weights(tmp_path, unet_lora_layers=layers)
    before = weights(tiny_model)
    model = tiny_model.load_lora(tmp_path)
    np.testing.assert_array_equal(drawn_by(model.pipeline()), drawn_by(plain))
    assert np.abs(drawn_by(plain) - drawn_by(tiny_model.pipeline())).max() > 0.01
    assert same_weights(weights(tiny_model), before)
    model.save_lora(tmp_path / "again")
    again = tiny_model.load_lora(tmp_path / "again" / "pytorch_lora_weights.safetensors")
    assert same_weights(weights(again), weights(model))


@pytest.mark.parametrize("how", ["missing", "not lora", "shape", "unknown", "words", "damaged"])
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    how: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    adapted(tiny_model).save_lora(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    found = load_file(file)
    first = next(name for name in found if ".lora_A." in name)
    if how == "not lora":
        found = {"unet.conv_in.weight": torch.ones(2, 2)}
    elif how == "shape":
        found[first] = torch.ones(2, 3)
    elif how == "unknown":
        found["unet.nowhere.to_q.lora_A.weight"] = torch.ones(2, 16)
    elif how == "words":
        found["text_encoder.encoder.layers.0.self_attn.q_proj.lora_A.weight"] = torch.ones(2, 16)
    save_file(found, file)
    if how == "damaged":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError) as error:
        tiny_model.load_lora(tmp_path / "nowhere" if how == "missing" else tmp_path)
    assert "\n" not in str(error.value)


def test_a_destroyed_adapter_is_not_saved(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    model = adapted(tiny_model)
    with torch.no_grad():
        next(p for n, p in model.denoiser.named_parameters() if ".lora_A." in n).fill_(float("inf"))
    with pytest.raises(UnitFailed, match=r"to_q\.lora"):
        model.save_lora(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def spoil(found: dict[str, torch.Tensor], how: str) -> str:
    name = "conv_in.weight"
    if how == "missing":
        del found[name]
    elif how == "unknown":
        found["backdoor"] = torch.ones(1)
    elif how == "shape":
        found[name] = torch.ones(1)
    else:
        found[name][0] = float(how)
    return "backdoor" if how == "unknown" else name


@pytest.mark.parametrize("how", ["missing", "unknown", "shape", "nan", "inf"])
def test_weights_that_do_not_fit_are_refused_by_name(
    how: str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    tiny_model.save_weights(tmp_path / "w.safetensors")
    found = load_file(tmp_path / "w.safetensors")
    name = spoil(found, how)
    save_file(found, tmp_path / "w.safetensors")
    before = weights(tiny_model)
    with pytest.raises(ModelError, match=name):
        tiny_model.with_weights(tmp_path / "w.safetensors")
    assert same_weights(weights(tiny_model), before)


def test_a_destroyed_model_is_not_saved(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    model = tiny_model.clone()
    with torch.no_grad():
        model.denoiser.conv_in.bias[0] = float("nan")
    with pytest.raises(UnitFailed, match=r"conv_in\.bias"):
        model.save_weights(tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_pickled_model_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    make_pipeline(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(ModelError) as error:
        load_backbone(ModelConfig(pretrained_model_name_or_path=str(folder)))
    assert "\n" not in str(error.value)


def test_a_models_identity_is_its_content_not_its_place(
    tiny_config: ModelConfig, tmp_path: Path
) -> None:
    make_pipeline(tmp_path / "copy")
    make_pipeline(tmp_path / "other", seed=1)
    copy, other = (
        ModelConfig(pretrained_model_name_or_path=str(tmp_path / n)) for n in ("copy", "other")
    )
    assert identity(copy) == identity(tiny_config) != identity(other)
    assert identity(copy.model_copy(update={"mixed_precision": "bf16"})) != identity(copy)
