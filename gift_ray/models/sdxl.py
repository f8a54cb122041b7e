"""Stable Diffusion XL (Podell et al. 2023, section 2.2).

Its UNet reads the second-to-last hidden states of two CLIP text encoders. Beside the timestep it is given the
pooled embedding of the second encoder, and the size and crop of the picture. Training follows diffusers'
train_dreambooth_lora_sdxl.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig
from gift_ray.models import adapters
from gift_ray.models.loading import frozen, load_pipeline, noise_scheduler_of, resolution_of
from gift_ray.models.placeholder import Placeholder, add_word, placeholder_of
from gift_ray.models.stable_diffusion import UNetBackbone, token_ids
from gift_ray.models.tokens import whole_words
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StableDiffusionXL(UNetBackbone):
    """SDXL. Its conditioning is the states of both encoders, joined along the last axis, and `pooled` [N, D].

    In training and in drawing all pictures are uncropped squares of the model's resolution, so that the size
    and crop that the UNet is given (`time_ids`) are always the same.
    """

    text_encoder: PreTrainedModel
    tokenizer: Any
    text_encoder_2: PreTrainedModel
    tokenizer_2: Any
    force_zeros_for_empty_prompt: bool

    needed: ClassVar[tuple[str, ...]] = (
        "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
    )  # fmt: skip

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        from diffusers import StableDiffusionXLPipeline

        pipeline = load_pipeline(
            StableDiffusionXLPipeline, folder, config,
            feature_extractor=None, image_encoder=None, add_watermarker=False,
        )  # fmt: skip
        return cls(
            denoiser=frozen(pipeline.unet),
            vae=frozen(pipeline.vae),
            text_encoder=frozen(pipeline.text_encoder, on_cpu=config.low_memory),
            tokenizer=pipeline.tokenizer,
            text_encoder_2=frozen(pipeline.text_encoder_2, on_cpu=config.low_memory),
            tokenizer_2=pipeline.tokenizer_2,
            noise_scheduler=noise_scheduler_of(pipeline),
            resolution=resolution_of(pipeline, config),
            mixed_precision=config.mixed_precision,
            text_on_cpu=config.low_memory,
            force_zeros_for_empty_prompt=bool(pipeline.config.force_zeros_for_empty_prompt),
        )

    def text_parameters(self) -> dict[str, nn.Parameter]:
        encoders = {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}
        return {
            f"{which}.{name}": parameter
            for which, encoder in encoders.items()
            for name, parameter in encoder.named_parameters()
        }

    def _with_trainable_words(self) -> Self:
        return replace(
            self,
            text_encoder=copy.deepcopy(self.text_encoder).to(self.device).requires_grad_(True),
            text_encoder_2=copy.deepcopy(self.text_encoder_2).to(self.device).requires_grad_(True),
        )

    def predict(self, noisy: Tensor, conditioning: Conditioning, times: Tensor) -> Tensor:
        noisy, times = (on_device(t, self.device) for t in (noisy, times))
        conditioning = conditioning.to(self.device)
        size = float(self.resolution)
        # The original size, the crop's upper left corner, the target size.
        sizes = torch.tensor([size, size, 0.0, 0.0, size, size], dtype=noisy.dtype)
        time_ids = on_device(sizes, self.device).expand(len(noisy), -1)
        with self.autocast():
            predicted: Tensor = self.denoiser(
                noisy,
                times,
                conditioning.tokens,
                added_cond_kwargs={
                    "text_embeds": conditioning.others["pooled"],
                    "time_ids": time_ids,
                },
            ).sample
        return predicted

    def embeddings(self, read: Conditioning, null: Conditioning) -> dict[str, Tensor]:
        return {
            "prompt_embeds": read.tokens,
            "pooled_prompt_embeds": read.others["pooled"],
            "negative_prompt_embeds": null.tokens,
            "negative_pooled_prompt_embeds": null.others["pooled"],
        }

    def read(self, prompts: Sequence[str]) -> Conditioning:
        from diffusers.loaders import TextualInversionLoaderMixin

        states = []
        for tokenizer, encoder in (
            (self.tokenizer, self.text_encoder),
            (self.tokenizer_2, self.text_encoder_2),
        ):
            spelt = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), tokenizer)
            ids = on_device(token_ids(tokenizer, spelt), encoder.device)
            output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2])
        return Conditioning(torch.cat(states, dim=-1), {"pooled": output.text_embeds})

    def unconditional(self) -> Conditioning:
        empty = super().unconditional()
        if not self.force_zeros_for_empty_prompt:
            return empty
        zeros = {name: torch.zeros_like(tensor) for name, tensor in empty.others.items()}
        return Conditioning(torch.zeros_like(empty.tokens), zeros)

    def with_placeholder(
        self, placeholder_token: str, initializer_token: str, num_vectors: int
    ) -> tuple[Self, Placeholder]:
        asked = placeholder_token, initializer_token, num_vectors
        one, encoder, rows = add_word(self.tokenizer, self.text_encoder, *asked)
        two, encoder_2, rows_2 = add_word(self.tokenizer_2, self.text_encoder_2, *asked)
        model = replace(
            self, tokenizer=one, text_encoder=encoder, tokenizer_2=two, text_encoder_2=encoder_2
        )
        return model, placeholder_of([one, two], [encoder, encoder_2], [rows, rows_2])

    def words(self) -> list[str]:
        return whole_words(self.tokenizer.get_vocab())

    def pipeline(self) -> StableDiffusionXLPipeline:
        from diffusers import DDIMScheduler, StableDiffusionXLPipeline

        pipeline = StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.denoiser,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config),
            force_zeros_for_empty_prompt=self.force_zeros_for_empty_prompt,
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def generate(self, prompts: Sequence[str], **options: Any) -> list[Image.Image]:
        with decoding_in_full_precision(self.vae):
            return super().generate(prompts, **options)

    def save_lora_kohya(self, path: Path) -> None:
        config: Any = self.denoiser.config
        layers = config.layers_per_block
        adapters.save_kohya(self.denoiser, path, lambda name: original_name(name, layers))


@contextmanager
def decoding_in_full_precision(vae: Any) -> Iterator[None]:
    """Within the block the VAE decodes in full precision, if its configuration asks for it.

    SDXL's own VAE overflows in half precision, and then gives black pictures.
    """
    if not vae.config.force_upcast:
        yield
        return
    decode = vae.decode

    def in_full(latents: Tensor, *args: Any, **options: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.to(vae.dtype), *args, **options)

    vae.decode = in_full
    try:
        yield
    finally:
        del vae.decode


def original_name(name: str, layers_per_block: int) -> str | None:
    """The name of an attention's module in the original code of SDXL, which kohya uses as well.

    For example, down_blocks.1.attentions.0 is input_blocks.4.1. None stands for a module outside of the
    attentions.
    """
    block, *rest = name.split(".")
    if block == "mid_block" and rest[0] == "attentions":
        return ".".join(["middle_block", "1", *rest[2:]])
    if block not in ("down_blocks", "up_blocks") or rest[1] != "attentions":
        return None
    place = int(rest[0]) * (layers_per_block + 1) + int(rest[2])
    where = f"input_blocks.{place + 1}" if block == "down_blocks" else f"output_blocks.{place}"
    return ".".join([where, "1", *rest[3:]])
