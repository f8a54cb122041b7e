"""From checkpoints to the bundle: diffusers and transformers folders, safetensors in fp16."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from builtin_world.autoencoder import finished_vae
from builtin_world.classifier import judge_resnet
from builtin_world.clip import judge_clip, load_tokenizer, text_encoder
from builtin_world.dino import judge_dino
from builtin_world.pictures import SIZE, World
from builtin_world.training import trained
from builtin_world.unet import new_scheduler, new_unet
from builtin_world.world import STYLES, openmoji_kept_back

MEAN = STD = [0.5, 0.5, 0.5]


def processor(kind: str, size: int) -> dict:
    """The preprocessor_config.json of square images of `size` pixels, in -1..1."""
    side = {"shortest_edge": size} if kind == "CLIP" else {"height": size, "width": size}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": kind == "CLIP",
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def save_half(model, folder: Path, preprocessor: dict | None = None) -> None:
    """Weights in fp16, while the config asks for float32: CPU code computes in float32."""
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for config in [*folder.glob("config.json"), *folder.glob("*/config.json")]:
        found = json.loads(config.read_text())
        if "dtype" in found:
            text = config.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
            config.write_text(text)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def publish(scratch: Path, target: Path) -> None:
    """Move files over the old ones, one atomic rename each: no reader sees half a file."""
    for file in sorted(f for f in scratch.rglob("*") if f.is_file()):
        place = target / file.relative_to(scratch)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def noun_list(world: World) -> dict:
    """nouns.json: who knows which noun, and who has seen which drawing.

    The nouns of one kind are each other's neighbours.
    """
    kept_back = openmoji_kept_back(world.nouns)
    held: dict[int, list[str]] = {n: [] for n in range(len(world.nouns))}
    for drawing in world.chosen(world.role > 0).tolist():
        held[int(world.noun[drawing])].append(STYLES[int(world.style[drawing])].name)
    return {
        "styles": {style.name: {"base": style.base} for style in STYLES},
        "nouns": {
            noun.name: {
                "kind": noun.kind,
                "drawn": noun.drawn,
                "base_never_saw": ["openmoji"] if noun.name in kept_back else [],
                "judges_never_saw": held[n],
            }
            for n, noun in enumerate(world.nouns)
        },
    }


def export(world: World, work: Path, bundle: Path) -> None:
    """Write the bundle from the checkpoints in `work`."""
    tokenizer = load_tokenizer(world, work)
    pipeline = StableDiffusionPipeline(
        vae=finished_vae(world, work),
        text_encoder=text_encoder(world, work),
        tokenizer=tokenizer,
        unet=trained(new_unet(), work, "unet"),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    bundle.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        scratch = Path(folder)
        save_half(pipeline, scratch / "pipeline")
        save_half(judge_clip(world, work), scratch / "clip", processor("CLIP", SIZE))
        tokenizer.save_pretrained(scratch / "clip")
        save_half(judge_dino(work), scratch / "dino", processor("ViT", SIZE))
        save_half(judge_resnet(world, work), scratch / "lpips", processor("ViT", 2 * SIZE))
        (scratch / "nouns.json").write_text(json.dumps(noun_list(world), indent=1) + "\n")
        publish(scratch, bundle)
