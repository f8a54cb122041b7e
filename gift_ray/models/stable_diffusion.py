"""Stable Diffusion 1.x and 2.x, and all models with their folder layout.

They have a UNet2DConditionModel and one CLIP text encoder. diffusers is imported only where a model is
loaded, since that takes seconds and most processes of a study only plan.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.backbone import Backbone, NoiseLayers, ParameterGroup
from gift_ray.models.loading import (
    frozen,
    load_pipeline,
    noise_scheduler_of,
    require_text_to_image,
    resolution_of,
)
from gift_ray.models.placeholder import Placeholder, add_word, placeholder_of
from gift_ray.models.tokens import whole_words
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device
from gift_ray.training.diffusion import add_noise, prediction_target

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, StableDiffusionPipeline
    from transformers import PreTrainedModel

# Prefixes in a single file: the text encoder of Stable Diffusion, and SDXL's first; SDXL's second, under
# open_clip's names, which in the refiner's files stands in the first one's place.
FIRST_ENCODER = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
SECOND_ENCODER = "conditioner.embedders.1.model."
REFINER = "conditioner.embedders.0.model."


@dataclass(frozen=True)
class UNetBackbone(Backbone):
    """The common base of the families with a UNet2DConditionModel.

    They share the groups and layers by module path, the DDPM forward process, and its prediction types
    (epsilon, v_prediction, sample).
    """

    noise_scheduler: DDPMScheduler

    denoiser_name: ClassVar[str] = "unet"
    # What train_dreambooth_lora.py adapts; and the feed-forwards and convolutions of all blocks with it.
    roles: ClassVar[Mapping[str, str]] = {
        "attention": r".*\.(to_q|to_k|to_v|to_out\.0)",
        "blocks": r".*\.(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2)",
    }

    @classmethod
    def check(cls, folder: Path, name: str) -> None:
        super().check(folder, name)
        tokenizers = [part for part in cls.needed if part.startswith("tokenizer")]
        require_text_to_image(folder, tokenizers, name)

    @staticmethod
    def in_group(path: list[str], group: ParameterGroup) -> bool:
        """Groups follow from the path of a module; the modules named attn2 are the cross-attentions.

        On SD 1.5 cross_attention, cross_attention_kv, attention, noxattn and all hold 43,962,560 /
        19,169,280 / 93,536,640 / 813,495,680 / 859,520,964 parameters.
        """
        if group == "attention":
            return bool({"attn1", "attn2"} & set(path)) and bool(
                {"to_q", "to_k", "to_v", "to_out"} & set(path)
            )
        if group == "noxattn":
            outer = {"time_embedding", "conv_norm_out", "conv_out"}
            return "attn2" not in path and path[0] not in outer
        if "attn2" not in path:
            return False
        return group == "cross_attention" or bool({"to_k", "to_v"} & set(path))

    def find_layers(self, which: NoiseLayers) -> dict[str, nn.Module]:
        """The blocks of the UNet, or its attn2 modules."""
        unet: Any = self.denoiser
        if which == "attn2":
            return {n: m for n, m in unet.named_modules() if n.endswith(".attn2")}
        modules = {f"down_blocks.{i}": m for i, m in enumerate(unet.down_blocks)}
        modules |= {"mid_block": unet.mid_block} if unet.mid_block else {}
        modules |= {f"up_blocks.{i}": m for i, m in enumerate(unet.up_blocks)}
        return modules

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Times that are uniform over the training timesteps."""
        steps = self.noise_scheduler.config.num_train_timesteps
        return torch.randint(0, steps, (batch,), generator=generator)

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config: Any = self.denoiser.config
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return config.in_channels, *[self.resolution // factor] * 2

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return add_noise(latents, noise, times, self.noise_scheduler.alphas_cumprod)

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        kind = self.noise_scheduler.config.prediction_type
        return prediction_target(kind, latents, noise, times, self.noise_scheduler.alphas_cumprod)

    def scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.vae.config.scaling_factor
        return mean * scale, std * scale

    def sampler(self, num_inference_steps: int) -> Any:
        sampler = self.pipeline().scheduler
        sampler.set_timesteps(num_inference_steps)
        return sampler

    def dpm_solver(self) -> Any:
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(self.noise_scheduler.config)


@dataclass(frozen=True)
class StableDiffusion(UNetBackbone):
    """Stable Diffusion with one text encoder, whose last hidden states are the conditioning."""

    text_encoder: PreTrainedModel
    tokenizer: Any

    needed: ClassVar[tuple[str, ...]] = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        from diffusers import StableDiffusionPipeline

        pipeline = load_pipeline(
            StableDiffusionPipeline, folder, config,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        return cls(
            denoiser=frozen(pipeline.unet),
            vae=frozen(pipeline.vae),
            text_encoder=frozen(pipeline.text_encoder, on_cpu=config.low_memory),
            tokenizer=pipeline.tokenizer,
            noise_scheduler=noise_scheduler_of(pipeline),
            resolution=resolution_of(pipeline, config),
            mixed_precision=config.mixed_precision,
            text_on_cpu=config.low_memory,
        )

    def text_parameters(self) -> dict[str, nn.Parameter]:
        return {f"text_encoder.{name}": p for name, p in self.text_encoder.named_parameters()}

    def _with_trainable_words(self) -> Self:
        return replace(
            self, text_encoder=copy.deepcopy(self.text_encoder).to(self.device).requires_grad_(True)
        )

    def predict(self, noisy: Tensor, conditioning: Conditioning, times: Tensor) -> Tensor:
        given = (on_device(t, self.device) for t in (noisy, times, conditioning.tokens))
        with self.autocast():
            predicted: Tensor = self.denoiser(*given).sample
        return predicted

    def embeddings(self, read: Conditioning, null: Conditioning) -> dict[str, Tensor]:
        return {"prompt_embeds": read.tokens, "negative_prompt_embeds": null.tokens}

    def read(self, prompts: Sequence[str]) -> Conditioning:
        from diffusers.loaders import TextualInversionLoaderMixin

        # A learnt word with several vectors is spelt out as its tokens, as the pipeline does with prompts.
        spelt = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), self.tokenizer)
        ids = on_device(token_ids(self.tokenizer, spelt), self.text_encoder.device)
        return Conditioning(self.text_encoder(ids)[0], {})

    def with_placeholder(
        self, placeholder_token: str, initializer_token: str, num_vectors: int
    ) -> tuple[Self, Placeholder]:
        tokenizer, text_encoder, rows = add_word(
            self.tokenizer, self.text_encoder, placeholder_token, initializer_token, num_vectors
        )
        model = replace(self, tokenizer=tokenizer, text_encoder=text_encoder)
        return model, placeholder_of([tokenizer], [text_encoder], [rows])

    def words(self) -> list[str]:
        return whole_words(self.tokenizer.get_vocab())

    def pipeline(self) -> StableDiffusionPipeline:
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """The token ids of some prompts, [N, L], padded or cut to the tokenizer's length."""
    tokens = tokenizer(
        list(prompts), padding="max_length", truncation=True, return_tensors="pt",
        max_length=tokenizer.model_max_length,
    )  # fmt: skip
    ids: Tensor = tokens.input_ids
    return ids


