"""Perceptual similarity to the concept: 1 - LPIPS (Zhang et al. 2018) to the nearest of its real images.

The backbone may be any vision model of transformers; then LPIPS is computed in its unweighted form, in which
every channel counts the same. The names `alex`, `vgg` and `squeeze` stand for the published backbones with
their linear heads, from the `lpips` package.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gift_ray.errors import ConfigError
from gift_ray.models.encoders import PUBLISHED_LPIPS, vision_encoder
from gift_ray.plugins import Metric, MetricContext


class Lpips(Metric):
    """1 - the smallest LPIPS distance to any of the reference images."""

    version: ClassVar[int] = 1
    direction: ClassVar[int] = 1
    # The distance is a sum over the stages of the backbone, so it has no upper limit that holds for all
    # backbones.
    range: ClassVar[tuple[float, float]] = (-math.inf, 1.0)
    unit: ClassVar[str] = "1 - LPIPS"
    needs_references: ClassVar[bool] = True
    judges_concepts: ClassVar[bool] = True

    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        name = context.encoders["lpips"]
        distances = _published if name in PUBLISHED_LPIPS else _unweighted
        nearest = distances(name, images, context.references).min(1).values
        # Rounding can make a distance of zero slightly negative.
        return 1 - nearest.clamp_min(0).numpy()


def _unweighted(
    name: str, images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> Tensor:
    """LPIPS (Eq. 1) with all weights 1, [N, R].

    It is the sum over stages of the mean over positions of the squared distance between feature columns of
    unit length, which is 2 - 2 cos.
    """
    encoder = vision_encoder("lpips", name)
    total = torch.zeros(len(images), len(references))
    for ours, theirs in zip(
        encoder.feature_maps(images), encoder.feature_maps(references), strict=True
    ):
        positions = ours.shape[2] * ours.shape[3]
        total += 2 - 2 * (ours.flatten(1) @ theirs.flatten(1).T) / positions
    return total


def _published(
    name: str, images: Sequence[Image.Image], references: Sequence[Image.Image]
) -> Tensor:
    network = _lpips_network(name)
    ours, theirs = _signed(images), _signed(references)
    with torch.no_grad():
        return torch.stack([torch.stack([network(a, b).squeeze() for b in theirs]) for a in ours])


@lru_cache(maxsize=2)
def _lpips_network(name: str) -> Any:
    try:
        import lpips
    except ImportError as error:
        raise ConfigError(
            f"evaluation.encoders.lpips: {name!r} needs the lpips package and a torchvision that "
            "matches torch: pip install 'gift-ray[lpips]'"
        ) from error
    return lpips.LPIPS(net=name, verbose=False).eval()


def _signed(images: Sequence[Image.Image]) -> Tensor:
    """[N, 1, 3, H, W] in [-1, 1], the range that LPIPS was trained with."""
    arrays = [np.asarray(i.convert("RGB"), dtype=np.float32) / 127.5 - 1 for i in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)[:, None]
