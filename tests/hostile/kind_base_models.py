"""Base models and encoders that are damaged, incomplete, or of a kind that would be trained wrongly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from battery import Case
from kind_checkpoints import base_folder
from safetensors.torch import load_file, save_file
from tiny import make_encoders
from torch import Tensor

from gift_ray.config.schema import ModelConfig, PriorConfig
from gift_ray.models.encoders import ClipEncoder, VisionEncoder
from gift_ray.models.families import check_base, load_backbone
from gift_ray.study.journal import LocalJournal
from gift_ray.study.steps.prepare_prior import PreparePrior

TITLE = "Base models and encoders"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
WORDS = "text_encoder/model.safetensors"
Change = Callable[[dict[str, Tensor]], object]


def weights(file: str, change: Change) -> Callable[[Path], None]:
    """Load a base one of whose files of weights was changed."""

    def attempt(folder: Path) -> None:
        copy = folder / "odd"
        shutil.copytree(base_folder(), copy)
        _change(copy / file, change)
        load_backbone(ModelConfig(pretrained_model_name_or_path=str(copy)))

    return attempt


def _change(path: Path, change: Change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def settings(file: str, resolution: int | None = None, **values: Any) -> Callable[[Path], Any]:
    """Load a base with other values in one of its configurations."""

    def attempt(folder: Path) -> Any:
        copy = folder / "odd"
        shutil.copytree(base_folder(), copy)
        path = copy / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        return load_backbone(
            ModelConfig(pretrained_model_name_or_path=str(copy), resolution=resolution)
        )

    return attempt


def scheduler(name: str, **values: Any) -> Callable[[Path], Any]:
    def attempt(folder: Path) -> Any:
        copy = folder / "odd"
        shutil.copytree(base_folder(), copy)
        changed = {
            "model_index.json": {"scheduler": ["diffusers", name]},
            "scheduler/scheduler_config.json": {"_class_name": name, **values},
        }
        for file, entry in changed.items():
            path = copy / file
            path.write_text(json.dumps(json.loads(path.read_text()) | entry))
        return load_backbone(ModelConfig(pretrained_model_name_or_path=str(copy)))

    return attempt


def scheduled(attempt: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The base trains with the betas that stand in its folder."""

    def check(folder: Path) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        expected = torch.cumprod(1 - betas, 0)
        assert torch.allclose(attempt(folder).noise_scheduler.alphas_cumprod, expected, atol=1e-6)

    return check


def encoder(role: str, change: Change) -> Callable[[Path], None]:
    def attempt(folder: Path) -> None:
        path = Path(make_encoders(folder / "encoders")[role])
        _change(path / "model.safetensors", change)
        ClipEncoder(path) if role == "clip" else VisionEncoder(path)

    return attempt


def without(part: str) -> Change:
    """Take out the first tensor whose name holds this."""
    return lambda tensors: tensors.pop(next(name for name in tensors if part in name))


def as_type(dtype: torch.dtype) -> Change:
    return lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()})


def spoilt(tensors: dict[str, Tensor]) -> None:
    next(iter(tensors.values())).fill_(float("nan"))


def extra(tensors: dict[str, Tensor]) -> None:
    tensors["not.there"] = torch.ones(2)


def misshapen(tensors: dict[str, Tensor]) -> None:
    tensors["conv_in.weight"] = torch.ones(16, 9, 3, 3)


def drawing(change: Change, precision: str = "no") -> Callable[[Path], None]:
    """Prepare D_S, which is the first that a study does, with a base whose VAE was changed."""

    def attempt(folder: Path) -> None:
        copy = folder / "odd"
        shutil.copytree(base_folder(), copy)
        _change(copy / VAE, change)
        model = ModelConfig.model_validate(
            {"pretrained_model_name_or_path": str(copy), "mixed_precision": precision}
        )
        source = {"name": "generated", "prompts": ["a cat"], "num_images": 1}
        prior = PriorConfig.model_validate({"source": source})
        step = PreparePrior(label="prepare D_S", prior=prior, model=model, seed=0)
        step.run({}, folder, LocalJournal(folder / "journal", every=1))

    return attempt


