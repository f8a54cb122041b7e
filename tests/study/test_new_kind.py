"""A new kind of step is one new file: nothing else in the project has to know of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest
from tiny import make_encoders, tiny_study

from gift_ray.config.schema import ModelConfig
from gift_ray.records.record import read_record
from gift_ray.search import costs
from gift_ray.study.inline import InlineExecutor
from gift_ray.study.plan import plan

# A control: how bright a model's images of the safe prompts are.
BRIGHTNESS = '''
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

from gift_ray.data.examples import load_images
from gift_ray.study.step import Step, Work


@dataclass(frozen=True, kw_only=True)
class MeasureBrightness(Step):
    """Leaves brightness.parquet. Input: `images`, the step that drew them."""

    kind: ClassVar[str] = "brightness"
    version: ClassVar[int] = 1

    scale: float = 1.0

    def identity(self):
        return {"scale": self.scale}

    def run(self, inputs, out, journal):
        images = load_images(inputs["images"] / "step-000000")
        values = [self.scale * float(np.asarray(image).mean()) for image in images]
        pd.DataFrame({"brightness": values}).to_parquet(out / "brightness.parquet")
        return {"mean": sum(values) / len(values)}

    def work(self):
        return Work(measured=self.inputs["images"].work().drawn)
'''


def test_a_control_in_a_package_of_its_own(
    tmp_path: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebodys").mkdir()
    (tmp_path / "somebodys" / "brightness.py").write_text(BRIGHTNESS)
    monkeypatch.syspath_prepend(tmp_path)
    kind = importlib.import_module("somebodys.brightness").MeasureBrightness

    config = tiny_study(
        output_dir=str(tmp_path),
        model=tiny_config.model_dump(),
        evaluation={"encoders": make_encoders(tmp_path / "encoders")},
    )
    images = plan(config).undefended.samples["safe"].inputs["images"]
    step = kind(label="brightness", inputs={"images": images}, scale=2.0)
    executor = InlineExecutor(config.study_dir)
    executor.run([step])

    folder = step.folder(config.study_dir)
    assert folder.name.startswith("brightness-")
    values = pd.read_parquet(folder / "brightness.parquet")["brightness"]
    assert read_record(folder).result["mean"] == pytest.approx(values.mean())
    assert [e.kind for e in executor.events(0) if e.state == "done"] == [
        "immunize", "sample", "brightness",
    ]  # fmt: skip
    # What it costs is known like that of any other.
    assert step.work().measured == len(values)
    assert costs.estimate([step], config.study_dir, None).recorded == 1
