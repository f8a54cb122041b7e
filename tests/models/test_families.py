"""Each family of models against its own diffusers code: the training script's formulae, the pipeline's
pictures, adapters that travel both ways; and the whole way from images to a released folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    UNet2DConditionModel,
)
from diffusers.training_utils import compute_density_for_timestep_sampling
from PIL import Image
from safetensors.torch import load_file
from tiny import make_klein, make_pipeline, make_sdxl, same_weights, tiny_study, weights
from torch import Tensor

from gift_ray import plugins
from gift_ray.config.schema import MergeConfig, ModelConfig
from gift_ray.errors import ModelError, UnitFailed
from gift_ray.models.adapters import modules_named
from gift_ray.models.architecture import architecture
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import base_model, check_base
from gift_ray.models.merge import merge_weights
from gift_ray.models.sdxl import original_name
from gift_ray.study import suited
from gift_ray.study.battery import with_battery
from gift_ray.study.journal import LocalJournal
from gift_ray.study.words import Reader
from gift_ray.training.diffusion import Examples, Seeds

MAKERS: dict[str, Callable[[Path], Any]] = {"sdxl": make_sdxl, "klein": make_klein}
CAPTIONS = ["an sks", "a cat", "my sks"]
SEEDS = Seeds(3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("families") / name for name in MAKERS}
    for name, folder in made.items():
        MAKERS[name](folder)
    return made


def model_at(folder: Path) -> Backbone:
    return base_model(ModelConfig(pretrained_model_name_or_path=str(folder), resolution=16))


@pytest.fixture(params=list(MAKERS))
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Backbone:
    return model_at(folders[request.param])


def encoded(model: Backbone) -> Examples:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(3)]
    return model.encode(images, CAPTIONS, ["0", "1", "2"])


def pictures(model: Backbone, **options: Any) -> np.ndarray:
    drawn = model.generate(
        ["a cat", "a dog"], seeds=SEEDS, guidance_scale=3.0, batch_size=2,
        **{"num_inference_steps": 2, **options},
    )  # fmt: skip
    return np.stack([np.asarray(image) for image in drawn])


def plain_pictures(pipeline: Any, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generators = [SEEDS.generator("image", i) for i in range(2)]
    drawn = pipeline(
        prompt=["a cat", "a dog"], height=16, width=16, guidance_scale=3.0, generator=generators,
        **{"num_inference_steps": 2, **options},
    ).images  # fmt: skip
    return np.stack([np.asarray(image) for image in drawn])


# Losses, written as the diffusers training scripts write them.


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_of_sdxl_is_its_training_scripts(kind: str, tmp_path: Path) -> None:
    plain = make_sdxl(tmp_path / "sdxl", prediction_type=kind)
    model = model_at(tmp_path / "sdxl")
    batch = encoded(model).batch(3, SEEDS.generator("b"))
    noise, times = model.draw(3, SEEDS.generator("n"))
    with torch.no_grad():
        ours = model.denoising_loss(batch.latents, batch.conditioning, times, noise)

        # train_dreambooth_lora_sdxl.py: encode_prompt, compute_time_ids, the loss.
        states = []
        for tokenizer, encoder in (
            (plain.tokenizer, plain.text_encoder), (plain.tokenizer_2, plain.text_encoder_2),
        ):  # fmt: skip
            ids = tokenizer(
                list(batch.captions), padding="max_length", max_length=tokenizer.model_max_length,
                truncation=True, return_tensors="pt",
            ).input_ids  # fmt: skip
            output = encoder(ids, output_hidden_states=True, return_dict=False)
            pooled, hidden = output[0], output[-1][-2]
            states.append(hidden)
        time_ids = torch.tensor([[16, 16, 0, 0, 16, 16]] * 3, dtype=torch.float32)
        scheduler = DDPMScheduler.from_config(plain.scheduler.config)
        noisy = scheduler.add_noise(batch.latents, noise, times)
        predicted = plain.unet(
            noisy, times, torch.cat(states, dim=-1),
            added_cond_kwargs={"time_ids": time_ids, "text_embeds": pooled},
        ).sample  # fmt: skip
    velocity = scheduler.get_velocity(batch.latents, noise, times)
    target = noise if kind == "epsilon" else velocity
    written = ((predicted.float() - target.float()) ** 2).mean((1, 2, 3))
    torch.testing.assert_close(ours, written, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_loss_of_klein_is_its_training_scripts(
    dynamic: bool, tmp_path: Path
) -> None:  # fmt: skip
    plain = make_klein(tmp_path / "klein")
    plain.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
        plain.scheduler.config, use_dynamic_shifting=dynamic
    )
    plain.save_pretrained(tmp_path / "klein")
    model = model_at(tmp_path / "klein")
    examples = encoded(model)
    batch = examples.batch(3, SEEDS.generator("b"))
    noise, times = model.draw(3, SEEDS.generator("n"))
    with torch.no_grad():
        ours = model.denoising_loss(batch.latents, batch.conditioning, times, noise)

        # train_dreambooth_lora_flux2_klein.py, --weighting_scheme logit_normal.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(plain.scheduler.config)
        generator = SEEDS.generator("n")
        drawn = torch.randn(batch.latents.shape, generator=generator)
        u = compute_density_for_timestep_sampling(
            weighting_scheme="logit_normal", batch_size=3, logit_mean=0.0, logit_std=1.0,
            generator=generator,
        )  # fmt: skip
        timesteps = scheduler.timesteps[(u * scheduler.config.num_train_timesteps).long()]
        places = [(scheduler.timesteps == t).nonzero()[0].item() for t in timesteps]
        sigmas = scheduler.sigmas[places].view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * batch.latents + sigmas * drawn
        embeds, text_ids = plain.encode_prompt(list(batch.captions), max_sequence_length=16)
        latent_ids = Flux2KleinPipeline._prepare_latent_ids(noisy)
        predicted = plain.transformer(
            hidden_states=Flux2KleinPipeline._pack_latents(noisy), timestep=timesteps / 1000,
            guidance=None, encoder_hidden_states=embeds, txt_ids=text_ids, img_ids=latent_ids,
            return_dict=False,
        )[0]  # fmt: skip
        predicted = Flux2KleinPipeline._unpack_latents_with_ids(predicted, latent_ids)
        target = drawn - batch.latents
        written = ((predicted.float() - target.float()) ** 2).reshape(3, -1).mean(1)
    torch.testing.assert_close(times, timesteps)
    torch.testing.assert_close(ours, written, rtol=1e-5, atol=1e-5)


def test_latents_of_klein_are_the_scripts(folders: dict[str, Path]) -> None:
    model, plain = model_at(folders["klein"]), DiffusionPipeline.from_pretrained(folders["klein"])
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
    pixels = torch.from_numpy(np.asarray(image)).float().permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = plain._encode_vae_image(pixels, generator=None)
    mean, std = model.encode_images([image])
    torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    assert not std.any()


# Pictures.


def test_pictures_are_those_of_the_plain_pipeline(model: Backbone, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "released")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "released")
    options = {"max_sequence_length": 16} if model.denoiser_name == "transformer" else {}
    np.testing.assert_array_equal(pictures(model), plain_pictures(plain, **options))


@pytest.mark.parametrize("make", [make_pipeline, make_sdxl])
def test_pictures_of_dpm_solver_are_those_of_the_plain_pipeline_with_it(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    make(tmp_path / "base")
    model = model_at(tmp_path / "base")
    model.save_pretrained(tmp_path / "released")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "released")
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    assert plain.scheduler.config.algorithm_type == "dpmsolver++"
    drawn = pictures(model, sampler="dpm++", num_inference_steps=3)
    np.testing.assert_array_equal(drawn, plain_pictures(plain, num_inference_steps=3))
    assert (drawn != pictures(model, num_inference_steps=3)).any()


def test_klein_is_drawn_with_its_own_sampler_alone(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"^evaluation.sampler: dpm\+\+ is not for FLUX.2 klein"):
        pictures(model_at(folders["klein"]), sampler="dpm++")
    config = tiny_study(
        model={"pretrained_model_name_or_path": str(folders["klein"])},
        evaluation={"sampler": "dpm++"},
    )
    with pytest.raises(ModelError, match=r"leave it at default"):
        suited.check_base(config)


def test_sampling_cut_short_and_finished_is_sampling(model: Backbone) -> None:
    """All steps of `partially_denoised` but the last are the pipeline's."""
    noise, _ = model.draw(2, SEEDS.generator("n"))
    prompts = ["a cat", "a dog"]
    conditioning, null = model.condition(prompts), model.unconditional()
    kept: list[Tensor] = []

    def keep(_pipeline: Any, step: int, _time: Any, values: dict[str, Tensor]) -> dict:
        kept.append(values["latents"])
        return {}

    latents = noise if model.denoiser_name == "unet" else Flux2KleinPipeline._pack_latents(noise)
    pipeline = model.pipeline()
    options: dict[str, Any] = {"latents": noise}
    if model.denoiser_name == "transformer":
        options["max_sequence_length"] = 16
    pipeline(
        prompt=prompts, height=16, width=16, num_inference_steps=3, guidance_scale=3.0,
        output_type="latent", callback_on_step_end=keep, **options,
    )  # fmt: skip
    for steps in (1, 2):
        found, times = model.partially_denoised(
            noise, conditioning, null, steps=steps, num_inference_steps=3, guidance_scale=3.0
        )
        expected = kept[steps - 1]
        if model.denoiser_name == "transformer":
            found = Flux2KleinPipeline._pack_latents(found)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert times.shape == (2,)
    assert latents.shape == kept[0].shape


