"""The step that measures how alike different real images of a concept are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from gift_ray.config.schema import EvaluationConfig
from gift_ray.plugins import MetricContext
from gift_ray.study.journal import Journal
from gift_ray.study.measuring import image_metrics, load_images, measuring_identity
from gift_ray.study.step import Inputs, Step


@dataclass(frozen=True, kw_only=True)
class EvaluateReferences(Step):
    """Writes scores.parquet: each image of D_A, measured against all the others. Input: `concept`.

    An attacked image is called a copy if it is nearer to a training image than the largest value found here.
    """

    kind: ClassVar[str] = "evaluate_references"
    version: ClassVar[int] = 1

    evaluation: EvaluationConfig

    def identity(self) -> dict[str, Any]:
        return measuring_identity(self.evaluation)

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        images = load_images(inputs["concept"], "D_A", self.evaluation)
        names = self.evaluation.encoders.model_dump()
        metrics = {
            name: metric
            for name, metric in image_metrics(self.evaluation).items()
            if metric.needs_references
        }
        table = pd.DataFrame({"index": range(len(images))})
        for name, metric in metrics.items():
            others = [tuple(images[:i] + images[i + 1 :]) for i in range(len(images))]
            table[name] = [
                float(metric.measure([image], MetricContext(("",), rest, names))[0])
                if rest
                else np.nan
                for image, rest in zip(images, others, strict=True)
            ]
        table.to_parquet(out / "scores.parquet")
        return {"largest": {name: float(table[name].max()) for name in metrics}}
