"""Defenses side by side: a whole small benchmark in this process, and its tables."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny import make_encoders

from gift_ray import plugins
from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.records.record import write_json_atomic, write_step
from gift_ray.report.collect import collect
from gift_ray.report.curves import unit_recoveries
from gift_ray.report.eval_unlearn import write_reports
from gift_ray.report.outline import write_comparison
from gift_ray.report.series import attack_series
from gift_ray.report.summary import summarize_comparison
from gift_ray.study.execute import execute
from gift_ray.study.step import Step, closure
from gift_ray.verdict import comparison
from gift_ray.verdict.scorecard import scores

GIFT = {"name": "gift", "max_train_steps": 4, "train_batch_size": 2}
IMMA = {"name": "imma", "max_train_steps": 4, "train_batch_size": 2}


def concept(name: str, match: str) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"name": "openmoji", "match": match, "caption": f"an emoji of a {name}"},
        "validation_prompts": [f"an emoji of a {name}"],
    }


@pytest.fixture(scope="module")
def config(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "tiny",
            "output_dir": str(tmp_path_factory.mktemp("runs")),
            "seeds": [0, 1],
            "model": {"pretrained_model_name_or_path": str(tiny_folder)},
            "concepts": {
                "malicious": [concept("cat", "^CAT( FACE)?$"), concept("dog", "DOG FACE|WOLF|FOX")],
            },
            "prior": {"source": {"name": "openmoji", "match": "^(SUN|MOON)", "caption": "a sky"}},
            "defense": GIFT,
            "rivals": [{"name": "chain", "defenses": [IMMA, GIFT]}],
            "attacks": [{"name": "dreambooth", "max_train_steps": 8, "learning_rate": 3e-3}],
            "evaluation": {
                "metrics": [
                    {"name": n} for n in ("clip_text", "clip_image", "lpips", "degenerate")
                ],
                "encoders": make_encoders(tmp_path_factory.mktemp("encoders")),
                "safe_prompts": ["a house", "zzzz"],
                "num_images_per_prompt": 2,
                "num_inference_steps": 2,
            },
            "scoring": {"similarities": ["lpips"], "min_retention": 0.0},
        },
        context={"check": plugins.check},
    )


@pytest.fixture(scope="module")
def plans(config: StudyConfig) -> dict[str, Any]:
    plans = comparison.layouts(config)
    for step in closure([step for layout in plans.values() for step in layout.steps()]):
        execute(step, config.study_dir)
    return plans


def test_arms_are_named_for_people(plans: dict[str, Any]) -> None:
    assert list(plans) == ["undefended", "gift", "imma + gift"]
    labelled = DefenseConfig(name="gift", label="max only", beta=0)
    assert labelled.title == "max only"


def test_two_uses_of_one_defense_keep_their_own_names(config: StudyConfig) -> None:
    twice = config.model_copy(update={"rivals": (DefenseConfig(name="gift", beta=0.3),)})
    assert list(comparison.layouts(twice)) == ["undefended", "gift", "gift #2"]


def test_what_no_defense_changes_is_shared(plans: dict[str, Any]) -> None:
    shared = [{s.fingerprint for s in layout.shared()} for layout in plans.values()]
    assert shared[1] == shared[2]


def test_a_row_for_each_unit_and_nothing_resists_undefended(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    rows = comparison.units(plans, config.study_dir)
    assert len(rows) == 3 * 2 * 2  # arms, concepts, seeds
    undefended = rows[rows["arm"] == "undefended"]
    np.testing.assert_allclose(undefended["resistance"], 0, atol=1e-12)
    np.testing.assert_allclose(undefended["sgr"], 0, atol=1e-12)
    assert undefended["steps_to_recovery"].notna().all()
    np.testing.assert_allclose(
        rows[["recovered", "memorised", "degraded", "unrelated"]].sum(axis=1), 1
    )
    assert rows["resistance"].between(0, 1).all()
    np.testing.assert_allclose(undefended["best_of_n"], 0, atol=1e-12)


def test_best_of_n_keeps_one_image_of_each_prompt(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    rows = comparison.units(plans, config.study_dir).set_index(["arm", "concept", "seed"])
    layout = plans["gift"]
    for arm in layout.defended:
        for (concept, attack, seed), step in arm.attacks.items():
            ours = _best_by_hand(step, config)
            base = _best_by_hand(layout.undefended.attacks[concept, attack, seed], config)
            chance = _best_by_hand(layout.chance_similarity[concept], config)[0]
            most = max((v - chance) / (max(base.values()) - chance) for v in ours.values())
            expected = 1 - min(1, max(0, most))
            assert rows["best_of_n"]["gift", concept, seed] == pytest.approx(expected)


def _best_by_hand(step: Step, config: StudyConfig) -> dict[int, float]:
    """attack step -> mean over prompts of the larger of the two images' lpips."""
    found: dict[int, list[float]] = {}
    table = scores(step, config.study_dir).to_dict("records")
    for one, other in zip(table[::2], table[1::2], strict=True):
        assert one["step"] == other["step"]
        found.setdefault(one["step"], []).append(max(one["lpips"], other["lpips"]))
    return {k: sum(v) / len(v) for k, v in found.items()}


