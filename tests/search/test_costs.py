"""What a search will cost and has cost: by records, by a calibration, against cold runs and a budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny import make_encoders, tiny_study

from gift_ray.config.schema import ModelConfig
from gift_ray.records.record import read_record
from gift_ray.records.trials import Trial
from gift_ray.search import calibration, costs
from gift_ray.search.calibration import calibrate, key
from gift_ray.study.execute import execute
from gift_ray.study.plan import Plan, plan
from gift_ray.study.step import Step, Work, closure


@pytest.fixture
def layout(tiny_config: ModelConfig, tmp_path: Path) -> Plan:
    gift = {"name": "gift", "max_train_steps": 8, "train_batch_size": 2}
    config = tiny_study(
        name="costly",
        output_dir=str(tmp_path),
        model=tiny_config.model_dump(),
        defense={"name": "chain", "defenses": [gift, {**gift, "max_train_steps": 12}]},
        attacks=[{"name": "dreambooth", "max_train_steps": 9, "num_evaluations": 3}],
        evaluation={
            "metrics": [{"name": "clip_text"}, {"name": "clip_image"}, {"name": "kid"}],
            "encoders": make_encoders(tmp_path / "encoders"),
        },
        scoring={"judges": ["clip_image"], "least_auc": 0, "least_rise": 0},
        search={"num_samples": 4, "space": {"defense.defenses.0.beta": {"low": 0.1, "high": 1}}},
    )
    return plan(config)


@pytest.fixture
def step(layout: Plan) -> Callable[[str], Step]:
    """A step of the defended arm by its kind."""
    (arm,) = layout.defended
    return lambda kind: next(s for s in arm.steps() if s.kind == kind)


def test_work_is_known_before_it_is_done(layout: Plan, step: Callable[[str], Step]) -> None:
    (attacked,) = layout.defended[0].attacks.values()
    assert step("immunize").work() == Work(training_steps=20)
    assert step("attack").work() == Work(training_steps=9, drawn=3 * 2)
    assert step("sample").work() == Work(drawn=2 * 2)
    assert attacked.work() == Work(measured=3 * 2)


def test_what_is_done_costs_what_it_took_and_its_like_as_much(
    layout: Plan, step: Callable[[str], Step]
) -> None:
    study_dir = layout.config.study_dir
    drawn = layout.undefended.samples["safe"].inputs["images"]
    for one in closure([drawn]):
        execute(one, study_dir)
    took = read_record(drawn.folder(study_dir)).provenance
    assert took["seconds"] > 0
    assert took["cpu_seconds"] > 0
    # This process has torch loaded.
    assert took["peak_memory_bytes"] > 100 * 2**20

    for known in (drawn, step("sample")):
        found = costs.estimate([known], study_dir, None)
        assert found == costs.Estimate(took["seconds"], took["peak_memory_bytes"], 1, 0)
    assert costs.estimate([step("immunize")], study_dir, None).unknown == 1


def test_a_calibration_computes_with_as_many_threads_as_a_unit(
    layout: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def draw(*arguments: Any) -> list[Image.Image]:
        asked.append(torch.get_num_threads())
        return real_draw(*arguments)

    real_draw = calibration.draw
    monkeypatch.setattr(calibration, "draw", draw)
    before = torch.get_num_threads()
    cluster = layout.config.cluster.model_copy(update={"cpus_per_unit": before + 1.0})
    calibrate(layout.config.model_copy(update={"cluster": cluster}), [])
    assert asked == [before + 1]
    assert torch.get_num_threads() == before


def test_a_calibration_times_every_part_and_the_account_holds_it_to_it(layout: Plan) -> None:
    arm, study_dir = layout.defended[0], layout.config.study_dir
    shared = {s.fingerprint for s in layout.shared()}
    each = [s for s in arm.steps() if s.fingerprint not in shared]
    trained = costs.trained_plugins(each)
    assert len(trained) == 3, "both members of the chain, and the attack"
    rates = calibrate(layout.config, trained)
    assert set(rates.training) == {key(plugin) for plugin in trained}
    assert min(*rates.training.values(), rates.draw, rates.measure) > 0

    attack = [step for step in each if step.kind == "attack"]
    lines = costs.forecast(layout, each, attack, "f")
    assert "each trial: 29 training steps, 10 images" in "\n".join(lines)
    assert "confirming: 9 training steps, 6 images" in "\n".join(lines)
    assert "a calibration on cpu" in lines[-1]
    kept = json.loads((study_dir / costs.ESTIMATE).read_text())

    trials = [
        Trial(str(i), {}, 0, 0, 0, True, "", [], number=i, state=state, seconds=seconds)
        for i, (state, seconds) in enumerate([("complete", 60.0), ("pruned", 30.0)])
    ]
    cost, estimated, budget = costs.account(layout, "f", trials)
    assert "1.5 unit-minutes, 0.0 of them once, for 2 trials, 1 to their end" in cost
    assert "0.75 of as many cold runs" in cost
    guess = (kept["once"] + 2 * kept["each"]) / 90
    assert f"{guess:.2f} of the cost" in estimated
    assert "after 2 of 4 trials" in budget
    assert len(costs.account(layout, "another study", [*trials, *trials])) == 1