# The whole way.

TRAININGS = [
    ("attacks", "dreambooth", {}),
    ("attacks", "lora", {"learning_rate": 1e-2}),
    ("attacks", "full_finetune", {"reinitialize": "cross_attention", "weight_noise": 0.01}),
    ("defenses", "gift", {}),
    ("defenses", "gift", {"noise_layers": "attn2", "noise_target": "sample"}),
    ("defenses", "imma", {"inner_attack": "lora"}),
    ("defenses", "esd", {"num_inference_steps": 3}),
    ("defenses", "esd", {"train_method": "esd-x-strict", "x_t": "off_policy"}),
    ("defenses", "post_immunization", {"num_images": 2, "num_inference_steps": 1}),
]


@pytest.mark.parametrize(("kind", "name", "options"), TRAININGS)
def test_every_training_runs_and_leaves_its_input_alone(
    kind: str, name: str, options: dict, model: Backbone, journal: LocalJournal, tmp_path: Path
) -> None:
    before = {n: t.clone() for n, t in model.weights().items()}
    examples = encoded(model)
    short = {"max_train_steps": 4, "train_batch_size": 2, "learning_rate": 1e-3}
    cls = plugins.resolve(kind, name)
    plugin = cls(**{n: v for n, v in (short | options).items() if n in cls.model_fields})
    if kind == "attacks":
        *_, (_, trained) = plugin.finetune(model, examples, seeds=SEEDS, report=journal)
    else:
        trained = plugin.immunize(model, [examples], examples, seeds=SEEDS, report=journal)
    assert same_weights(dict(model.weights()), before)
    assert trained.has_adapter or not same_weights(trained.weights(), before)
    if not trained.has_adapter:
        trained.save_weights(tmp_path / "w.safetensors")
        again = model.with_weights(tmp_path / "w.safetensors")
        np.testing.assert_array_equal(pictures(again), pictures(trained))


