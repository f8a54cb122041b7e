"""A random Stable Diffusion, encoders and examples, made from config in a second."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Examples


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE without merges: every word is spelt in letters."""
    letters = [chr(c) for c in range(33, 127)]
    tokens = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(
        vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=16
    )


def make_pipeline(
    folder: Path, prediction_type: str = "epsilon", seed: int = 0
) -> StableDiffusionPipeline:
    """16 px images, 8x8x4 latents, two levels of cross-attention."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16, attention_head_dim=8,
        ),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def make_sdxl(folder: Path, prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A random SDXL: 16 px images, two text encoders, attention in the second level only, as there.

    The second encoder is wider, by which the parts of a single file are told apart.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder.with_name(folder.name + "-tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16, projection_dim=12,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=16,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(
            CLIPTextConfig.from_dict({**text.to_dict(), "hidden_size": 24})
        ),
        tokenizer_2=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=40, attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2),
            use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 12,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
            prediction_type=prediction_type,
        ),
        add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def make_klein(folder: Path, shift: float = 3.0) -> Flux2KleinPipeline:
    """A random FLUX.2 klein: 16 px images as 4x4 patches of 16 channels; one double-stream block."""
    torch.manual_seed(0)
    letters = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(["<|endoftext|>", *letters])}, merges=[],
        chat_template=template, model_max_length=16,
    )  # fmt: skip
    # The pipeline reads the hidden states after 9, 18 and 27 layers.
    text = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=27,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, max_position_embeddings=32,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    vae.bn.running_mean.copy_(torch.linspace(-0.5, 0.5, 16))
    vae.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=False),
        vae=vae,
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=tokenizer,
        transformer=Flux2Transformer2DModel(
            in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=3 * 8, timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
        ),
    )  # fmt: skip
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline


def make_examples(count: int, seed: int) -> Examples:
    """Encoded examples that fit the tiny model, without an image behind them."""
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        latents_mean=torch.randn((count, 4, 8, 8), generator=generator),
        latents_std=torch.full((count, 4, 8, 8), 0.01),
        conditioning=Conditioning(torch.randn((count, 16, 16), generator=generator), {}),
        keys=tuple(f"{seed}-{i}" for i in range(count)),
        captions=("a picture",) * count,
    )


def doubled(model: StableDiffusion) -> StableDiffusion:
    """A trainable copy in double precision."""
    return replace(model, denoiser=copy.deepcopy(model.denoiser).double()).clone()


def doubled_examples(examples: Examples) -> Examples:
    """The same examples in double precision."""
    return replace(
        examples,
        latents_mean=examples.latents_mean.double(),
        latents_std=examples.latents_std.double(),
        conditioning=examples.conditioning.to(torch.float64),
    )


def weights(model: StableDiffusion) -> dict[str, torch.Tensor]:
    """A copy of the unet's weights."""
    return {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def tiny_study(
    *, evaluation: Mapping[str, Any] = MappingProxyType({}), **parts: Any
) -> StudyConfig:
    """The least study that there is: one concept of two drawings. `parts` replace whole parts of it, those
    of `evaluation` one by one."""
    cat = {
        "name": "cat",
        "source": {"name": "openmoji", "match": "^CAT( FACE)?$", "caption": "a cat"},
        "validation_prompts": ["a cat"],
    }
    raw = {
        "name": "tiny",
        "concepts": {"malicious": [cat]},
        "prior": {"source": {"name": "openmoji", "match": "^DOG( FACE)?$", "caption": "a dog"}},
        "defense": {"name": "gift", "max_train_steps": 4, "train_batch_size": 2},
        "attacks": [{"name": "dreambooth"}],
        "evaluation": {
            "metrics": [{"name": name} for name in ("clip_text", "clip_image", "dino")],
            "safe_prompts": ["a house", "zzzz"],
            "num_images_per_prompt": 2,
            "num_inference_steps": 2,
            **evaluation,
        },
    }
    return StudyConfig.model_validate(raw | parts, context={"check": plugins.check})


def make_encoders(folder: Path) -> dict[str, str]:
    """Random CLIP, DINO and LPIPS encoders; role -> folder, as evaluation.encoders wants."""
    torch.manual_seed(0)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    tokenizer = make_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    dino = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=16, patch_size=4,
    )  # fmt: skip
    lpips = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    models = {"clip": CLIPModel(clip), "dino": ViTModel(dino), "lpips": ResNetModel(lpips)}
    for role, model in models.items():
        model.save_pretrained(folder / role)
        processor.save_pretrained(folder / role)
    tokenizer.save_pretrained(folder / "clip")
    return {role: str(folder / role) for role in models}


def make_custom_concept_101(folder: Path) -> Path:
    """A data set in CustomConcept101's layout: two cars, a tortoise and sunglasses, odd file names."""
    layout = {
        "transport_car1": ("car", "photo of a <new1> car", ("1.JPG", "2.jpeg", "10.jpg")),
        "transport_car2": ("car", "photo of a <new1> car", ("a copy.jpg", "b.png")),
        "plushie_tortoise": (
            "tortoise plushie", "photo of a <new1> tortoise plushie",
            tuple(f"{i}.jpeg" for i in range(11)),
        ),
        "wearable_sunglasses2": ("sunglasses", "photo of <new1> sunglasses", ("0.png", "1.png")),
    }  # fmt: skip
    rng, rows = np.random.default_rng(0), []
    for name, (class_prompt, instance_prompt, files) in layout.items():
        place = folder / "benchmark_dataset" / name
        place.mkdir(parents=True)
        (place / ".DS_Store").write_bytes(b"not an image")
        for file in files:
            draw = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(draw).resize((24, 16), Image.Resampling.BICUBIC).save(place / file)
        rows.append({
            "instance_prompt": instance_prompt, "class_prompt": class_prompt,
            "instance_data_dir": f"./benchmark_dataset/{name}",
            "class_data_dir": f"./regularization/{class_prompt}",
            "prompt_filename": f"prompts/{class_prompt}.txt",
        })  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(rows))
    return folder
