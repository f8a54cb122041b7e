"""Bases of a family that is not supported or not complete; studies that ask of a family what it has not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import MappingProxyType
from typing import Any

import torch
from battery import Case, study
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from tiny import make_klein, make_pipeline, make_sdxl

TITLE = "Families of models"
MAKERS: dict[str, Callable[[Path], Any]] = {
    "sd": make_pipeline,
    "sdxl": make_sdxl,
    "klein": make_klein,
}
# The prompts of the study in letters that the tiny tokenizers have room for.
SHORT = {
    "concepts.malicious.0.source.caption": "a cat",
    "concepts.safe.0.source.caption": "a car",
    "prior.source.caption": "a dog",
    "concepts.malicious.0.instance_prompt": "a sks cat",
    "concepts.malicious.0.validation_prompts": ["a sks cat"],
    "concepts.malicious.0.neighbors": ["a tiger", "a fox"],
    "concepts.safe.0.validation_prompts": ["a car"],
    "evaluation.safe_prompts": ["a house", "a pizza"],
    "model.resolution": 16,
}


@cache
def made(family: str) -> Path:
    folder = Path(mkdtemp()) / family
    MAKERS[family](folder)
    return folder


def based(
    family: str, change: Callable[[Path], object] = lambda _: None,
    asked: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Path], object]:  # fmt: skip
    """`gift-ray immunize` on a base of this family, changed, with these values in the study."""

    def attempt(folder: Path) -> object:
        base = folder / "base"
        shutil.copytree(made(family), base)
        change(base)
        return study(
            folder, SHORT | {"model.pretrained_model_name_or_path": str(base)} | dict(asked)
        )

    return attempt


def set_in(file: str, **values: Any) -> Callable[[Path], None]:
    """Other values in a configuration; None takes the key out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | values
        content = {key: value for key, value in content.items() if value is not None}
        (folder / file).write_text(json.dumps(content))

    return change


def pipeline(name: str) -> Callable[[Path], None]:
    return set_in("model_index.json", _class_name=name)


def without(part: str) -> Callable[[Path], None]:
    return set_in("model_index.json", **{part: [None, None]})


def nine_channels(folder: Path) -> None:
    config = UNet2DConditionModel.load_config(folder / "unet")
    shutil.rmtree(folder / "unet")
    UNet2DConditionModel.from_config(config, in_channels=9).save_pretrained(folder / "unet")


def zero_terminal(prediction_type: str) -> Callable[[Path], None]:
    return set_in(
        "scheduler/scheduler_config.json", rescale_betas_zero_snr=True, prediction_type=prediction_type,
        timestep_spacing="trailing",
    )  # fmt: skip


def single_file(folder: Path) -> object:
    file = folder / "sd_xl_base_1.0.safetensors"
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}, file)
    return study(folder, SHORT | {
        "model.pretrained_model_name_or_path": str(file), "model.single_file_config": str(made("sdxl")),
    })  # fmt: skip


def attacked_by(**attack: Any) -> dict[str, Any]:
    return {"attacks": [{"max_train_steps": 4, **attack}]}


TEXT = "its text encoder, a language model, is not trained"
CASES = [
    *[
        Case(f"a complete {family} folder", based(family), outcome="read")
        for family in MAKERS
    ],
    Case("a ControlNet's pipeline", based("sd", pipeline("StableDiffusionControlNetPipeline")),
         says="StableDiffusionControlNetPipeline, which is not supported; supported:"),
    Case("an inpainting pipeline", based("sd", pipeline("StableDiffusionInpaintPipeline")),
         says="StableDiffusionInpaintPipeline, which is not supported"),
    Case("another transformer's pipeline", based("klein", pipeline("QwenImagePipeline")),
         says="QwenImagePipeline, which is not supported"),
    Case("SDXL's refiner", based("sdxl", pipeline("StableDiffusionXLImg2ImgPipeline")),
         says="as SDXL's refiner is"),
    Case("a single file with one tensor as the base", single_file, says="can't be read as"),
    *[
        Case(f"an inpainting UNet of {family}", based(family, nine_channels),
             says="takes 9 channels and its VAE gives 4")
        for family in ("sd", "sdxl")
    ],
    *[
        Case(f"a {family} folder without {part}", based(family, without(part)), says=f"has no {part}")
        for family, part in (("sd", "text_encoder"), ("sdxl", "text_encoder"), ("sdxl", "text_encoder_2"),
                             ("klein", "text_encoder"), ("klein", "tokenizer"))
    ],
    *[
        Case(f"a {part} of {family} without model_max_length",
             based(family, set_in(f"{part}/tokenizer_config.json", model_max_length=None)),
             says=f"the {part} of")
        for family, part in (("sd", "tokenizer"), ("sdxl", "tokenizer_2"))
    ],
    Case("epsilon with zero terminal SNR", based("sd", zero_terminal("epsilon")), says="zero terminal SNR"),
    Case("SDXL with epsilon and zero terminal SNR", based("sdxl", zero_terminal("epsilon")),
         says="zero terminal SNR"),
    Case("v_prediction with zero terminal SNR", based("sd", zero_terminal("v_prediction")), outcome="read"),
    Case("textual_inversion of FLUX.2 klein",
         based("klein", asked=attacked_by(name="textual_inversion")), says=f"FLUX.2 klein: {TEXT}"),
    Case("train_text_encoder of FLUX.2 klein",
         based("klein", asked=attacked_by(name="dreambooth", train_text_encoder=True)),
         says=f"attacks (dreambooth): FLUX.2 klein: {TEXT}"),
    Case("a LoRA on modules that a family has not",
         based("klein", asked=attacked_by(name="lora", target_modules=["to_q", "conv1"])),
         says="'conv1' is no module of this denoiser; give ends of module names, as to_q, or attention"),
    Case("FLUX.2 klein merged in closed form",
         based("klein", asked={"concepts.mode": "merge"}),
         says="which this family of models has not; set it to average"),
    Case("textual_inversion of SDXL", based("sdxl", asked=attacked_by(name="textual_inversion")),
         outcome="read"),
]  # fmt: skip
