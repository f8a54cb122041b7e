"""The model under attack and defense: loading, copying, encoding, generating, saving. The only file
that knows diffusers, which it imports where a model is loaded: that takes seconds, and most processes
of a study only plan. Latent diffusion with a UNet2DConditionModel and one text encoder (SD 1.x, 2.x
and whatever has their folder layout).
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError, UnitFailed
from gift_ray.models.builtin import BUNDLE
from gift_ray.records.record import digest, file_hash
from gift_ray.training.diffusion import (
    Examples,
    Seeds,
    add_noise,
    per_sample_mse,
    prediction_target,
)

ParameterGroup = Literal["cross_attention", "cross_attention_kv", "attention", "noxattn", "unet"]
NoiseLayers = Literal["blocks", "attn2"]

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKL,
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import PreTrainedModel


def device() -> torch.device:
    """The accelerator that this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class DiffusionModel:
    """A text-to-image model. Defenses train `unet`, attacks also the words; the rest stays frozen."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: PreTrainedModel
    tokenizer: Any
    noise_scheduler: DDPMScheduler
    resolution: int
    mixed_precision: str

    @classmethod
    def load(cls, config: ModelConfig) -> DiffusionModel:
        """Load a diffusers folder or hub id, in fp32, safetensors only.

        Raises:
            ModelError: not found, no network, not a diffusers folder, pickled or damaged weights.
        """
        from diffusers import DDPMScheduler, StableDiffusionPipeline

        folder = locate(config)
        _silence()
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder,
                variant=config.variant,
                dtype=torch.float32,
                use_safetensors=True,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        except Exception as error:
            detail = " ".join(str(error).split())[:300]
            raise ModelError(
                f"model.pretrained_model_name_or_path: {config.pretrained_model_name_or_path!r} "
                f"can't be loaded as a Stable Diffusion folder with safetensors weights: {detail}"
            ) from error
        model = cls(
            unet=pipeline.unet.to(device()).eval().requires_grad_(False),
            vae=pipeline.vae.to(device()).eval().requires_grad_(False),
            text_encoder=pipeline.text_encoder.to(device()).eval().requires_grad_(False),
            tokenizer=pipeline.tokenizer,
            noise_scheduler=DDPMScheduler.from_config(pipeline.scheduler.config),
            resolution=config.resolution
            or pipeline.unet.config.sample_size * pipeline.vae_scale_factor,
            mixed_precision=config.mixed_precision,
        )
        if config.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        return model

    def clone(self, *, text_encoder: bool = False) -> DiffusionModel:
        """A copy whose unet can be trained, and its text encoder if asked for; the rest is shared."""
        copied = replace(self, unet=copy.deepcopy(self.unet).requires_grad_(True))
        if not text_encoder:
            return copied
        words = copy.deepcopy(self.text_encoder).requires_grad_(True)
        return replace(copied, text_encoder=words)

    def with_lora(
        self, *, rank: int, lora_alpha: int, lora_dropout: float, target_modules: Sequence[str],
        generator: torch.Generator,
    ) -> DiffusionModel:  # fmt: skip
        """A copy whose frozen unet carries a trainable adapter, W + lora_alpha / rank B A (LoRA, Hu
        et al. 2021, Eq. 3). A ~ N(0, 1 / rank^2) as in the diffusers scripts, B = 0: no output
        changes before the first step.

        Args:
            target_modules: ends of the paths of the modules that are adapted (`to_q`, `to_out.0`).
            generator: what A is drawn from.

        Raises:
            ModelError: no module has such a name.
        """
        from peft import LoraConfig

        unet = copy.deepcopy(self.unet).requires_grad_(False)
        paths = [f".{name}" for name, _ in unet.named_modules()]
        for target in target_modules:
            if not any(path.endswith(f".{target}") for path in paths):
                raise ModelError(f"attacks.target_modules: {target!r} is no module of this unet")
        unet.add_adapter(
            LoraConfig(
                r=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
                target_modules=list(target_modules),
            )
        )  # fmt: skip
        # peft drew A from the global generator.
        for name, parameter in unet.named_parameters():
            if ".lora_A." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / rank)
        return replace(self, unet=unet.eval())

    def with_placeholder(
        self, placeholder_token: str, initializer_token: str, num_vectors: int
    ) -> tuple[DiffusionModel, range]:
        """A copy in whose prompts `placeholder_token` is a word of its own, and the rows of the
        token embedding that it stands for. They begin as the (mean) embedding of `initializer_token`.

        With several vectors the word stands for `token token_1 ...`, as diffusers' pipelines have it.

        Raises:
            ModelError: the tokenizer knows the word already (its row serves other words too).
        """
        from transformers import AddedToken

        tokenizer, text_encoder = copy.deepcopy((self.tokenizer, self.text_encoder))
        names = [placeholder_token, *(f"{placeholder_token}_{i}" for i in range(1, num_vectors))]
        if taken := sorted(tokenizer.get_vocab().keys() & set(names)):
            raise ModelError(
                f"attacks.placeholder_token: {taken[0]!r} is in the tokenizer already; choose a word "
                "that is not"
            )
        # Whole words only: "desks" does not hold the word "sks".
        tokenizer.add_tokens([AddedToken(name, single_word=True) for name in names])
        first = tokenizer.convert_tokens_to_ids(placeholder_token)
        rows = range(first, first + num_vectors)

        old = text_encoder.get_input_embeddings().weight
        pieces = tokenizer(initializer_token, add_special_tokens=False).input_ids
        beginning = old[pieces].mean(0)
        text_encoder.resize_token_embeddings(max(len(tokenizer), len(old)), mean_resizing=False)
        text_encoder.requires_grad_(False)
        text_encoder.get_input_embeddings().weight[rows.start : rows.stop] = beginning
        return replace(self, tokenizer=tokenizer, text_encoder=text_encoder), rows

    def parameters(self, group: ParameterGroup) -> dict[str, nn.Parameter]:
        """The named parameters of a group, by module path (never by substring of the last name).

        `cross_attention`: every attn2 module (the paper's psi); `cross_attention_kv`: their to_k and
        to_v; `attention`: q, k, v and out of attn1 and attn2 (what IMMA's code selects); `noxattn`: all
        but attn2, the time embedding and the output layers (what ESD-u trains); `unet`: all.
        On SD 1.5: 43,962,560 / 19,169,280 / 93,536,640 / 813,495,680 / 859,520,964 parameters.
        """
        chosen = {
            name: parameter
            for name, parameter in self.unet.named_parameters()
            if _in_group(name.split("."), group)
        }
        if not chosen:
            raise ModelError(
                f"defense.parameter_group: {group!r} selects no parameter of this unet"
            )
        return chosen

    def layers(self, which: NoiseLayers) -> dict[str, nn.Module]:
        """The modules whose outputs are the z^(j) of Eq. 7: unet blocks, or attn2 modules."""
        if which == "attn2":
            modules = {n: m for n, m in self.unet.named_modules() if n.endswith(".attn2")}
        else:
            modules = {f"down_blocks.{i}": m for i, m in enumerate(self.unet.down_blocks)}
            modules |= {"mid_block": self.unet.mid_block} if self.unet.mid_block else {}
            modules |= {f"up_blocks.{i}": m for i, m in enumerate(self.unet.up_blocks)}
        if not modules:
            raise ModelError(f"defense.noise_layers: {which!r} selects no layer of this unet")
        return modules

    def denoising_loss(
        self, latents: Tensor, encoder_hidden_states: Tensor, timesteps: Tensor, noise: Tensor
    ) -> Tensor:
        """The training loss of Eq. 5 and 9, one value per sample, for any prediction type.

        Shapes: latents and noise [B, C, h, w], encoder_hidden_states [B, L, D], timesteps [B] -> [B].
        """
        where = self.unet.device
        latents, noise, timesteps = latents.to(where), noise.to(where), timesteps.to(where)
        scheduler = self.noise_scheduler
        noisy = add_noise(latents, noise, timesteps, scheduler.alphas_cumprod)
        prediction = self.predict(noisy, timesteps, encoder_hidden_states)
        kind = scheduler.config.prediction_type
        target = prediction_target(kind, latents, noise, timesteps, scheduler.alphas_cumprod)
        return per_sample_mse(prediction, target)

    def predict(self, noisy: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        """The unet's output for noised latents [B, C, h, w]: eps, v or x_0, as it was trained."""
        where = self.unet.device
        with self.autocast():
            return self.unet(
                noisy.to(where), timesteps.to(where), encoder_hidden_states.to(where)
            ).sample

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(noise [B, C, h, w], timesteps [B]) for one training batch: eps ~ N(0, I), t ~ U."""
        size = self.unet.config.in_channels, *[self.resolution // self._vae_factor] * 2
        noise = torch.randn((batch, *size), generator=generator)
        steps = self.noise_scheduler.config.num_train_timesteps
        return noise, torch.randint(0, steps, (batch,), generator=generator)

    def autocast(self) -> torch.autocast:
        """fp32 master weights, half-precision arithmetic where asked for."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.mixed_precision)
        return torch.autocast(self.unet.device.type, dtype, enabled=dtype is not None)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE posterior, scaled: two of [N, C, h, w], on the CPU."""
        means, stds = [], []
        for image in images:
            pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.vae.device)
            posterior = self.vae.encode(tensor).latent_dist
            means.append(posterior.mean.cpu())
            stds.append(posterior.std.cpu())
        scale = self.vae.config.scaling_factor
        return torch.cat(means) * scale, torch.cat(stds) * scale

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text encoder states [N, L, D], on the CPU."""
        embedded = {prompt: self.read([prompt])[0].cpu() for prompt in dict.fromkeys(prompts)}
        return torch.stack([embedded[prompt] for prompt in prompts])

    def read(self, prompts: Sequence[str]) -> Tensor:
        """Text encoder states [N, L, D], differentiable, where the text encoder is."""
        from diffusers.loaders import TextualInversionLoaderMixin

        # A word of several vectors is spelt out, as the pipeline does with what it is asked for.
        spelt = TextualInversionLoaderMixin().maybe_convert_prompt(list(prompts), self.tokenizer)
        tokens = self.tokenizer(
            spelt, padding="max_length", truncation=True, return_tensors="pt",
            max_length=self.tokenizer.model_max_length,
        )  # fmt: skip
        return self.text_encoder(tokens.input_ids.to(self.text_encoder.device))[0]

    def encode(
        self, images: Sequence[Image.Image], captions: Sequence[str], keys: Sequence[str]
    ) -> Examples:
        """Everything that training needs of some images, computed once instead of every step."""
        mean, std = self.encode_images(images)
        return Examples(mean, std, self.encode_prompts(captions), tuple(keys), tuple(captions))

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        seeds: Seeds,
        num_inference_steps: int,
        guidance_scale: float,
        batch_size: int,
    ) -> list[Image.Image]:
        """One image per prompt; image i depends on (seeds, i, prompt) alone, not on the batching."""
        pipeline = self.pipeline()
        images: list[Image.Image] = []
        for start in range(0, len(prompts), batch_size):
            chunk = list(prompts[start : start + batch_size])
            generators = [seeds.generator("image", start + i) for i in range(len(chunk))]
            with self.autocast():
                images += pipeline(
                    chunk,
                    height=self.resolution,
                    width=self.resolution,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    generator=generators,
                ).images
        return images

    def pipeline(self) -> StableDiffusionPipeline:
        """A plain diffusers pipeline around these weights."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=DDIMScheduler.from_config(self.noise_scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save_weights(self, path: Path) -> None:
        """The unet's weights, fp32 safetensors.

        Raises:
            UnitFailed: a weight is not finite (a destroyed model must not travel on).
        """
        weights = {n: t.detach().cpu().contiguous() for n, t in self.unet.state_dict().items()}
        _require_finite(weights)
        save_file(weights, path)

    def with_weights(self, path: Path) -> DiffusionModel:
        """A copy with the unet weights of `save_weights`, frozen as loaded models are.

        Raises:
            ModelError: keys or shapes don't fit, or a weight is not finite.
        """
        model = self.clone()
        load_unet(model.unet, load_file(path), origin=str(path))
        model.unet.requires_grad_(False)
        return model

    @property
    def has_adapter(self) -> bool:
        """Whether the unet carries an adapter of `with_lora` or `load_lora`."""
        return bool(getattr(self.unet, "peft_config", None))

    def save_lora(self, folder: Path) -> None:
        """The adapter of `with_lora` as `pytorch_lora_weights.safetensors`, which every diffusers
        pipeline of this base reads with `load_lora_weights`.

        Raises:
            UnitFailed: a weight is not finite.
        """
        from diffusers import StableDiffusionPipeline
        from diffusers.utils import convert_state_dict_to_diffusers
        from peft.utils import get_peft_model_state_dict

        layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(self.unet))
        _require_finite(layers)
        # The metadata carry lora_alpha: without them a reader takes it to be the rank.
        metadata = self.unet.peft_config["default"].to_dict()
        StableDiffusionPipeline.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=metadata
        )

    def save_lora_kohya(self, path: Path) -> None:
        """The adapter of `with_lora` as one file in kohya's format, which the common web UIs read:
        `lora_unet_*.lora_down.weight`, `.lora_up.weight` and `.alpha`.

        Raises:
            UnitFailed: a weight is not finite.
        """
        from diffusers.utils import convert_state_dict_to_kohya
        from peft.utils import get_peft_model_state_dict

        layers = get_peft_model_state_dict(self.unet)
        _require_finite(layers)
        config = self.unet.peft_config["default"]
        tensors = convert_state_dict_to_kohya({f"unet.{n}": t for n, t in layers.items()})
        # diffusers writes the rank for alpha.
        for name in [name for name in tensors if name.endswith(".alpha")]:
            tensors[name] = torch.tensor(float(config.lora_alpha))
        metadata = {
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(config.r),
            "ss_network_alpha": str(config.lora_alpha),
        }
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, path, metadata=metadata)

    def load_lora(self, path: Path) -> DiffusionModel:
        """A copy with an adapter of its unet, as `save_lora` or the diffusers scripts save it (a
        folder, or a safetensors file).

        Raises:
            ModelError: not found, not an adapter, or one of other modules than this unet's.
        """
        from diffusers import StableDiffusionPipeline

        if not path.exists():
            raise ModelError(f"{path}: no such LoRA adapter; give its folder or safetensors file")
        unet = copy.deepcopy(self.unet)
        try:
            tensors, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
                str(path), use_safetensors=True, return_lora_metadata=True
            )
            StableDiffusionPipeline.load_lora_into_unet(
                tensors, alphas, unet, adapter_name="default", metadata=metadata
            )
        except Exception as error:
            detail = " ".join(str(error).split())[:300]
            raise ModelError(f"{path}: not a LoRA adapter of this unet: {detail}") from error
        # diffusers only warns of what it has no place for.
        unused = len(tensors) - sum(".lora_" in name for name, _ in unet.named_parameters())
        if unused:
            raise ModelError(
                f"{path}: {unused} of {len(tensors)} adapter tensors have no place in this unet"
            )
        return replace(self, unet=unet.requires_grad_(False))

    def save_pretrained(self, folder: Path) -> None:
        """A standard diffusers folder, loadable with `DiffusionPipeline.from_pretrained`."""
        self.pipeline().save_pretrained(folder, safe_serialization=True)

    @property
    def _vae_factor(self) -> int:
        return 2 ** (len(self.vae.config.block_out_channels) - 1)


def load_unet(unet: nn.Module, weights: dict[str, Tensor], *, origin: str) -> None:
    """Put weights into a unet; refuses unknown, missing, misshapen or non-finite ones by name."""
    expected = unet.state_dict()
    unknown = sorted(weights.keys() - expected.keys())
    missing = sorted(expected.keys() - weights.keys())
    for what, names in (("unknown", unknown), ("missing", missing)):
        if names:
            raise ModelError(f"{origin}: {len(names)} {what} unet weights, first {names[0]!r}")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ModelError(f"{origin}: {name!r} has shape {tuple(tensor.shape)}, "
                             f"the unet needs {tuple(expected[name].shape)}")  # fmt: skip
        if not tensor.isfinite().all():
            raise ModelError(f"{origin}: {name!r} holds NaN or infinity")
    unet.load_state_dict(weights)


def unet_of_single_file(path: Path, like: DiffusionModel) -> dict[str, Tensor]:
    """The unet's weights in a single-file Stable Diffusion checkpoint, under diffusers' names.

    Raises:
        ModelError: they don't fit the architecture of `like`.
    """
    from diffusers import UNet2DConditionModel

    with tempfile.TemporaryDirectory() as folder:
        # The architecture is the base's: a bare file doesn't say, and the hub is not asked.
        like.unet.save_config(Path(folder) / "unet")
        try:
            unet = UNet2DConditionModel.from_single_file(
                str(path), config=folder, subfolder="unet", local_files_only=True
            )
        except Exception as error:
            detail = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{path}: not a single-file checkpoint of this base: {detail}"
            ) from error
    return dict(unet.float().state_dict())


def locate(config: ModelConfig) -> Path:
    """The local folder of a model: the built-in one, a given one, or a hub snapshot.

    Raises:
        ModelError: no such folder, or the hub can't be reached or doesn't have it.
    """
    name = config.pretrained_model_name_or_path
    if name == "builtin":
        return BUNDLE / "pipeline"
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise ModelError(
                f"model.pretrained_model_name_or_path: {name} has no model_index.json; "
                "give a diffusers folder"
            )
        return folder.resolve()
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(
            f"model.pretrained_model_name_or_path: {name!r} is not a folder; give 'builtin', a "
            "diffusers folder or a hub id as 'owner/name'"
        )
    return snapshot(name, config.revision, "model.pretrained_model_name_or_path")


def snapshot(name: str, revision: str | None, field: str) -> Path:
    """Download (or find in the cache) a hub repository's safetensors, configuration, card and licence."""
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.json", "*.txt", "*.safetensors", "README.md", "LICENSE*"]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        detail = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{field}: {name!r} is neither in the local cache nor reachable on the hub "
            f"({type(error).__name__}: {detail}); give a local folder, or check the network"
        ) from error


