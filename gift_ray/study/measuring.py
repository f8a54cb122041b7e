"""Images measured under a study's settings, the same way in every step that measures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from gift_ray import plugins
from gift_ray.config.schema import EvaluationConfig, StudyConfig
from gift_ray.data import examples
from gift_ray.models.encoders import PUBLISHED_LPIPS, locate_encoder
from gift_ray.models.locate import folder_hash

# The size to which IMMA's evaluation shrinks images before it measures them.
IMMA_PX = 64


def load_images(step: Path | None, folder: str, evaluation: EvaluationConfig) -> list[Image.Image]:
    """The images that a finished step saved, resized as the protocol asks; [] if `step` is None."""
    images = examples.load_images(step / folder) if step else []
    if evaluation.protocol == "standard":
        return images
    # IMMA's eval.py: torchvision's Resize with antialiasing, which is PIL's bilinear filter.
    return [i.resize((IMMA_PX, IMMA_PX), Image.Resampling.BILINEAR) for i in images]


def image_metrics(evaluation: EvaluationConfig) -> dict[str, plugins.Metric]:
    """The metrics of single images, by name."""
    return {name: m for name, m in _built(evaluation) if isinstance(m, plugins.Metric)}


def judges(config: StudyConfig) -> dict[str, plugins.Metric]:
    """The metrics that may be part of a verdict, by name: those of `scoring.judges`."""
    able = {n: m for n, m in image_metrics(config.evaluation).items() if m.judges_concepts}
    wanted = config.scoring.judges
    return able if wanted is None else {n: m for n, m in able.items() if n in wanted}


def naming_metrics(evaluation: EvaluationConfig, prompts: Collection[str]) -> list[str]:
    """The recognitions that know a noun in each of these prompts."""
    return [
        title
        for title, metric in image_metrics(evaluation).items()
        if metric.known_names() is not None and all(metric.named_in(p) for p in prompts)
    ]


def set_metrics(evaluation: EvaluationConfig) -> dict[str, plugins.SetMetric]:
    """The metrics of whole sets of images, by name."""
    return {name: m for name, m in _built(evaluation) if isinstance(m, plugins.SetMetric)}


def _built(evaluation: EvaluationConfig) -> Iterator[tuple[str, Any]]:
    return ((m.title, plugins.build("metrics", m.name, m.options)) for m in evaluation.metrics)


def measuring_identity(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What the scores of given images depend on: metrics, encoders (by content) and protocol."""
    encoders = {
        role: name if is_published(role, name) else folder_hash(locate_encoder(role, name))
        for role, name in evaluation.encoders.model_dump().items()
    }
    return {
        "metrics": {title: metric.identity() for title, metric in _built(evaluation)},
        "encoders": encoders,
        "protocol": evaluation.protocol,
    }


def is_published(role: str, name: str) -> bool:
    """Whether an encoder's name stands for a published LPIPS network, not for a folder or a hub id."""
    return role == "lpips" and name in PUBLISHED_LPIPS
