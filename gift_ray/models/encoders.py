"""The networks that metrics use: CLIP, DINO, an LPIPS backbone and image classifiers.

They are given by a hub id, a folder, or `builtin` for the small ones that ship with the package, and are
loaded once in a process. transformers is imported only where a network is loaded, since that takes seconds
and most processes of a study only plan.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gift_ray.errors import ModelError, any_failure_is
from gift_ray.models.builtin import BUNDLE
from gift_ray.models.complete import load_complete
from gift_ray.models.locate import ENCODER, device, snapshot

logger = logging.getLogger(__name__)

BATCH = 64
# The networks of the `lpips` package, by its names; any other name is a folder or a hub id.
PUBLISHED_LPIPS = ("alex", "vgg", "squeeze")


def locate_encoder(role: str, name: str) -> Path:
    """The local folder of an encoder, given as `builtin`, a folder, or a hub id.

    Raises:
        ModelError: it is not found, or the hub can't be reached.
    """
    if name == "builtin":
        return BUNDLE / role
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    return snapshot(name, None, f"evaluation.encoders.{role}", ENCODER)


class ClipEncoder:
    """Unit-length CLIP embeddings of images and texts."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

        self.model = _load(CLIPModel, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    @property
    def scale(self) -> float:
        """The factor by which cosines are multiplied before the softmax over captions."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """The embeddings of images, [N, D], on the CPU."""
        parts = [
            F.normalize(_pooled(self.model.get_image_features(pixel_values=pixels)), dim=-1).cpu()
            for pixels in _pixels(self.processor, images)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts, [N, D], on the CPU."""
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        tokens = {key: tokens[key].to(device()) for key in ("input_ids", "attention_mask")}
        return F.normalize(_pooled(self.model.get_text_features(**tokens)), dim=-1).cpu()


class ImageClassifier:
    """Any image classifier of transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        self.model = _load(AutoModelForImageClassification, folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def probabilities(self, images: Sequence[Image.Image]) -> Tensor:
        """The probability of each label for each image, [N, labels], on the CPU."""
        parts = [
            self.model(pixel_values=pixels).logits.softmax(-1).cpu()
            for pixels in _pixels(self.processor, images)
        ]
        return torch.cat(parts)


class VisionEncoder:
    """A vision backbone of transformers: CLS embeddings (DINO) or all feature maps (LPIPS)."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.model = _load(AutoModel, folder)
        self.processor = AutoImageProcessor.from_pretrained(folder)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit-length CLS embeddings [N, D], on the CPU."""
        parts = [
            F.normalize(self.model(pixel_values=pixels).last_hidden_state[:, 0], dim=-1).cpu()
            for pixels in _pixels(self.processor, images)
        ]
        return torch.cat(parts)

    @torch.no_grad()
    def feature_maps(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """The features of each stage, [N, C, h, w], scaled to unit length at each position, on the CPU."""
        batches = [
            self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
            for pixels in _pixels(self.processor, images)
        ]
        return [
            F.normalize(torch.cat(stage), dim=1, eps=1e-10).cpu()
            for stage in zip(*batches, strict=True)
        ]


@lru_cache(maxsize=4)
def clip_encoder(name: str) -> ClipEncoder:
    """The CLIP of this name, which a process loads once."""
    return ClipEncoder(locate_encoder("clip", name))


@lru_cache(maxsize=4)
def image_classifier(name: str) -> ImageClassifier:
    """The classifier of this name, which a process loads once."""
    return ImageClassifier(locate_classifier(name))


def locate_classifier(name: str) -> Path:
    """The local folder of an image classifier, given as `builtin`, a folder, or a hub id.

    Raises:
        ModelError: it is not found, or the hub can't be reached.
    """
    # The built-in LPIPS backbone was trained to name the nouns of the built-in model.
    return locate_encoder("lpips", name)


@lru_cache(maxsize=8)
def labels_of(name: str) -> tuple[str, ...]:
    """The labels of a classifier, in the order of its outputs.

    Raises:
        ModelError: the classifier is not found, or its configuration does not name its labels.
    """
    folder = locate_classifier(name)
    try:
        labels = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{folder}: no id2label in config.json; give an image classifier"
        ) from error
    return tuple(labels[str(i)] for i in range(len(labels)))


@lru_cache(maxsize=4)
def vision_encoder(role: str, name: str) -> VisionEncoder:
    """The backbone for `dino` or `lpips`, which a process loads once."""
    return VisionEncoder(locate_encoder(role, name))


def _load(kind: Any, folder: Path) -> Any:
    logger.info("Loading the encoder in %s.", folder)
    with any_failure_is(ModelError, f"evaluation.encoders: {folder} can't be loaded"):
        model = load_complete(kind, folder, origin=f"evaluation.encoders: {folder}")
    return model.to(device()).eval().requires_grad_(False)


def _pixels(processor: Any, images: Sequence[Image.Image]) -> list[Tensor]:
    chunks = [list(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]
    return [processor(images=c, return_tensors="pt")["pixel_values"].to(device()) for c in chunks]


def _pooled(features: Any) -> Tensor:
    # transformers 5 returns an output object where 4 returned the tensor.
    pooled: Tensor = getattr(features, "pooler_output", features)
    return pooled