def test_every_group_selects_and_psi_is_what_reads_the_prompt(model: Backbone) -> None:
    groups = {
        group: set(model.parameters(group))
        for group in ("cross_attention", "cross_attention_kv", "attention", "noxattn", "all")
    }
    assert groups["cross_attention_kv"] < groups["cross_attention"] < groups["all"]
    assert groups["attention"] < groups["all"]
    assert not groups["noxattn"] & groups["cross_attention"]
    assert model.layers("blocks")
    assert model.layers("attn2")
    # With psi's keys and values at zero the prompt's own tokens no longer reach the image directly.
    if model.denoiser_name == "unet":
        silent = model.clone()
        with torch.no_grad():
            for parameter in silent.parameters("cross_attention_kv").values():
                parameter.zero_()
        conditioning = model.condition(["a cat", "a dog"])
        same = replace(conditioning, others={n: t[[0, 0]] for n, t in conditioning.others.items()})
        noise, times = model.draw(1, SEEDS.generator("n"))
        with torch.no_grad():
            one, other = silent.predict(noise.repeat(2, 1, 1, 1), same, times.repeat(2))
        torch.testing.assert_close(one, other)


def test_other_factors_are_the_same_function_of_other_weights(model: Backbone) -> None:
    other = model.disturbed("refactor_cross_attention", 0.0, SEEDS.generator("d"))
    changed = {n for n, t in other.weights().items() if not torch.equal(t, model.weights()[n])}
    # Queries and keys that are normalised stay as they are.
    turned = {"to_v", "to_out.0"} | (
        {"to_q", "to_k"} if model.denoiser_name == "unet" else {"add_v_proj", "to_add_out"}
    )
    assert {
        name.removesuffix(".weight").split("attn2.")[-1].split("attn.")[-1] for name in changed
    } == turned
    noise, times = model.draw(2, SEEDS.generator("n"))
    conditioning = model.condition(["a cat", "a dog"])
    with torch.no_grad():
        predicted = [m.predict(noise, conditioning, times) for m in (model, other)]
    torch.testing.assert_close(*predicted, rtol=1e-4, atol=1e-5)


