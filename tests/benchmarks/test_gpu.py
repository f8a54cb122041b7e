"""The benchmark of a GPU, on tiny shapes: it runs on a CPU, and without what it says it does not need."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUN = """
import runpy, sys
sys.argv = ["gpu.py", "--tiny", "--minutes", "60", "--models", "{model}"]
runpy.run_path({path!r}, run_name="__main__")
assert not {{"ray", "mlflow", "optuna"}} & sys.modules.keys()
"""


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import shapes

    return shapes


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "model", ["sd15", *(pytest.param(m, marks=pytest.mark.slow) for m in ("sdxl", "klein"))]
)
def test_every_measurement_runs_without_ray_and_mlflow(model: str) -> None:
    code = RUN.format(path=str(BENCHMARKS / "gpu.py"), model=model)
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCHMARKS, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    rates = [float(found) for found in re.findall(r"([\d.]+) /s  MFU +[\d.]+ %", ran.stdout)]
    # Six measurements of ours and five of plain loops.
    assert len(rates) == 6 + 5
    assert min(rates) > 0
    assert len(re.findall(r"DreamBooth, .*: [\d.]+ /s", ran.stdout)) == 5
    assert "left out" not in ran.stdout


def test_the_shapes_are_those_of_the_published_models(shapes) -> None:
    """The numbers of parameters of the denoisers on the hub."""
    sizes = {}
    for name in shapes.DENOISERS:
        model = shapes.backbone(name, torch.device("meta"))
        sizes[name] = sum(p.numel() for p in model.denoiser.parameters())
    assert sizes["sd15"] == 859_520_964
    assert sizes["sdxl"] == 2_567_463_684
    assert sizes["klein"] == pytest.approx(3.88e9, rel=0.01)
