"""The step that prepares D_S, the safe images of the prior-preservation loss: read or drawn, and encoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gift_ray.config.schema import ModelConfig, PriorConfig
from gift_ray.data import examples
from gift_ray.models import families, locate
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step
from gift_ray.study.steps.prepare_concept import read_source, source_identity


@dataclass(frozen=True, kw_only=True)
class PreparePrior(Step):
    """Writes the images to the folder D_S, and encoded to D_S.safetensors."""

    kind: ClassVar[str] = "prepare_prior"
    version: ClassVar[int] = 1

    prior: PriorConfig
    model: ModelConfig
    seed: int

    def identity(self) -> dict[str, Any]:
        return {
            "source": source_identity(self.prior.source),
            "model": locate.identity(self.model),
            "seed": self.seed,
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        base = families.drawing_base(self.model)
        images = read_source(self.prior.source, base, self.seed, "prior")
        pictures = [item.image for item in images]
        examples.save_images(out / "D_S", pictures)
        captions, keys = [i.caption for i in images], [i.key for i in images]
        examples.save_examples(out / "D_S.safetensors", base.encode(pictures, captions, keys))
        return {"D_S": len(images)}