def test_merging_in_closed_form_is_for_keys_that_read_the_prompt(model: Backbone) -> None:
    examples = encoded(model)
    base = {name: tensor.clone() for name, tensor in model.weights().items()}
    moved = {name: tensor + 0.01 for name, tensor in base.items()}
    names = list(model.parameters("cross_attention_kv"))
    options = MergeConfig(keys_and_values="solve", max_condition=1e30)
    if model.denoiser_name == "transformer":
        with pytest.raises(UnitFailed, match="set it to average"):
            merge_weights(base, [moved], [examples], examples, names, options)
        options = MergeConfig(keys_and_values="average")
    merged, _ = merge_weights(base, [moved], [examples], examples, names, options)
    assert merged.keys() == base.keys()


# Adapters and batteries, by what layers do.


def test_roles_are_the_layers_of_the_training_scripts_and_of_all_blocks(
    folders: dict[str, Path],
) -> None:
    own = {
        "sdxl": ({"to_q", "to_k", "to_v", "to_out.0"}, {"ff.net.0.proj", "ff.net.2", "conv1", "conv2"}),
        "klein": (
            # train_dreambooth_lora_flux2_klein.py: to_out of the single-stream blocks is no list.
            {"to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", "to_out"},
            {"ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out",
             "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"},
        ),
    }  # fmt: skip
    for family, (attention, others) in own.items():
        model = model_at(folders[family])
        for role, ends in (("attention", attention), ("blocks", attention | others)):
            named = modules_named([role], model.roles, model.weights())
            left = [name for name in named if not name.endswith(tuple(f".{end}" for end in ends))]
            assert not left
            for end in ends:
                # Every such module, and no other that only ends alike.
                modules = {
                    name for name, module in model.denoiser.named_modules()
                    if name.endswith(f".{end}") and hasattr(module, "weight")
                }  # fmt: skip
                assert modules <= set(named)
                assert modules
    klein = model_at(folders["klein"])
    everywhere = modules_named(["blocks"], klein.roles, klein.weights())
    assert not [name for name in everywhere if "transformer_blocks" not in name]


def test_every_attack_of_the_battery_takes_a_step_on_every_family(
    model: Backbone, folders: dict[str, Path]
) -> None:
    config = with_battery(
        tiny_study(
            attacks=[{"name": "dreambooth", "learning_rate": 1e-4, "max_train_steps": 10}],
            confirm={"battery": "2026-11", "seeds": [9]},
        )
    )
    assert config.confirm is not None
    examples = encoded(model)
    base = architecture(
        ModelConfig(
            pretrained_model_name_or_path=str(
                folders["sdxl" if model.denoiser_name == "unet" else "klein"]
            )
        )
    )
    seen = set()
    for chosen in config.confirm.attacks:
        attack = plugins.build("attacks", chosen.name, chosen.options)
        attack.require(base)
        kind = {k: v for k, v in chosen.options.items() if k not in ("learning_rate", "rank")}
        if str(kind) in seen:
            continue
        seen.add(str(kind))
        attacker = attack.attacker(model, examples, SEEDS)
        values = attacker.step(0, SEEDS.generator("attack", 1))
        assert np.isfinite(values["loss"]), chosen.title


