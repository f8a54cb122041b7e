"""The defense of docs/TUTORIAL.md, taken from the page and run: what a newcomer copies must work."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from killed import KilledJournal

from gift_ray import defenses, plugins
from gift_ray.models.backbone import Backbone
from gift_ray.training.diffusion import Examples, Seeds

ROOT = Path(__file__).parents[2]
SHORT = {"max_train_steps": 6, "train_batch_size": 2}


@pytest.fixture
def kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The page's file, put where a plug-in is looked for."""
    page = (ROOT / "docs" / "TUTORIAL.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    folder = tmp_path / "defenses"
    folder.mkdir()
    (folder / "ascent.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(defenses, "__path__", [*defenses.__path__, str(folder)])
    importlib.invalidate_caches()
    yield plugins.resolve("defenses", "ascent")
    del sys.modules["gift_ray.defenses.ascent"]


def contract() -> ModuleType:
    """The battery that every defense of the package meets."""
    path = ROOT / "tests" / "contracts" / "test_defenses.py"
    spec = importlib.util.spec_from_file_location("contract_of_defenses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_found_by_its_file_name_and_its_options_are_checked(kind: Any) -> None:
    assert "ascent" in plugins.available("defenses")
    assert plugins.check("defenses", "ascent", {"weight": 0.5}) == []
    ((option, _),) = plugins.check("defenses", "ascent", {"wieght": 0.5})
    assert option == "wieght"
    assert kind(weight=0.5).identity()["weight"] == 0.5


def test_it_keeps_the_contract_of_defenses(
    kind: Any, tiny_model: Backbone, malicious: Examples, safe: Examples, journal: Any,
    tmp_path: Path, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    contract().test_keeps_the_contract(
        kind(**SHORT), tiny_model, malicious, safe, journal, tmp_path, killed_journal
    )


def test_it_raises_the_loss_on_d_m(
    kind: Any, tiny_model: Backbone, malicious: Examples, safe: Examples, journal: Any
) -> None:
    defense = kind(max_train_steps=20, train_batch_size=2, learning_rate=1e-2, weight=1, margin=9)
    model = defense.immunize(tiny_model, [malicious], safe, seeds=Seeds(0), report=journal)

    def loss(of: Backbone) -> float:
        generator = Seeds(1).generator("test", 0)
        batch = malicious.batch(8, generator)
        noise, times = of.draw(8, generator)
        with torch.no_grad():
            return of.denoising_loss(batch.latents, batch.conditioning, times, noise).mean().item()

    assert loss(model) > 1.05 * loss(tiny_model)
