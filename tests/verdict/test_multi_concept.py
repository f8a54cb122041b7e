"""Several concepts in one study, run in this process: three ways, the matrix, the cost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from test_plan import raw, run, study
from torch import Tensor

from gift_ray.records.record import read_record
from gift_ray.study.immunization import before_added
from gift_ray.study.plan import Plan, plan
from gift_ray.verdict.multi_concept import cost, matrix, regressions, standing
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick

__all__ = ["raw"]

ROOT = Path(__file__).parents[2]
ADDED = {"concepts__mode": "joint", "concepts__added": ["dog"], "concepts__added_steps": 2}
POLISHED = {"concepts__mode": "merge", "concepts__merge__polish_steps": 2}
NEIGHBORS = {"concepts__malicious__1__neighbors": ["a house", "zzzz"]}


@pytest.fixture(scope="module")
def finished(
    raw: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Plan], Path]:
    """per_concept with its matrix, a polished merge of the same models, and dogs added to the one
    against cats."""
    study_dir = tmp_path_factory.mktemp("runs") / "tiny"
    place = NEIGHBORS | {"output_dir": str(study_dir.parent)}
    plans = {
        "per_concept": plan(study(raw, **place), matrix=True),
        "merge": plan(study(raw, **place, **POLISHED)),
        "added": plan(study(raw, **place, **ADDED)),
    }
    for layout in plans.values():
        run(layout.steps(), study_dir)
    return plans, study_dir


def test_the_matrix_holds_every_model_against_every_concept(
    finished: tuple[dict[str, Plan], Path],
) -> None:
    plans, study_dir = finished
    layout = plans["per_concept"]
    table = matrix(layout, Yardstick.of(layout, study_dir)).set_index(["model against", "concept"])
    assert len(table) == 2 * 3
    for arm in layout.defended:
        card = scorecard(Yardstick.of(layout, study_dir), arm)
        (name,) = arm.malicious
        # Another's concept is no part of what a model is judged by.
        assert card.concepts.keys() == {name}
        assert table["resistance"][name, name] == pytest.approx(card.resistance)
        assert table["neighbours kept"][name, "dog"] == card.probes["generation/neighbors/dog"]
        tuned = card.probes["finetune/tree/dreambooth"]
        assert table["fine-tuning kept"][name, "tree"] == tuned
    malicious = table[table["resistance"].notna()]
    assert malicious["resistance"].between(0, 1).all()
    assert len(malicious) == 4


def test_the_worst_concept_stands_for_all_models(finished: tuple[dict[str, Plan], Path]) -> None:
    plans, study_dir = finished
    layout = plans["per_concept"]
    cards = [scorecard(Yardstick.of(layout, study_dir), arm) for arm in layout.defended]
    found = standing(layout, Yardstick.of(layout, study_dir))
    assert found["models"] == 2
    assert found["worst resistance"] == min(card.resistance for card in cards)
    assert found["mean resistance"] == pytest.approx(sum(card.resistance for card in cards) / 2)
    assert found["worst model's retention"] == min(card.retention for card in cards)
    merged = plans["merge"]
    (card,) = [scorecard(Yardstick.of(merged, study_dir), arm) for arm in merged.defended]
    found = standing(merged, Yardstick.of(merged, study_dir))
    assert (found["models"], found["worst resistance"]) == (1, card.resistance)
    assert found["retention"] == card.retention


def test_the_cost_counts_what_is_trained_and_what_must_wait(
    finished: tuple[dict[str, Plan], Path],
) -> None:
    plans, study_dir = finished
    alone, merged = (cost(plans[name], study_dir) for name in ("per_concept", "merge"))
    # Two rounds of two batches of two images for each model; one more round to polish.
    assert (alone["units"], alone["images seen"]) == (2, 16)
    assert (merged["units"], merged["images seen"]) == (4, 20)
    models = [arm.immunize for arm in plans["per_concept"].defended]
    seconds = [read_record(m.folder(study_dir)).provenance["seconds"] for m in models]
    assert alone["seconds"] == pytest.approx(sum(seconds))
    assert alone["seconds at once"] == max(seconds)
    later = merged["seconds"] - alone["seconds"]
    assert merged["seconds at once"] == pytest.approx(max(seconds) + later)


def test_polishing_starts_from_the_merged_weights(finished: tuple[dict[str, Plan], Path]) -> None:
    plans, study_dir = finished
    (arm,) = plans["merge"].defended
    merge = arm.immunize.inputs["model"]

    def read(step: Any) -> dict[str, Tensor]:
        return load_file(step.folder(study_dir) / "unet.safetensors")

    merged, polished = read(merge), read(arm.immunize)
    alone = [read(m) for m in (merge.inputs["model/cat"], merge.inputs["model/dog"])]
    name = "conv_in.weight"
    torch.testing.assert_close(merged[name], (alone[0][name] + alone[1][name]) / 2)
    # One inner AdamW step moves each weight by about its rate.
    moved = (polished[name] - merged[name]).abs().max()
    assert 0 < moved < 1e-4
    log = pd.read_parquet(merge.folder(study_dir) / "training.parquet")
    assert {"condition", "missed/0", "missed/1"} <= set(log.columns)


def test_an_added_concept_is_held_against_what_the_earlier_ones_had(
    finished: tuple[dict[str, Plan], Path],
) -> None:
    plans, study_dir = finished
    after = plans["added"]
    before = plan(before_added(after.config))
    # The model against cats alone is that of per_concept mode: all is there already, but for the judges of
    # trees, which were held against dogs too.
    missing = [step for step in before.steps() if not step.folder(study_dir).exists()]
    assert [step.kind for step in missing] == ["judge"]
    run(missing, study_dir)
    table = regressions(Yardstick.of(before, study_dir), Yardstick.of(after, study_dir)).set_index(
        "what"
    )
    assert list(table.index) == ["resistance: cat", "retention"]
    alone = scorecard(
        Yardstick.of(plans["per_concept"], study_dir), plans["per_concept"].defended[0]
    )
    both = scorecard(Yardstick.of(after, study_dir), after.defended[0])
    assert both.concepts.keys() == {"cat", "dog"}
    cat = alone.concepts["cat"].resistance, both.concepts["cat"].resistance
    assert tuple(table.loc["resistance: cat", ["before", "after"]]) == pytest.approx(cat)
    assert table["change"]["resistance: cat"] == pytest.approx(cat[1] - cat[0])
    kept = scorecard(Yardstick.of(before, study_dir), before.defended[0]).retention, both.retention
    assert tuple(table.loc["retention", ["before", "after"]]) == pytest.approx(kept)


@pytest.mark.slow
def test_the_job_says_what_each_way_is_worth_and_leaves_its_models(
    finished: tuple[dict[str, Plan], Path], tmp_path: Path
) -> None:
    """jobs/immunize.py on a real Ray; the units are done, and it must find them done."""
    plans, study_dir = finished
    # The model before the addition has judges of its own.
    before = plan(before_added(plans["added"].config)).steps()
    run([step for step in before if not step.folder(study_dir).exists()], study_dir)
    for name, flags in (("per_concept", ["--matrix"]), ("added", [])):
        layout = plans[name]
        mode = layout.config.concepts.mode
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(layout.config.model_dump(mode="json")))
        done = subprocess.run(
            [sys.executable, "jobs/immunize.py", str(file), *flags],
            cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert " done " not in done.stdout, "a finished unit was computed again"
        summary = json.loads((study_dir / f"immunize-{mode}.json").read_text())
        expected = standing(layout, Yardstick.of(layout, study_dir)) | cost(layout, study_dir)
        assert {key: summary[key] for key in expected} == pytest.approx(expected)
        assert ("regressions" in summary) == (name == "added")
        assert len(summary["matrix"]) == len(matrix(layout, Yardstick.of(layout, study_dir)))
        assert f"{expected['worst resistance']:.3f}" in done.stdout
        for arm, model in zip(layout.defended, summary["released"], strict=True):
            assert list(model["concepts"]) == list(arm.malicious)
            released = DiffusionPipeline.from_pretrained(model["folder"]).unet.state_dict()
            weights = load_file(arm.immunize.folder(study_dir) / "unet.safetensors")
            assert all(torch.equal(released[name], weights[name]) for name in weights)