# Words of SDXL's two text encoders.


def test_both_text_encoders_of_sdxl_are_trained(
    folders: dict[str, Path], journal: LocalJournal
) -> None:
    model = model_at(folders["sdxl"])
    examples = encoded(model)
    attack = plugins.build(
        "attacks", "dreambooth",
        {"train_text_encoder": True, "max_train_steps": 2, "learning_rate": 1e-2},
    )  # fmt: skip
    *_, (_, tuned) = attack.finetune(model, examples, seeds=SEEDS, report=journal)
    old, new = model.text_parameters(), tuned.text_parameters()
    for encoder in ("text_encoder.", "text_encoder_2."):
        assert any(not torch.equal(old[n], new[n]) for n in old if n.startswith(encoder))
    assert not torch.equal(
        tuned.condition(["a cat"]).others["pooled"], model.condition(["a cat"]).others["pooled"]
    )


def test_a_new_word_is_learnt_by_both_text_encoders_of_sdxl(
    folders: dict[str, Path], journal: LocalJournal
) -> None:
    model = model_at(folders["sdxl"])
    options = {"max_train_steps": 2, "num_vectors": 2, "initializer_token": "a"}
    attack = plugins.build("attacks", "textual_inversion", options)
    attacker = attack.attacker(model, encoded(model), SEEDS)
    parameters = attacker.trainee.parameters
    assert {name: p.shape for name, p in parameters.items()} == {
        "rows": (2, 16), "rows_2": (2, 24),
    }  # fmt: skip
    before = {name: p.detach().clone() for name, p in parameters.items()}
    attacker.step(0, SEEDS.generator("s"))
    assert all((parameters[name] != before[name]).all() for name in before)
    words = [m.condition(["an sks", "a cat"]).tokens for m in (model, attacker.trainee.model)]
    assert not torch.equal(words[0][0], words[1][0])
    assert torch.equal(words[0][1], words[1][1])


def test_kleins_language_model_is_not_trained(folders: dict[str, Path]) -> None:
    model = model_at(folders["klein"])
    for name, options in (("textual_inversion", {}), ("dreambooth", {"train_text_encoder": True})):
        attack = plugins.build("attacks", name, options)
        with pytest.raises(ModelError, match=r"^FLUX.2 klein: its text encoder"):
            attack.attacker(model, encoded(model), SEEDS)


# Adapters.


def adapted(model: Backbone, targets: tuple[str, ...] = ("to_q", "to_out.0")) -> Backbone:
    result = model.with_lora(
        rank=2, lora_alpha=5, lora_dropout=0.0, target_modules=targets,
        generator=SEEDS.generator("a"),
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in result.adapter().items():
            if ".lora_B." in name:
                parameter += torch.randn(parameter.shape, generator=SEEDS.generator(name))
    return result


def test_adapters_travel_to_plain_diffusers_and_back(
    model: Backbone, folders: dict[str, Path], tmp_path: Path
) -> None:
    ours = adapted(model)
    ours.save_lora(tmp_path)
    model.save_pretrained(tmp_path / "base")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "base")
    options = {"max_sequence_length": 16} if model.denoiser_name == "transformer" else {}
    before = plain_pictures(plain, **options)
    plain.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    np.testing.assert_array_equal(plain_pictures(plain, **options), pictures(ours))
    assert (pictures(ours) != before).any()
    again = model.load_lora(tmp_path / "pytorch_lora_weights.safetensors")
    np.testing.assert_array_equal(pictures(again), pictures(ours))


