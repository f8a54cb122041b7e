"""Kernel Inception Distance (Binkowski et al. 2018), on CLIP's embeddings instead of Inception's.

It says how far a set of images has moved from the base's images of the same prompts. The values can't be
compared with KID on Inception features. It is nearer to CMMD (Jayasumana et al. 2024), with KID's polynomial
kernel.
"""

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
    """The mean of MMD^2 over random subsets: 0 for the base itself; values below 0 are due to chance.

    A subset holds half of the images at most, whatever `subset_size` says. With fewer than four images the
    value is NaN.
    """

    version: ClassVar[int] = 1
    direction: ClassVar[int] = -1
    # The kernel's values lie in [0, 8].
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
        # The standard error by the delete-d jackknife (Shao & Wu 1989), where each subset leaves out n - size
        # images. The plain standard deviation would ignore that subsets share images. Small subsets give an
        # error that is too large, since MMD^2 has a term in 1 / m^2.
        error = values.std() * math.sqrt(size / (n - size))
        return float(values.mean()), float(error)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """The unbiased MMD^2 of paired samples x, y [m, D] (Gretton et al. 2012, Eq. 4).

    It is the mean over i != j of k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i). The terms k(x_i, y_i)
    are left out because x_i and y_i were drawn from the same prompt and noise, and so depend on each other.
    """
    m = len(x)
    terms = kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(y, x)
    return (terms.sum() - terms.diagonal().sum()) / (m * (m - 1))


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """KID's polynomial kernel (x.y / D + 1)^3 of embeddings x [m, D] and y [n, D] of unit length, [m, n].

    The embeddings are scaled to length sqrt(D), for which the factor 1 / D is meant, so that it is (cos +
    1)^3.
    """
    return (x @ y.T + 1) ** 3