def scaled(factor: float, *parts: str) -> Change:
    """Multiply the tensors whose names begin so."""
    return lambda tensors: tensors.update(
        {n: t * factor for n, t in tensors.items() if n.startswith(parts)}
    )


CASES = [
    *[
        Case(f"a base whose {part} lacks a tensor", weights(file, without("weight")), says="missing tensors")
        for part, file in (("unet", UNET), ("VAE", VAE), ("text encoder", WORDS))
    ],
    *[
        Case(f"a base whose {part} has a tensor too many", weights(file, extra), says="unexpected tensors")
        for part, file in (("unet", UNET), ("VAE", VAE), ("text encoder", WORDS))
    ],
    Case("a base whose unet has a tensor of another shape", weights(UNET, misshapen), says="conv_in.weight"),
    Case("a base whose VAE holds NaN", weights(VAE, spoilt), says="holds NaN or infinity"),
    Case("a base that draws NaN in fp16 alone, as VAEs do that overflow",
         drawing(scaled(1e6, "decoder.conv_in"), "fp16"), says="model.mixed_precision: in fp16 the base"),
    Case("the same base in fp32", drawing(scaled(1e6, "decoder.conv_in")), outcome="read"),
    Case("a base whose VAE overflows in fp32 too", drawing(scaled(1e38, "decoder.conv_in")),
         says="draws NaN"),
    Case("a base that draws one colour", drawing(scaled(0, "decoder.conv_out")), says="draws one colour"),
    Case("a base whose VAE makes NaN of images",
         drawing(scaled(1e38, "encoder.conv_in", "quant_conv")), says="what its VAE makes of the images"),
    Case("a base without the variant that `model.variant` names",
         lambda folder: check_base(
             ModelConfig(pretrained_model_name_or_path=str(base_folder()), variant="fp16")),
         says="no variant 'fp16'; it has none"),
    Case("a base whose unet is int8", weights(UNET, as_type(torch.int8)), says="holds I8"),
    Case("a base whose text encoder is in 8-bit floats",
         weights(WORDS, as_type(torch.float8_e4m3fn)), says="holds F8_E4M3"),
    Case("a base in bfloat16", weights(UNET, as_type(torch.bfloat16)), outcome="read, in float32"),
    Case("a base with FlowMatchEulerDiscreteScheduler", scheduler("FlowMatchEulerDiscreteScheduler"),
         says="is a FlowMatchEulerDiscreteScheduler"),
    Case("a base with EDMEulerScheduler", scheduler("EDMEulerScheduler"), says="is a EDMEulerScheduler"),
    Case("a base with UniPCMultistepScheduler and flow sigmas",
         scheduler("UniPCMultistepScheduler", use_flow_sigmas=True), says="use_flow_sigmas"),
    Case("a base with EulerDiscreteScheduler", scheduled(scheduler("EulerDiscreteScheduler")),
         outcome="trained with the betas of its configuration"),
    Case("a base with PNDMScheduler", scheduled(scheduler("PNDMScheduler")),
         outcome="trained with the betas of its configuration"),
    Case("a base of a prediction type that is not known",
         settings("scheduler/scheduler_config.json", prediction_type="velocity"),
         says="the prediction_type of"),
    Case("a base without sample_size", settings("unet/config.json", sample_size=None),
         says="set model.resolution"),
    Case("a base without sample_size, model.resolution given",
         settings("unet/config.json", resolution=16, sample_size=None), outcome="read"),
    Case("a base whose unet takes 9 channels", settings("unet/config.json", in_channels=9), says="model."),
    *[
        Case(f"an encoder for {role} that lacks a tensor", encoder(role, without(part)),
             says="missing tensors")
        for role, part in (("clip", "text_model"), ("dino", "layernorm_before"), ("lpips", "weight"))
    ],
    Case("an encoder for dino without its pooler, which nothing reads",
         encoder("dino", without("pooler")), outcome="read"),
]  # fmt: skip