def test_a_kohya_file_of_sdxl_has_the_original_names_and_is_read(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_at(folders["sdxl"])
    ours, file = adapted(model), tmp_path / "kohya.safetensors"
    ours.save_lora_kohya(file)
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        names = set(opened.keys())
    blocks = r"lora_unet_(input_blocks_4_1|input_blocks_3_1|middle_block_1|output_blocks_[01]_1)_"
    assert all(re.match(blocks, name) for name in names), names
    model.save_pretrained(tmp_path / "base")
    plain = DiffusionPipeline.from_pretrained(tmp_path / "base")
    plain.load_lora_weights(file)
    found = plain_pictures(plain).astype(int)
    assert np.abs(found - pictures(ours)).max() <= 1
    assert np.abs(pictures(model.load_lora(file)).astype(int) - pictures(ours)).max() <= 1


def test_a_kohya_file_of_klein_is_read_and_has_queries_keys_and_values_in_one(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model = model_at(folders["klein"])
    ours, file = adapted(model, ("blocks", "context_embedder")), tmp_path / "kohya.safetensors"
    ours.save_lora_kohya(file)
    tensors = load_file(file)
    assert {name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")} == {
        "lora_unet_txt_in",
        *(f"lora_unet_double_blocks_0_{stream}_{layer}" for stream in ("img", "txt")
          for layer in ("attn_qkv", "attn_proj", "mlp_0", "mlp_2")),
        *(f"lora_unet_single_blocks_{i}_linear{n}" for i in (0, 1) for n in (1, 2)),
    }  # fmt: skip
    # What the fused layer adds to queries, keys and values, one below the other.
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    down, up = (tensors[f"{fused}.lora_{part}.weight"] for part in ("down", "up"))
    added = float(tensors[f"{fused}.alpha"]) / len(down) * up @ down
    attention = ours.denoiser.transformer_blocks[0].attn
    parts = [getattr(attention, n).get_delta_weight("default") for n in ("to_q", "to_k", "to_v")]
    torch.testing.assert_close(added, torch.cat(parts))

    plain = DiffusionPipeline.from_pretrained(folders["klein"])
    plain.load_lora_weights(file)
    found = plain_pictures(plain, max_sequence_length=16).astype(int)
    assert np.abs(found - pictures(ours)).max() <= 1
    assert np.abs(pictures(model.load_lora(file)).astype(int) - pictures(ours)).max() <= 1
    assert (pictures(ours) != pictures(model)).any()


def test_original_names_of_sdxl_are_those_of_its_published_code() -> None:
    # Of SDXL's own three levels with two layers each.
    expected = {
        "down_blocks.1.attentions.0.proj_in": "input_blocks.4.1.proj_in",
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k":
            "input_blocks.8.1.transformer_blocks.9.attn2.to_k",
        "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
        "up_blocks.0.attentions.2.proj_in": "output_blocks.2.1.proj_in",
        "up_blocks.1.attentions.0.proj_in": "output_blocks.3.1.proj_in",
        "down_blocks.0.resnets.0.conv1": None,
    }  # fmt: skip
    assert {name: original_name(name, 2) for name in expected} == expected


def test_what_kohyas_format_cannot_hold_is_one_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for family, targets, what in (
        ("sdxl", ("to_q", "conv1"), "resnets"), ("klein", ("to_q",), "only 1 of them"),
        ("klein", ("attention", "timestep_embedder.linear_1"), "timestep_embedder"),
    ):  # fmt: skip
        with pytest.raises(ModelError, match="kohya") as error:
            adapted(model_at(folders[family]), targets).save_lora_kohya(tmp_path / family)
        assert what in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / family).exists()


# What is refused, and zero terminal SNR.


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    for name, value in changes.items():
        content.pop(name, None)
        if value is not ...:
            content[name] = value
    file.write_text(json.dumps(content))


def refused(folder: Path) -> str:
    """The line that a study with this base ends in before any worker starts."""
    with pytest.raises(ModelError) as error:
        check_base(ModelConfig(pretrained_model_name_or_path=str(folder)))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_other_pipelines_are_refused_by_name(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "sd")
    for name, what in (
        (
            "StableDiffusionControlNetPipeline",
            "is not supported; supported: StableDiffusionPipeline",
        ),
        ("StableDiffusionInpaintPipeline", "is not supported"),
        ("StableDiffusionXLImg2ImgPipeline", "refiner"),
    ):
        edit(tmp_path / "sd" / "model_index.json", _class_name=name)
        assert what in refused(tmp_path / "sd")
    (tmp_path / "sd" / "model_index.json").write_text("[1")
    assert "no readable model_index.json" in refused(tmp_path / "sd")


def test_an_inpainting_unet_is_refused(tmp_path: Path) -> None:
    plain = make_pipeline(tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / "unet")
    unet = UNet2DConditionModel.from_config(plain.unet.config, in_channels=9)
    unet.save_pretrained(tmp_path / "sd" / "unet")
    assert "takes 9 channels and its VAE gives 4" in refused(tmp_path / "sd")


@pytest.mark.parametrize("family", ["sd", "sdxl", "klein"])
def test_a_missing_text_encoder_is_refused(family: str, tmp_path: Path) -> None:
    ({"sd": make_pipeline} | MAKERS)[family](tmp_path / family)
    edit(tmp_path / family / "model_index.json", text_encoder=[None, None])
    assert "has no text_encoder" in refused(tmp_path / family)


def test_a_tokenizer_without_a_length_is_refused(tmp_path: Path) -> None:
    make_pipeline(tmp_path / "sd")
    edit(tmp_path / "sd" / "tokenizer" / "tokenizer_config.json", model_max_length=...)
    assert "the tokenizer of" in refused(tmp_path / "sd")
    assert "has no model_max_length" in refused(tmp_path / "sd")


def test_zero_terminal_snr_is_as_in_plain_diffusers_and_not_for_epsilon(tmp_path: Path) -> None:
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    plain = make_pipeline(tmp_path / "v", prediction_type="v_prediction")
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, **zero)
    plain.save_pretrained(tmp_path / "v")
    model = model_at(tmp_path / "v")
    examples = encoded(model)
    batch = examples.batch(3, SEEDS.generator("b"))
    noise, _ = model.draw(3, SEEDS.generator("n"))
    times = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler.from_config(plain.scheduler.config)
    with torch.no_grad():
        ours = model.denoising_loss(batch.latents, batch.conditioning, times, noise)
        noisy = scheduler.add_noise(batch.latents, noise, times)
        predicted = plain.unet(noisy, times, batch.conditioning.tokens).sample
    velocity = scheduler.get_velocity(batch.latents, noise, times)
    torch.testing.assert_close(ours, ((predicted - velocity) ** 2).mean((1, 2, 3)))
    assert torch.equal(noisy[2], noise[2]), "the last timestep is pure noise"
    np.testing.assert_array_equal(pictures(model), plain_pictures(plain))

    epsilon = make_pipeline(tmp_path / "e")
    epsilon.scheduler = DDIMScheduler.from_config(epsilon.scheduler.config, **zero)
    epsilon.save_pretrained(tmp_path / "e")
    assert "zero terminal SNR" in refused(tmp_path / "e")


