"""The step that measures images of an attack or of a released model: a row of scores an image, and curves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from gift_ray.config.schema import EvaluationConfig
from gift_ray.plugins import MetricContext
from gift_ray.records.record import Score
from gift_ray.study.journal import Journal
from gift_ray.study.measuring import image_metrics, load_images, measuring_identity, set_metrics
from gift_ray.study.step import Inputs, Step, Work


@dataclass(frozen=True, kw_only=True)
class EvaluateImages(Step):
    """Writes scores.parquet.

    Inputs:
        images: the step that drew the images.
        concept: its D_A are the references. Without it, only metrics that need no references are measured.
        base: the step that drew the base's images of the same prompts. Without it, metrics of whole sets are
            left out.

    Attributes:
        asked: the prompts against which the images of each attack step are measured.
        names: the names by which the concept counts as recognised. Without any, each image is judged by the
            noun in its prompt.
        halves: compare the images of the first half of the prompts with those of the second half, instead of
            the base's images. This says how far apart sets of unrelated images are.
    """

    kind: ClassVar[str] = "evaluate"
    version: ClassVar[int] = 2

    evaluation: EvaluationConfig
    asked: tuple[str, ...]
    names: tuple[str, ...] = ()
    halves: bool = False

    def identity(self) -> dict[str, Any]:
        return {
            **measuring_identity(self.evaluation),
            "asked": list(self.asked),
            "names": list(self.names),
            "halves": self.halves,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        references = load_images(inputs.get("concept"), "D_A", self.evaluation)
        base_images = load_images(inputs.get("base"), "step-000000", self.evaluation)
        encoders = self.evaluation.encoders.model_dump()
        context = MetricContext(self.asked, tuple(references), encoders, self.names)
        usable = {
            name: metric
            for name, metric in image_metrics(self.evaluation).items()
            if references or not metric.needs_references
        }
        usable_sets = set_metrics(self.evaluation) if base_images or self.halves else {}

        tables = []
        curves: dict[str, dict[str, Any]] = {}
        for folder in sorted(inputs["images"].glob("step-*")):
            step = int(folder.name.removeprefix("step-"))
            images = load_images(inputs["images"], folder.name, self.evaluation)
            table = pd.DataFrame({"step": step, "index": range(len(images)), "prompt": self.asked})
            for name, metric in usable.items():
                values, findings = metric.examine(images, context)
                table[name] = np.asarray(values, dtype=np.float64)
                if findings is not None:
                    table[f"{name}/findings"] = findings
                score = Score.of(table[name].to_numpy(), metric.direction)
                curves.setdefault(name, {})[str(step)] = asdict(score)
            for name, set_metric in usable_sets.items():
                middle = len(images) // 2
                pair = (
                    (images[:middle], images[middle : 2 * middle])
                    if self.halves
                    else (images, base_images)
                )
                value, error = set_metric.compare(*pair, context)
                score = Score.of_set(value, error, len(images), set_metric.direction)
                curves.setdefault(name, {})[str(step)] = asdict(score)
            tables.append(table)
        pd.concat(tables, ignore_index=True).to_parquet(out / "scores.parquet")
        return {"curves": curves}

    def work(self) -> Work:
        return Work(measured=self.inputs["images"].work().drawn)
