"""The step that merges models, each immunized against one concept, into one model against all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from safetensors.torch import load_file

from gift_ray.config.schema import MergeConfig, ModelConfig
from gift_ray.models.families import base_model
from gift_ray.models.merge import merge_weights
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step
from gift_ray.study.steps.immunize_model import defenders_data


@dataclass(frozen=True, kw_only=True)
class MergeModels(Step):
    """Writes unet.safetensors. Inputs: `prior`, and `concept/NAME` and `model/NAME` for each concept."""

    kind: ClassVar[str] = "merge"
    version: ClassVar[int] = 2

    merge: MergeConfig
    concepts: tuple[str, ...]
    names: tuple[str, ...]
    model: ModelConfig

    def identity(self) -> dict[str, Any]:
        return {
            "merge": self.merge.model_dump(mode="json", exclude={"polish_steps"}),
            "concepts": list(self.concepts),
            "names": list(self.names),
        }

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        d_m, d_s = defenders_data(self.concepts, self.names, inputs)
        base = base_model(self.model)
        weights, values = merge_weights(
            {name: tensor.cpu() for name, tensor in base.weights().items()},
            (load_file(inputs[f"model/{name}"] / "unet.safetensors") for name in self.concepts),
            d_m, d_s, list(base.parameters("cross_attention_kv")), self.merge,
        )  # fmt: skip
        merged = base.clone()
        merged.load_weights(weights, origin="merge")
        merged.save_weights(out / "unet.safetensors")
        pd.DataFrame([{"step": 0, **values}]).to_parquet(out / "training.parquet")
        return {"last": values}
