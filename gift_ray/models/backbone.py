"""`Backbone`: the interface of a model that is attacked and defended. Each family of models is one file.

A latent diffusion model has a denoiser (the network that attacks and defenses train), a frozen VAE and one or
more text encoders. `Backbone` hides what differs between families: the prediction type, how times are drawn,
the number of text encoders, and what the conditioning is made of.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig, Sampler
from gift_ray.errors import ModelError
from gift_ray.models import adapters, disturb
from gift_ray.models.disturb import Reinitialize
from gift_ray.models.loading import FIELD, require_parts
from gift_ray.models.placeholder import Placeholder
from gift_ray.models.tokens import most_tokens
from gift_ray.models.weights import load_strictly, require_finite
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device
from gift_ray.training.diffusion import Examples, Seeds, per_sample_mse

ParameterGroup = Literal["cross_attention", "cross_attention_kv", "attention", "noxattn", "all"]
NoiseLayers = Literal["blocks", "attn2"]
# The steps of the picture that shows whether a base draws at all.
TRIAL_STEPS = 4


@dataclass(frozen=True)
class Backbone(ABC):
    """A text-to-image model.

    Methods that change weights return a copy; what is not copied is shared with the original, and frozen.
    `times` [B] are in the unit of the family's scheduler; callers only pass them on.
    """

    denoiser: nn.Module
    vae: Any
    resolution: int
    mixed_precision: str
    # Whether the text encoders stay on the CPU and encode prompts there.
    text_on_cpu: bool

    # How diffusers' pipelines of this family call the denoiser: `unet` or `transformer`.
    denoiser_name: ClassVar[str]
    # The parts of the pipeline that must be in a folder.
    needed: ClassVar[tuple[str, ...]]
    # The layers of the denoiser that an adapter may be put on, by what they do: patterns of module paths.
    roles: ClassVar[Mapping[str, str]]
    # Why the text encoders of this family can't be trained; empty if they can.
    text_stays: ClassVar[str] = ""
    # Why images of this family are drawn with its own sampler alone; empty: others are there.
    only_sampler: ClassVar[str] = ""
    # Whether the keys and values of cross-attention are applied to the prompt's own tokens.
    keys_read_tokens: ClassVar[bool] = True

    @classmethod
    def check(cls, folder: Path, name: str) -> None:
        """Check the configurations of a diffusers folder, before anything is loaded.

        Args:
            name: the user's name for the folder.

        Raises:
            ModelError: a part is missing, or the model is of a kind that can't be trained or drawn with.
        """
        require_parts(folder, cls.needed, name)

    @classmethod
    def prompt_room(cls, folder: Path) -> int:
        """The number of a prompt's tokens that the first text encoder of a folder reads.

        CLIP's begin and end with a token each that is no part of the prompt.
        """
        return most_tokens(folder / "tokenizer") - 2

    @classmethod
    @abstractmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        """Load a diffusers folder from safetensors, in fp32 and frozen.

        Raises:
            ModelError: the folder is damaged, or can't be trained or drawn with.
        """

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return next(self.denoiser.parameters()).device

    # The parameters that are trained.

    def clone(self, *, text_encoder: bool = False) -> Self:
        """A copy whose denoiser can be trained; with `text_encoder`, its text encoders as well."""
        copied = replace(self, denoiser=copy.deepcopy(self.denoiser).requires_grad_(True))
        return copied._with_trainable_words() if text_encoder else copied

    def parameters(self, group: ParameterGroup) -> dict[str, nn.Parameter]:
        """The parameters of a group of the denoiser by name, without those of an adapter.

        Args:
            group: `cross_attention`, everything that reads the prompt's tokens (psi in the paper);
                `cross_attention_kv`, its keys and values alone; `attention`, the queries, keys, values and
                outputs of every attention (as IMMA's code selects them); `noxattn`, everything except
                cross-attention, time embedding and output layers (as ESD-u trains them); or `all`. Each
                family says which parameters of its network these are.

        Raises:
            ModelError: the group is empty.
        """
        chosen = {
            name: parameter
            for name, parameter in adapters.own_parameters(self.denoiser).items()
            if group == "all" or self.in_group(name.split("."), group)
        }
        if not chosen:
            raise ModelError(
                f"defense.parameter_group: {group!r} selects no parameter of this "
                f"{self.denoiser_name}"
            )
        return chosen

    @staticmethod
    @abstractmethod
    def in_group(path: list[str], group: ParameterGroup) -> bool:
        """Whether a parameter of the denoiser, given as the parts of its name, belongs to a group."""

    @abstractmethod
    def text_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of all text encoders, by names that no parameter of the denoiser has."""

    def layers(self, which: NoiseLayers) -> dict[str, nn.Module]:
        """The modules whose outputs are the activations z^(j) of GIFT's Eq. 7, by name.

        Args:
            which: `blocks`, the blocks of the network, or `attn2`, the modules that read the prompt.

        Raises:
            ModelError: the denoiser has no such module.
        """
        modules = self.find_layers(which)
        if not modules:
            raise ModelError(
                f"defense.noise_layers: {which!r} selects no layer of this {self.denoiser_name}"
            )
        return modules

    @abstractmethod
    def find_layers(self, which: NoiseLayers) -> dict[str, nn.Module]:
        """The modules that `layers` returns; {} if there is none."""

    @abstractmethod
    def _with_trainable_words(self) -> Self:
        """The same model with trainable copies of its text encoders."""

    def disturbed(self, how: Reinitialize, weight_noise: float, generator: torch.Generator) -> Self:
        """A copy that is disturbed as an attacker may do it before fine-tuning (see `disturb`).

        Args:
            how: whether the weights of cross-attention are drawn anew, or written in other factors.
            weight_noise: the amount of noise that is added to all weights.
        """
        if how == "none" and weight_noise == 0:
            return self
        model = self.clone()
        if how == "cross_attention":
            disturb.reinitialize(model.parameters("cross_attention").values(), generator)
        elif how == "refactor_cross_attention":
            disturb.refactor(model.layers("attn2").values(), generator)
        if weight_noise:
            disturb.add_weight_noise(model.denoiser, weight_noise, generator)
        return model

    # The forward process and the training loss.

    @abstractmethod
    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Random times [B] for one training batch, drawn as the family is trained."""

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, ...]:
        """The shape (C, h, w) of the latents of one image."""

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(noise [B, C, h, w], times [B]) for one training batch: eps ~ N(0, I), then the times."""
        noise = torch.randn((batch, *self.latent_shape), generator=generator)
        return noise, self.draw_times(batch, generator)

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Noised latents x_t [B, C, h, w], by the family's forward process."""

    @abstractmethod
    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The output that the denoiser is trained to give for x_t, [B, C, h, w]."""

    @abstractmethod
    def predict(self, noisy: Tensor, conditioning: Conditioning, times: Tensor) -> Tensor:
        """The denoiser's output for noised latents, [B, C, h, w]: eps, v, x_0 or velocity, as trained."""

    def denoising_loss(
        self, latents: Tensor, conditioning: Conditioning, times: Tensor, noise: Tensor
    ) -> Tensor:
        """The training loss of Eq. 5 and 9, one value per sample, [B].

        Shapes: latents and noise [B, C, h, w], conditioning of B rows, times [B].
        """
        latents, noise, times = (on_device(t, self.device) for t in (latents, noise, times))
        prediction = self.predict(self.add_noise(latents, noise, times), conditioning, times)
        return per_sample_mse(prediction, self.target(latents, noise, times))

    def autocast(self) -> torch.autocast:
        """Within the block arithmetic is in half precision if the model asks for it. Weights stay fp32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    # Encoding images and prompts.

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """The VAE's posterior in the denoiser's units: mean and deviation [N, C, h, w], on the CPU."""
        means, stds = [], []
        for image in images:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.vae.device)
            posterior = self.vae.encode(tensor).latent_dist
            means.append(posterior.mean.cpu())
            stds.append(posterior.std.cpu())
        return self.scaled(torch.cat(means), torch.cat(stds))

    @abstractmethod
    def scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and standard deviation of the VAE's posterior, scaled to the denoiser's units."""

    @torch.no_grad()
    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of some prompts, on the CPU. Equal prompts are encoded once."""
        read = {prompt: self.read([prompt]).to(torch.device("cpu")) for prompt in set(prompts)}
        return Conditioning.concatenate([read[prompt] for prompt in prompts])

    def unconditional(self) -> Conditioning:
        """The conditioning [1 row] from which guidance steers away, mostly that of the empty prompt."""
        return self.condition([""])

    @abstractmethod
    def read(self, prompts: Sequence[str]) -> Conditioning:
        """The conditioning of some prompts, differentiable, on the device of the text encoders."""

    def encode(
        self, images: Sequence[Image.Image], captions: Sequence[str], keys: Sequence[str]
    ) -> Examples:
        """Everything that training needs of some images, computed once instead of every step.

        Raises:
            ModelError: the VAE or a text encoder gives NaN or infinity.
        """
        mean, std = self.encode_images(images)
        conditioning = self.condition(captions)
        made = {"VAE": (mean, std), "text encoder": conditioning.tensors().values()}
        for part, tensors in made.items():
            if not all(tensor.isfinite().all() for tensor in tensors):
                raise ModelError(
                    f"{FIELD}: what its {part} makes of the images and captions is not finite; get its "
                    "files anew"
                )
        return Examples(mean, std, conditioning, tuple(keys), tuple(captions))

    @abstractmethod
    def with_placeholder(
        self, placeholder_token: str, initializer_token: str, num_vectors: int
    ) -> tuple[Self, Placeholder]:
        """A copy that knows `placeholder_token` as a new word, and that word.

        The word's rows in the token embedding begin as the mean embedding of the tokens of
        `initializer_token`.

        Raises:
            ModelError: the tokenizer already has a token of this name, whose row other words use as well.
        """

    # Drawing.

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Seeds,
        num_inference_steps: int,
        guidance_scale: float,
        batch_size: int,
        sampler: Sampler = "default",
    ) -> list[Image.Image]:
        """One image for each prompt. Image i depends on seeds, i and its prompt, not on the batch size.

        Raises:
            ModelError: the family is not drawn with this sampler.
        """
        pipeline = self.pipeline()
        if sampler == "dpm++":
            pipeline.scheduler = self.dpm_solver()
        images: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            chunk = list(prompts[start : start + batch_size])
            generators = [seeds.generator("image", start + i) for i in range(len(chunk))]
            asked = self._asked(chunk)
            with self.autocast():
                images += self._draw(
                    pipeline, asked, num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale, generator=generators,
                )  # fmt: skip
        return images

    @torch.no_grad()
    def require_pictures(self, name: str) -> None:
        """Draw one picture in a few steps, as it will be drawn later on.

        Args:
            name: what the user calls the model.

        Raises:
            ModelError: it is not finite, or of one colour all over: nothing could be learnt or judged.
        """
        asked = self._asked(["a picture"])
        with self.autocast():
            (picture,) = self._draw(
                self.pipeline(), asked, num_inference_steps=TRIAL_STEPS, guidance_scale=2.0,
                generator=[torch.Generator().manual_seed(0)], output_type="np",
            )  # fmt: skip
        pixels = np.asarray(picture)
        if np.isfinite(pixels).all() and pixels.max() > pixels.min():
            return
        what = "one colour" if np.isfinite(pixels).all() else "NaN"
        if self.mixed_precision == "fp16":
            raise ModelError(
                f"model.mixed_precision: in fp16 the base {name!r} draws {what}: its numbers overflow; "
                "set it to bf16, or to no"
            )
        raise ModelError(
            f"{FIELD}: {name!r} draws {what}, whatever it is asked for; get its files anew, or give a model "
            "that draws in plain diffusers"
        )

    def _asked(self, prompts: list[str]) -> dict[str, Any]:
        """The arguments of a pipeline for a batch of prompts: their texts, or their embeddings."""
        if not self.text_on_cpu:
            return {"prompt": prompts}
        null = self.unconditional().repeat(len(prompts))
        return self.embeddings(*(read.to(self.device) for read in (self.condition(prompts), null)))

    @abstractmethod
    def embeddings(self, read: Conditioning, null: Conditioning) -> dict[str, Tensor]:
        """The pipeline's arguments for prompts that are encoded already, and for the unconditional rows."""

    def _draw(self, pipeline: Any, asked: dict[str, Any], **options: Any) -> list[Image.Image]:
        """A batch of pictures of a pipeline of this family."""
        size = self.resolution
        images: list[Image.Image] = pipeline(**asked, height=size, width=size, **options).images
        return images

    @abstractmethod
    def words(self) -> list[str]:
        """The words that the (first) tokenizer knows as one token each, in alphabetical order."""

    @abstractmethod
    def pipeline(self) -> Any:
        """A plain diffusers pipeline around these weights."""

    @abstractmethod
    def sampler(self, num_inference_steps: int) -> Any:
        """The pipeline's diffusers scheduler with its timesteps set."""

    def dpm_solver(self) -> Any:
        """DPM-Solver++ (Lu et al. 2022) of second order, in place of the pipeline's scheduler.

        Raises:
            ModelError: the family has no noise schedule for it.
        """
        raise ModelError(self.only_sampler)

    @torch.no_grad()
    def partially_denoised(
        self, noise: Tensor, conditioning: Conditioning, null: Conditioning, *, steps: int,
        num_inference_steps: int, guidance_scale: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Sample the first `steps` steps with classifier-free guidance (Ho and Salimans 2022).

        Args:
            noise: [B, C, h, w], where sampling begins.
            null: the conditioning of `unconditional`.

        Returns:
            x_t [B, C, h, w] and its times [B].
        """
        sampler = self.sampler(num_inference_steps)
        # Samplers of flow matching begin at noise of variance one and have no such number.
        x_t = on_device(noise, self.device) * getattr(sampler, "init_noise_sigma", 1.0)
        nothing = null.repeat(len(x_t))
        for t in sampler.timesteps[:steps]:
            times = t.expand(len(x_t))
            at_null = self.predict(x_t, nothing, times)
            at_concept = self.predict(x_t, conditioning, times)
            guided = at_null + guidance_scale * (at_concept - at_null)
            x_t = sampler.step(guided, t, x_t).prev_sample
        return x_t, sampler.timesteps[steps].expand(len(x_t))

    # Weights in and out.

    def weights(self) -> dict[str, Tensor]:
        """The denoiser's weights by name, without those of an adapter. They are not copied."""
        return adapters.own_weights(self.denoiser)

    def load_weights(self, weights: dict[str, Tensor], *, origin: str) -> None:
        """Load weights into the denoiser, in place.

        Raises:
            ModelError: names or shapes don't fit, or a weight is not finite.
        """
        load_strictly(self.denoiser, weights, origin=origin, what=self.denoiser_name)

    def save_weights(self, path: Path) -> None:
        """Write the denoiser's weights as safetensors, in fp32.

        Raises:
            UnitFailed: a weight is not finite. No later step should get such a model.
        """
        weights = {n: t.detach().cpu().contiguous() for n, t in self.weights().items()}
        require_finite(weights)
        save_file(weights, path)

    def with_weights(self, path: Path) -> Self:
        """A frozen copy with the weights that `save_weights` wrote.

        Raises:
            ModelError: names or shapes don't fit, or a weight is not finite.
        """
        model = self.clone()
        model.load_weights(load_file(path), origin=str(path))
        model.denoiser.requires_grad_(False)
        return model

    def save_pretrained(self, folder: Path) -> None:
        """Write a standard diffusers folder, which `DiffusionPipeline.from_pretrained` loads."""
        self.pipeline().save_pretrained(folder, safe_serialization=True)

    # Adapters.

    def with_lora(
        self, *, rank: int, lora_alpha: int, lora_dropout: float, target_modules: Sequence[str],
        generator: torch.Generator,
    ) -> Self:  # fmt: skip
        """A copy whose frozen denoiser carries a trainable adapter; see `adapters.with_lora`.

        Args:
            target_modules: roles of the family (`attention`, `blocks`), or ends of module paths (`to_q`).
        """
        names = adapters.modules_named(target_modules, self.roles, self.weights())
        adapted = adapters.with_lora(
            self.denoiser, rank=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
            target_modules=names, generator=generator,
        )  # fmt: skip
        return replace(self, denoiser=adapted)

    @property
    def has_adapter(self) -> bool:
        """Whether the denoiser carries an adapter of `with_lora` or `load_lora`."""
        return bool(getattr(self.denoiser, "peft_config", None))

    def adapter(self, group: ParameterGroup = "all") -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, those on the layers of a group.

        Raises:
            ModelError: no layer of the group carries one.
        """
        chosen = {
            name: parameter
            for name, parameter in adapters.adapter_parameters(self.denoiser).items()
            if group == "all" or self.in_group(name.split("."), group)
        }
        if not chosen:
            raise ModelError(
                f"defense.parameter_group: {group!r} has no layer that carries an adapter"
            )
        return chosen

    def with_adapter_in_weights(self, base: Self) -> Self:
        """The base with what this model's adapter adds to it, as weights."""
        merged = base.clone()
        adapters.add_to(merged.denoiser, self.denoiser)
        return merged

    def save_lora(self, folder: Path) -> None:
        """Write the adapter as `pytorch_lora_weights.safetensors`, for diffusers' `load_lora_weights`.

        Raises:
            UnitFailed: a weight is not finite.
        """
        adapters.save(self.denoiser, self.denoiser_name, type(self.pipeline()), folder)

    def save_lora_kohya(self, path: Path) -> None:
        """Write the adapter as one file in kohya's format, which the common web UIs read.

        Raises:
            UnitFailed: a weight is not finite.
        """
        adapters.save_kohya(self.denoiser, path)

    def load_lora(self, path: Path) -> Self:
        """A copy with an adapter that `save_lora` or a diffusers script wrote, from a folder or file.

        Raises:
            ModelError: the adapter is not found, is none, or adapts modules that this denoiser does not have.
        """
        adapted = adapters.load(self.denoiser, self.denoiser_name, type(self.pipeline()), path)
        return replace(self, denoiser=adapted)