def test_pictures_of_sdxl_are_decoded_in_full_precision(folders: dict[str, Path]) -> None:
    model = replace(model_at(folders["sdxl"]), mixed_precision="bf16")
    seen = []
    handle = model.vae.decoder.register_forward_hook(
        lambda _module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    try:
        assert np.isfinite(pictures(model)).all()
    finally:
        handle.remove()
    assert seen == [(torch.float32, torch.float32)]
    assert "decode" not in vars(model.vae)


def test_weights_of_another_family_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    model_at(folders["klein"]).save_weights(tmp_path / "w.safetensors")
    sdxl = model_at(folders["sdxl"])
    before = weights(sdxl)
    with pytest.raises(ModelError, match="unknown unet weights"):
        sdxl.with_weights(tmp_path / "w.safetensors")
    assert same_weights(weights(sdxl), before)


@pytest.mark.parametrize("make", [make_pipeline, *MAKERS.values()])
def test_the_end_that_is_called_lost_changes_no_embedding(
    make: Callable[[Path], Any], tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    make(folder)
    if make is make_klein:
        say = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}</end>"
        (folder / "tokenizer" / "chat_template.jinja").write_text(say)
    model, reads = model_at(folder), Reader.of(folder)
    long = "a cat on a hat with a bat at a mat and a rat in a vat that sat " * 3
    read, lost = reads(long)
    assert read
    assert lost
    assert reads(read) == (read, "")
    whole = model.read([long]).tokens
    assert torch.equal(whole, model.read([f"{read} q{lost}"]).tokens)
    # One letter before the cut is read.
    other = f"{read[:-1]}{'b' if read[-1] != 'b' else 'c'}"
    assert not torch.equal(whole, model.read([f"{other} {lost}"]).tokens)
