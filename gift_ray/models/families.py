"""Finds the family of models that a folder belongs to, and loads the base model of a study.

A family is one class in a file of its own. The folder's model_index.json names the diffusers pipeline that it
was saved from, and so its family.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import lru_cache
from pathlib import Path

from safetensors.torch import load_file

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.backbone import Backbone
from gift_ray.models.loading import FIELD, read_json
from gift_ray.models.locate import locate
from gift_ray.models.variants import require_variant

logger = logging.getLogger(__name__)

# The pipeline's class in model_index.json -> the module and class of the family.
FAMILIES = {
    "StableDiffusionPipeline": "gift_ray.models.stable_diffusion.StableDiffusion",
    "StableDiffusionXLPipeline": "gift_ray.models.sdxl.StableDiffusionXL",
    "Flux2KleinPipeline": "gift_ray.models.rectified_flow.Flux2Klein",
}


def family_of(folder: Path) -> type[Backbone]:
    """The family of a diffusers folder.

    Raises:
        ModelError: its model_index.json can't be read, or names a pipeline of no known family.
    """
    name = str(read_json(folder, "model_index.json").get("_class_name"))
    if name == "StableDiffusionXLImg2ImgPipeline":
        raise ModelError(
            f"{FIELD}: {folder} is a {name}, as SDXL's refiner is: it finishes drawings of another "
            "model; give the base model"
        )
    if name not in FAMILIES:
        raise ModelError(
            f"{FIELD}: {folder} is a {name}, which is not supported; supported: {', '.join(FAMILIES)}"
        )
    module, _, kind = FAMILIES[name].rpartition(".")
    family: type[Backbone] = getattr(importlib.import_module(module), kind)
    return family


def check_base(config: ModelConfig) -> None:
    """Check that a base is there and of a known family, without loading it.

    Raises:
        ModelError: it is not found, is of no known family, lacks the variant that is asked for, or can't be
            trained or drawn with.
    """
    folder = locate(config)
    require_variant(folder, config.variant)
    family_of(folder).check(folder, config.pretrained_model_name_or_path)


def load_backbone(config: ModelConfig) -> Backbone:
    """Load a diffusers folder or hub id from safetensors, in fp32.

    Raises:
        ModelError: it is not found, the hub can't be reached, or the weights are pickled or damaged.
    """
    check_base(config)
    folder = locate(config)
    return family_of(folder).load(folder, config)


@lru_cache(maxsize=2)
def base_model(config: ModelConfig) -> Backbone:
    """The base model, which a process loads once. Callers must clone it before they train it."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logger.info("Loading the base model %s.", config.pretrained_model_name_or_path)
    return load_backbone(config)


@lru_cache(maxsize=2)
def drawing_base(config: ModelConfig) -> Backbone:
    """The base model, after a check that it draws a picture, which a process makes once.

    Raises:
        ModelError: as `load_backbone`, and if what it draws is no picture.
    """
    base = base_model(config)
    base.require_pictures(config.pretrained_model_name_or_path)
    return base


def released_model(config: ModelConfig, weights: Path) -> Backbone:
    """The base with the weights of a finished step.

    With `low_memory` the base is unloaded first, so that there is one copy of the weights; it is loaded again
    when the process needs it.

    Raises:
        ModelError: keys or shapes don't fit, or a weight is not finite.
    """
    if not config.low_memory:
        return base_model(config).with_weights(weights)
    for kept in (drawing_base, base_model):
        kept.cache_clear()
    model = load_backbone(config)
    model.load_weights(load_file(weights), origin=str(weights))
    return model
