"""FLUX.2 klein (Black Forest Labs, Apache-2.0), a rectified-flow transformer.

Image and text tokens attend to each other jointly, and the text is read by Qwen3. Training follows diffusers'
train_dreambooth_lora_flux2_klein.py with its logit-normal weighting scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models import adapters
from gift_ray.models.backbone import Backbone, NoiseLayers, ParameterGroup
from gift_ray.models.loading import frozen, load_pipeline
from gift_ray.models.placeholder import Placeholder
from gift_ray.models.tokens import whole_words
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

# Of the double-stream blocks: what makes queries, keys and values of the text's tokens, and what takes the
# attention's result back to them.
TEXT_PROJECTIONS = {"add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
TEXT_NORMS = {"norm_added_q", "norm_added_k"}
ATTENTION = {"to_q", "to_k", "to_v", "to_out", "to_qkv_mlp_proj", *TEXT_PROJECTIONS}
OUTER = {"time_guidance_embed", "norm_out", "proj_out"}
# diffusers' name of a layer -> that of the published code, which kohya uses as well. There, queries, keys and
# values of a stream are one layer.
IN_DOUBLE_BLOCKS = {
    "attn.to_q": "img_attn.qkv", "attn.to_k": "img_attn.qkv", "attn.to_v": "img_attn.qkv",
    "attn.add_q_proj": "txt_attn.qkv", "attn.add_k_proj": "txt_attn.qkv", "attn.add_v_proj": "txt_attn.qkv",
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2",
}  # fmt: skip
IN_SINGLE_BLOCKS = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
OUTSIDE = {"x_embedder": "img_in", "context_embedder": "txt_in", "proj_out": "final_layer.linear"}
ONLY_SAMPLER = (
    "evaluation.sampler: dpm++ is not for FLUX.2 klein, whose rectified flow is drawn along nearly straight "
    "lines by the pipeline's own steps; leave it at default, and lower num_inference_steps"
)
TEXT_STAYS = (
    "FLUX.2 klein: its text encoder, a language model, is not trained; leave out textual_inversion and "
    "train_text_encoder"
)


@dataclass(frozen=True)
class Flux2Klein(Backbone):
    """Velocity prediction on the straight line x_t = (1 - sigma) x_0 + sigma eps; times are 1000 sigma.

    There is no cross-attention. Its place as psi is taken by the layers through which the image sees the
    prompt: the `context_embedder`, through which every text token enters, and the text stream's own
    projections in the double-stream blocks. Like the keys and values of attn2 these are applied to the prompt
    alone, and if the keys and values are zero, an image is drawn without the prompt. The single-stream blocks
    project text and image with the same weights, which are therefore no part of psi.
    """

    text_encoder: Any
    tokenizer: Any
    scheduler: FlowMatchEulerDiscreteScheduler
    is_distilled: bool

    denoiser_name: ClassVar[str] = "transformer"
    # What train_dreambooth_lora_flux2_klein.py adapts; and the text's projections and feed-forwards with it.
    roles: ClassVar[Mapping[str, str]] = {
        "attention": r"transformer_blocks\..*\.(to_q|to_k|to_v|to_out\.0)"
        r"|single_transformer_blocks\..*\.(to_qkv_mlp_proj|to_out)",
        "blocks": r"(single_)?transformer_blocks\..*\.(to_q|to_k|to_v|to_out(\.0)?|to_qkv_mlp_proj"
        r"|add_._proj|to_add_out|linear_in|linear_out)",
    }
    text_stays: ClassVar[str] = TEXT_STAYS
    only_sampler: ClassVar[str] = ONLY_SAMPLER
    keys_read_tokens: ClassVar[bool] = False
    needed: ClassVar[tuple[str, ...]] = (
        "transformer", "vae", "text_encoder", "tokenizer", "scheduler",
    )  # fmt: skip

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> Self:
        from diffusers import Flux2KleinPipeline

        pipeline = load_pipeline(Flux2KleinPipeline, folder, config)
        return cls(
            denoiser=frozen(pipeline.transformer),
            vae=frozen(pipeline.vae),
            text_encoder=frozen(pipeline.text_encoder, on_cpu=config.low_memory),
            tokenizer=pipeline.tokenizer,
            scheduler=pipeline.scheduler,
            is_distilled=bool(pipeline.config.is_distilled),
            resolution=config.resolution
            or pipeline.default_sample_size * pipeline.vae_scale_factor,
            mixed_precision=config.mixed_precision,
            text_on_cpu=config.low_memory,
        )

    @staticmethod
    def in_group(path: list[str], group: ParameterGroup) -> bool:
        """The groups: `cross_attention` is psi, `cross_attention_kv` its keys and values.

        `attention` are the projections of every attention. In single-stream blocks these are fused with the
        input of the feed-forward.
        """
        if group == "attention":
            return bool(ATTENTION & set(path))
        if group == "cross_attention_kv":
            return bool({"add_k_proj", "add_v_proj"} & set(path))
        psi = bool((TEXT_PROJECTIONS | TEXT_NORMS) & set(path)) or path[0] == "context_embedder"
        if group == "noxattn":
            return not psi and path[0] not in OUTER
        return psi

    def find_layers(self, which: NoiseLayers) -> dict[str, nn.Module]:
        """`attn2` are the attentions of the double-stream blocks.

        `blocks` are the single-stream blocks, and in the double-stream blocks the feed-forward of the image,
        whose output is the last that is added to its tokens.
        """
        transformer: Any = self.denoiser
        double = {
            f"transformer_blocks.{i}": m for i, m in enumerate(transformer.transformer_blocks)
        }
        if which == "attn2":
            return {f"{name}.attn": block.attn for name, block in double.items()}
        single = {
            f"single_transformer_blocks.{i}": m
            for i, m in enumerate(transformer.single_transformer_blocks)
        }
        return {f"{name}.ff": block.ff for name, block in double.items()} | single

    def text_parameters(self) -> dict[str, nn.Parameter]:
        raise ModelError(TEXT_STAYS)

    def _with_trainable_words(self) -> Self:
        raise ModelError(TEXT_STAYS)

    def with_placeholder(
        self, placeholder_token: str, initializer_token: str, num_vectors: int
    ) -> tuple[Self, Placeholder]:
        raise ModelError(TEXT_STAYS)

    def draw_times(self, batch: int, generator: torch.Generator) -> Tensor:
        """Logit-normal times with mean 0 and deviation 1 (Esser et al. 2024, section 3.1).

        They are taken from the scheduler's training times, which contain its static shift by resolution.
        """
        from diffusers.training_utils import compute_density_for_timestep_sampling

        u = compute_density_for_timestep_sampling(
            "logit_normal", batch, logit_mean=0.0, logit_std=1.0, generator=generator
        )
        scheduler = self._training_scheduler()
        indices = (u * scheduler.config.num_train_timesteps).long()
        times: Tensor = scheduler.timesteps[indices]
        return times

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config: Any = self.denoiser.config
        # The VAE's factor, and patches of 2 x 2 latents.
        factor = 2 * 2 ** (len(self.vae.config.block_out_channels) - 1)
        return config.in_channels, *[self.resolution // factor] * 2

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        sigma = (times / self._steps).to(latents).view(-1, 1, 1, 1)
        return (1.0 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The velocity of the line, eps - x_0."""
        return noise - latents

    def predict(self, noisy: Tensor, conditioning: Conditioning, times: Tensor) -> Tensor:
        from diffusers import Flux2KleinPipeline as Pipeline

        given = (noisy, times, conditioning.tokens)
        noisy, times, tokens = (on_device(t, self.device) for t in given)
        places = on_device(Pipeline._prepare_latent_ids(noisy), self.device)
        words = on_device(Pipeline._prepare_text_ids(tokens), self.device)
        with self.autocast():
            velocity = self.denoiser(
                hidden_states=Pipeline._pack_latents(noisy),
                timestep=times.to(noisy) / self._steps,
                guidance=None,
                encoder_hidden_states=tokens,
                txt_ids=words,
                img_ids=places,
                return_dict=False,
            )[0]
        _, _, height, width = noisy.shape
        unpacked: Tensor = velocity.transpose(1, 2).unflatten(2, (height, width))
        return unpacked

    def scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Patches of 2 x 2, normalised per channel. The family is trained on the posterior's mode."""
        from diffusers import Flux2KleinPipeline as Pipeline

        patches, norm = Pipeline._patchify_latents(mean), self.vae.bn
        shift = norm.running_mean.view(1, -1, 1, 1).to(patches)
        scale = (norm.running_var.view(1, -1, 1, 1) + self.vae.config.batch_norm_eps).sqrt()
        normalised = (patches - shift) / scale.to(patches)
        return normalised, torch.zeros_like(normalised)

    def embeddings(self, read: Conditioning, null: Conditioning) -> dict[str, Tensor]:
        return {"prompt_embeds": read.tokens, "negative_prompt_embeds": null.tokens}

    @classmethod
    def prompt_room(cls, folder: Path) -> int:
        """The prompt stands in a chat template, whose beginning counts and whose end is cut first."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        mark = "PROMPT"
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": mark}],
            tokenize=False, add_generation_prompt=True, enable_thinking=False,
        )  # fmt: skip
        beginning = chat[: chat.index(mark)]
        return _text_length(tokenizer) - len(tokenizer(beginning)["input_ids"])

    def read(self, prompts: Sequence[str]) -> Conditioning:
        tokens, _ = self.pipeline().encode_prompt(
            list(prompts),
            device=self.text_encoder.device,
            max_sequence_length=_text_length(self.tokenizer),
        )
        return Conditioning(tokens, {})

    def words(self) -> list[str]:
        return whole_words(self.tokenizer.get_vocab())

    def pipeline(self) -> Flux2KleinPipeline:
        from diffusers import Flux2KleinPipeline

        pipeline = Flux2KleinPipeline(
            scheduler=type(self.scheduler).from_config(self.scheduler.config),
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            transformer=self.denoiser,
            is_distilled=self.is_distilled,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _draw(self, pipeline: Any, asked: dict[str, Any], **options: Any) -> list[Image.Image]:
        return super()._draw(
            pipeline, asked, max_sequence_length=_text_length(self.tokenizer), **options
        )

    def sampler(self, num_inference_steps: int) -> Any:
        """The scheduler with timesteps that are shifted by resolution, as the pipeline does it."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        sampler = self.pipeline().scheduler
        _, height, width = self.latent_shape
        sampler.set_timesteps(
            sigmas=np.linspace(1.0, 1 / num_inference_steps, num_inference_steps),
            mu=compute_empirical_mu(height * width, num_inference_steps),
        )
        return sampler

    def save_lora_kohya(self, path: Path) -> None:
        adapters.save_kohya(self.denoiser, path, kohya_name)

    def _training_scheduler(self) -> Any:
        """The scheduler with all of its training times; a sampler's has those of its steps."""
        return type(self.scheduler).from_config(self.scheduler.config)

    @property
    def _steps(self) -> int:
        return int(self.scheduler.config.num_train_timesteps)


def _text_length(tokenizer: Any) -> int:
    """The tokens of a prompt in its template; the pipeline takes 512 at most."""
    return min(512, int(tokenizer.model_max_length))


def kohya_name(name: str) -> str | None:
    """The name of a module in the original code of FLUX.2; None: kohya's format has no place for it."""
    for blocks, original, known in (
        ("transformer_blocks", "double_blocks", IN_DOUBLE_BLOCKS),
        ("single_transformer_blocks", "single_blocks", IN_SINGLE_BLOCKS),
    ):
        where, number, rest = (*name.split(".", 2), "", "")[:3]
        if where == blocks:
            return f"{original}.{number}.{known[rest]}" if rest in known else None
    return OUTSIDE.get(name)