def test_standings_average_concepts_and_keep_the_worst(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    rows, kept = (f(plans, config.study_dir) for f in (comparison.units, comparison.probes))
    table = comparison.standings(rows, kept, seed=0)
    assert len(table) == 3
    for line in table.itertuples():
        mine = rows[(rows["arm"] == line.arm) & (rows["attack"] == line.attack)]
        expected = mine.groupby("concept")["resistance"].mean().mean()
        assert line.resistance == pytest.approx(expected)
        assert line.worst == mine["resistance"].min()
        assert line.low <= line.resistance <= line.high
        assert (line.concepts, line.n) == (2, 4)
        assert line.retention == pytest.approx(kept[kept["arm"] == line.arm]["retention"].mean())

    gaps = comparison.differences(rows, kept, "gift", seed=0)
    assert list(gaps["arms"]) == ["gift - undefended", "gift - imma + gift"]
    means = rows.groupby(["arm", "concept"])["resistance"].mean().groupby("arm").mean()
    assert gaps["resistance"][1] == pytest.approx(means["gift"] - means["imma + gift"])


def test_costs_count_what_each_immunization_took(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    table = comparison.costs(plans, config.study_dir)
    assert table["images_seen"]["undefended"] == 0
    assert table["images_seen"]["gift"] == 8
    assert table["images_seen"]["imma + gift"] == 16
    # This process has torch and a model loaded.
    assert (table["peak_memory_mib"] > 100).all()


def test_tables_and_figures_come_in_every_form(
    config: StudyConfig, plans: dict[str, Any], tmp_path: Path
) -> None:
    curves = comparison.points(plans, config.study_dir)
    assert set(curves["metric"]) == {"clip_text", "clip_image", "lpips", "degenerate"}
    assert (curves["n"] + curves["unscored"] == 2).all()
    table = pd.DataFrame({"arm": ["a_b"], "value": [0.12345]})
    assert "0.123" in comparison.as_text(table, "md")
    assert comparison.as_text(table, "csv") == "arm,value\na_b,0.12345\n"
    assert r"a\_b" in comparison.as_text(table, "tex")


def test_a_unit_that_proves_nothing_is_set_aside_from_every_arm(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    # A chance level that no attack rises above: the largest value that the metric has.
    perfect = Step("evaluate", "perfect", spec={}, identity={"of": "a copy"})
    curve = {"curves": {"lpips": {"0": {"mean": 1.0}}}}
    folder = perfect.folder(config.study_dir)
    write_step(folder, perfect.full_identity, lambda out: curve, label=perfect.label)
    undefended = plans["undefended"]
    chance = {**undefended.chance_similarity, "cat": perfect}
    found = comparison.set_aside(
        dataclasses.replace(undefended, chance_similarity=chance), config.study_dir
    )
    assert list(found) == [("cat", "dreambooth", 0), ("cat", "dreambooth", 1)]
    assert "never rises above chance" in found["cat", "dreambooth", 0]

    one = {("cat", "dreambooth", 0): "no"}
    rows = comparison.units(comparison.without(plans, one), config.study_dir)
    assert (rows.groupby(["arm", "concept"])["seed"].count().unstack() == [1, 2]).all(axis=None)
    rows = comparison.units(comparison.without(plans, found), config.study_dir)
    assert set(rows["concept"]) == {"dog"}


def test_a_defense_that_can_not_be_trained_leaves_the_others(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    cats, dogs = (arm.immunize.fingerprint for arm in plans["gift"].defended)
    left = comparison.without(plans, failed={cats: "L_max not finite"})
    rows, kept = (f(left, config.study_dir) for f in (comparison.units, comparison.probes))
    assert set(rows[rows["arm"] == "gift"]["concept"]) == {"dog"}
    assert set(rows[rows["arm"] == "imma + gift"]["concept"]) == {"cat", "dog"}
    gaps = comparison.differences(rows, kept, "gift", seed=0).set_index("arms")
    assert gaps["n"]["gift - imma + gift"] == 2  # the dog's seeds

    both = {cats: "L_max not finite", dogs: "L_max not finite"}
    assert list(comparison.without(plans, failed=both)) == ["undefended", "imma + gift"]


def test_nothing_left_to_compare_is_said(plans: dict[str, Any]) -> None:
    units = {key: f"{key[1]} on {key[0]}: no" for key in plans["undefended"].undefended.attacks}
    with pytest.raises(ConfigError, match="dreambooth on cat: no"):
        comparison.without(plans, units)


def test_eval_unlearn_reports_carry_the_worst_case(
    config: StudyConfig, plans: dict[str, Any], tmp_path: Path
) -> None:
    rows, kept = (f(plans, config.study_dir) for f in (comparison.units, comparison.probes))
    concepts_of = {"cat": ("cat",), "dog": ("dog",)}
    written = write_reports(rows, kept, concepts_of, {"name": "tiny"}, 1.5, tmp_path)
    assert len(written) == 3 * 2  # arms, concepts
    (path,) = [
        path for path in written if path.name.startswith("imma _ gift-") and "dog" in path.name
    ]
    report = json.loads(path.read_text())
    mine = rows[(rows["arm"] == "imma + gift") & (rows["concept"] == "dog")]
    assert report["technique_name"] == "imma + gift"
    assert report["erase_concept"] == "dog"
    assert report["metric_result"]["value"] == mine["resistance"].min()
    details = report["metric_result"]["details"]
    probes = kept[(kept["arm"] == "imma + gift") & (kept["model"] == "dog")]["retention"]
    assert (details["retention"], details["worst_retention"]) == (probes.mean(), probes.min())
    assert [u["seed"] for u in details["units"]] == [0, 1]


def test_the_report_reads_the_same_units_from_the_folder(
    config: StudyConfig, plans: dict[str, Any]
) -> None:
    folder = config.study_dir / "benchmark"
    fingerprint = write_comparison(config, plans, folder)
    assert not collect(folder).finished
    rows = comparison.units(plans, config.study_dir)
    summary = summarize_comparison(plans, fingerprint, {"units": rows})
    write_json_atomic(folder / "summary.json", summary)

    study = collect(folder)
    assert study.finished
    assert study.problems == []
    assert study.rivals == tuple(plans)[1:]
    assert list(study.tables["units"]) == list(rows)
    read = unit_recoveries(study.curves)
    groups = {arm.key: arm.group for arm in study.arms}
    ours = {(groups[r.arm], r.concept, r.attack, r.seed): 1 - r.recovery for r in read.itertuples()}
    for row in rows.itertuples():
        assert ours[row.arm, row.concept, row.attack, row.seed] == pytest.approx(row.resistance)

    # What had to be left out is named on the page too.
    write_comparison(config, plans, folder, ["lora on cat proves nothing"])
    assert ("unusable", "lora on cat proves nothing") in [
        (problem.kind, problem.why) for problem in collect(folder).problems
    ]


def test_an_attack_is_a_series_of_pictures_of_its_first_seed(plans: dict[str, Any]) -> None:
    layout = plans["gift"]
    arm = layout.defended[0]
    series = [(name, step, image.size) for name, step, image in attack_series(layout, arm)]
    # Two images of 16 px side by side, at every step at which the attack is looked at.
    assert {name for name, _, _ in series} == {"dreambooth/cat"}
    assert {size for _, _, size in series} == {(32, 16)}
    scores = pd.read_parquet(
        arm.attacks["cat", "dreambooth", 0].folder(layout.config.study_dir) / "scores.parquet"
    )
    assert [step for _, step, _ in series] == sorted(set(scores["step"]))
    report = layout.config.report.model_copy(update={"images": "none"})
    hidden = dataclasses.replace(layout, config=layout.config.model_copy(update={"report": report}))
    assert list(attack_series(hidden, arm)) == []
