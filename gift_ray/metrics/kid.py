"""Kernel Inception Distance (Binkowski et al. 2018) on CLIP's embeddings instead of Inception's: how far
a set of images has moved from the base's images of the same prompts. Not comparable to KID on
Inception features; nearer to CMMD (Jayasumana et al. 2024), with KID's polynomial kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from gift_ray.models.encoders import clip_encoder
from gift_ray.plugins import MetricContext, SetMetric
from gift_ray.training.diffusion import Seeds


class Kid(SetMetric):
    """Mean of MMD^2 over random subsets; 0 for the base itself, and below 0 by chance only.

    `subset_size` is at most half of the images. Below four images it is NaN.
    """

    version: ClassVar[int] = 1
    direction: ClassVar[int] = -1
    # The kernel lies in [0, 8].
    range: ClassVar[tuple[float, float]] = (-16.0, 16.0)
    unit: ClassVar[str] = "MMD^2"

    num_subsets: int = Field(100, gt=1)
    subset_size: int = Field(1000, gt=1)

    def compare(
        self,
        images: Sequence[Image.Image],
        base_images: Sequence[Image.Image],
        context: MetricContext,
    ) -> tuple[float, float]:
        encoder = clip_encoder(context.encoders["clip"])
        ours, theirs = encoder.images(images).double(), encoder.images(base_images).double()
        n = len(images)
        size = min(self.subset_size, n // 2)
        if size < 2:
            return math.nan, math.nan
        draws = [torch.randperm(n, generator=Seeds(0).generator("kid", i))[:size]
                 for i in range(self.num_subsets)]  # fmt: skip
        values = torch.stack([squared_mmd(ours[d], theirs[d]) for d in draws])
        # Subsets that leave n - size images out: the delete-d jackknife's error of the whole set's
        # value (Shao & Wu 1989); small subsets overstate it, as MMD^2 has a term in 1 / m^2. The plain
        # deviation overlooks that subsets share images.
        error = values.std() * math.sqrt(size / (n - size))
        return float(values.mean()), float(error)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased MMD^2 of paired samples x, y [m, D] (Gretton et al. 2012, Eq. 4): the mean over
    i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i).

    Pairs share prompt and noise, so x_i and y_i depend on each other and k(x_i, y_i) must stay out.
    """
    m = len(x)
    terms = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    return (terms.sum() - terms.diagonal().sum()) / (m * (m - 1))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's polynomial kernel (x.y / D + 1)^3, [m, n], of unit-length embeddings scaled to length
    sqrt(D), the scale that its 1 / D is made for: (cos + 1)^3."""
    return (x @ y.T + 1) ** 3
