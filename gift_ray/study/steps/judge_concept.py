"""The step that measures what judges must tell apart: real images of a concept, and images without it.

The latter are real images of its controls, the base's images of safe prompts, and images that show nothing.
The step runs before anything is trained. From its scores the judges' check tells which metrics can recognise
the concept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from PIL import Image

from gift_ray.config.schema import EvaluationConfig
from gift_ray.data.broken import broken
from gift_ray.plugins import Metric, MetricContext
from gift_ray.study.journal import Journal
from gift_ray.study.measuring import image_metrics, load_images, measuring_identity
from gift_ray.study.step import Inputs, Step

CONTROL = "control/"


@dataclass(frozen=True, kw_only=True)
class JudgeConcept(Step):
    """Writes scores.parquet: a row for each image, with its `group` (concept, control, safe or broken).

    Broken images are the concept's own, destroyed: a model that draws nothing must not count as one that
    draws the concept.

    Inputs:
        concept: each image of its D_A is measured, with the others as references.
        control/<name>: the D_A of a control is measured, with the concept's D_A as references.
        safe: if given, the step that drew the base's images of safe prompts; measured like a control.

    Attributes:
        names: the names by which the concept counts as recognised.
    """

    kind: ClassVar[str] = "judge"
    version: ClassVar[int] = 2

    evaluation: EvaluationConfig
    names: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        return {**measuring_identity(self.evaluation), "names": list(self.names)}

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        real = load_images(inputs["concept"], "D_A", self.evaluation)
        controls = [
            image
            for name, folder in sorted(inputs.items())
            if name.startswith(CONTROL)
            for image in load_images(folder, "D_A", self.evaluation)
        ]
        safe = load_images(inputs.get("safe"), "step-000000", self.evaluation)
        others = {"control": controls, "safe": safe, "broken": broken(real, seed=0)}
        counts = {"concept": len(real)} | {group: len(images) for group, images in others.items()}
        table = pd.DataFrame({"group": [group for group, n in counts.items() for _ in range(n)]})
        unlike = [image for images in others.values() for image in images]
        for name, metric in image_metrics(self.evaluation).items():
            if metric.judges_concepts:
                alike = self._each_against_others(metric, real)
                table[name] = np.concatenate([alike, self._scores(metric, unlike, real)])
        table.to_parquet(out / "scores.parquet")
        return {"images": table["group"].value_counts().to_dict()}

    def _each_against_others(self, metric: Metric, images: Sequence[Image.Image]) -> np.ndarray:
        if not metric.needs_references:
            return self._scores(metric, images, ())
        if len(images) < 2:
            return np.full(len(images), np.nan)
        return np.concatenate(
            [
                self._scores(metric, [image], [*images[:i], *images[i + 1 :]])
                for i, image in enumerate(images)
            ]
        )

    def _scores(
        self, metric: Metric, images: Sequence[Image.Image], references: Sequence[Image.Image]
    ) -> np.ndarray:
        if not images:
            return np.zeros(0)
        encoders = self.evaluation.encoders.model_dump()
        context = MetricContext(("",) * len(images), tuple(references), encoders, self.names)
        return np.asarray(metric.measure(images, context), dtype=np.float64)