def identity(config: ModelConfig) -> dict[str, Any]:
    """What makes two base models the same: the content of their files and how they compute."""
    settings = config.model_dump(mode="json")
    for name in ("pretrained_model_name_or_path", "revision", "gradient_checkpointing"):
        settings.pop(name)
    return {"content": folder_hash(locate(config)), **settings}


def folder_hash(folder: Path) -> str:
    """Hash of all configuration and weight files below a folder."""
    files = sorted(
        p
        for p in folder.rglob("*")
        if p.suffix in {".json", ".txt", ".safetensors"} and p.is_file()
    )
    return digest(
        {p.relative_to(folder).as_posix(): _hash_cached(p, p.stat().st_mtime_ns) for p in files}
    )


@lru_cache(maxsize=256)
def _hash_cached(path: Path, _modified: int) -> str:
    return file_hash(path)


@lru_cache(maxsize=2)
def base_model(config: ModelConfig) -> DiffusionModel:
    """The base, loaded once a process. Callers clone before they train."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return DiffusionModel.load(config)


def _silence() -> None:
    """Loading says what we say better: no progress bars, no warnings about components left out."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for log in (diffusers_logging, transformers_logging):
        log.disable_progress_bar()
        log.set_verbosity_error()


def _require_finite(weights: dict[str, Tensor]) -> None:
    bad = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if bad:
        raise UnitFailed(f"weights are not finite in {len(bad)} tensors, first {bad[0]}")


def _in_group(path: list[str], group: ParameterGroup) -> bool:
    if group == "unet":
        return True
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