def unet_of_single_file(path: Path, like: Backbone) -> dict[str, Tensor]:
    """The weights of the unet in a single-file Stable Diffusion checkpoint, under diffusers' names.

    Raises:
        ModelError: they don't fit the architecture of `like`.
    """
    from diffusers import UNet2DConditionModel

    with tempfile.TemporaryDirectory() as folder:
        # The file does not say its architecture, and diffusers would ask the hub; so it gets the base's.
        architecture: Any = like.denoiser
        architecture.save_config(Path(folder) / "unet")
        with any_failure_is(ModelError, f"{path}: not a single-file checkpoint of this base"):
            unet = UNet2DConditionModel.from_single_file(
                str(path), config=folder, subfolder="unet", local_files_only=True
            )
    return dict(unet.float().state_dict())


def parts_of_single_file(
    path: Path, tensors: Mapping[str, Tensor], like: Backbone
) -> dict[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """The weights of the VAE and of the CLIP text encoders of a single file, if it has them.

    For each part the base's weights are given beside the file's, under the same names.

    Raises:
        ModelError: a part is of another kind than the base's, or the file is one of SDXL's refiner.
    """
    from diffusers.loaders import single_file_utils as convert

    if any(name.startswith(REFINER) for name in tensors):
        raise ModelError(
            f"{path}: a file of SDXL's refiner, which finishes drawings of another model; give one of the "
            "base model"
        )
    found: dict[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]] = {}
    try:
        if any(name.startswith("first_stage_model.") for name in tensors):
            vae = convert.convert_ldm_vae_checkpoint(dict(tensors), dict(like.vae.config))
            found["vae"] = (like.vae.state_dict(), vae)
        words: Any = like
        if any(name.startswith(FIRST_ENCODER) for name in tensors):
            theirs = convert.convert_ldm_clip_checkpoint(dict(tensors))
            found["text_encoder"] = (_words(words.text_encoder.state_dict()), _words(theirs))
        if any(name.startswith(SECOND_ENCODER) for name in tensors):
            second = words.text_encoder_2
            theirs = convert.convert_open_clip_checkpoint(second, dict(tensors), SECOND_ENCODER)
            found["text_encoder_2"] = (_words(second.state_dict()), _words(theirs))
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: its VAE or text encoder is not of the base's kind ({detail}), and only its denoiser "
            "would be attacked; give the denoiser alone, or a diffusers folder"
        ) from error
    return found


def _words(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A text encoder's weights without a prefix that only some versions of transformers use.

    The positions that files may hold beside them are no weights.
    """
    return {
        name.removeprefix("text_model."): tensor
        for name, tensor in weights.items()
        if "position_ids" not in name
    }
