"""A study as steps: what each one's identity depends on, and a whole study run in this process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from tiny import make_encoders, make_pipeline

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.data.examples import load_images
from gift_ray.errors import ConfigError, DataError
from gift_ray.records.record import is_done, read_record
from gift_ray.search.sampler import evaluate, rungs
from gift_ray.study.execute import execute
from gift_ray.study.immunization import before_added
from gift_ray.study.load import check_data, configure, load_study
from gift_ray.study.plan import Plan, plan
from gift_ray.study.protocol import protocol_id, verdict_id
from gift_ray.study.step import Step, closure
from gift_ray.study.steps.evaluate_images import EvaluateImages
from gift_ray.study.steps.immunize_model import ImmunizeModel
from gift_ray.study.steps.sample_images import SampleImages
from gift_ray.verdict.scorecard import curves, labelled_scores, outlook, scorecard, scores
from gift_ray.verdict.yardstick import Yardstick


def concept(name: str, match: str) -> dict[str, Any]:
    return {
        "name": name,
        "source": {"name": "openmoji", "match": match, "caption": f"an emoji of a {name}"},
        "validation_prompts": [f"an emoji of a {name}"],
    }


@pytest.fixture(scope="module")
def raw(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A study of few steps. Random weights and encoders learn nothing that means anything: five
    evaluation steps give every concept one that lies above its chance level."""
    return {
        "name": "tiny",
        "model": {"pretrained_model_name_or_path": str(tiny_folder)},
        "concepts": {
            "malicious": [concept("cat", "^CAT( FACE)?$"), concept("dog", "DOG FACE|WOLF|FOX")],
            "safe": [concept("tree", "^(EVERGREEN|DECIDUOUS) TREE$")],
        },
        "prior": {"source": {"name": "openmoji", "match": "^(SUN|MOON)", "caption": "a sky"}},
        "defense": {"name": "gift", "max_train_steps": 4, "train_batch_size": 2},
        "attacks": [
            {
                "name": "dreambooth", "max_train_steps": 8, "learning_rate": 3e-3,
                "num_evaluations": 5,
            }
        ],
        "evaluation": {
            "metrics": [
                {"name": name} for name in ("clip_text", "clip_image", "lpips", "degenerate", "kid")
            ],
            "encoders": make_encoders(tmp_path_factory.mktemp("encoders")),
            "safe_prompts": ["a house", "zzzz"],
            "num_images_per_prompt": 2,
            "num_inference_steps": 2,
        },
        "scoring": {"judges": ["clip_image"], "least_auc": 0, "least_rise": 0, "min_retention": 0.0},
    }  # fmt: skip


def study(raw: dict[str, Any], **changes: Any) -> StudyConfig:
    """The study with some dotted paths set."""
    config = StudyConfig.model_validate(copy.deepcopy(raw), context={"check": plugins.check})
    return configure(config, {path.replace("__", "."): value for path, value in changes.items()})


def changed(before: Plan, after: Plan) -> set[str]:
    """Labels of the steps that the second plan has and the first one hasn't."""
    known = {step.fingerprint for step in before.steps()}
    return {step.label for step in after.steps() if step.fingerprint not in known}


def kinds(before: Plan, after: Plan) -> set[str]:
    known = {step.fingerprint for step in before.steps()}
    return {step.kind for step in after.steps() if step.fingerprint not in known}


def test_beta_changes_immunize_and_what_follows_and_nothing_before(raw: dict[str, Any]) -> None:
    before, after = plan(study(raw)), plan(study(raw, defense__beta=0.7))
    assert kinds(before, after) == {"immunize", "attack", "sample", "evaluate"}
    again = {step.fingerprint for step in before.steps()} & {s.fingerprint for s in after.steps()}
    assert again == {step.fingerprint for step in before.shared()}
    assert [s.fingerprint for s in before.shared()] == [s.fingerprint for s in after.shared()]


def test_only_what_trains_is_marked_so(raw: dict[str, Any]) -> None:
    layout = plan(study(raw))
    assert not layout.undefended.immunize.trains
    training = {step.kind for step in layout.steps() if step.trains}
    assert training == {"immunize", "attack"}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("attacks__0__learning_rate", 1e-4, {"attack", "evaluate"}),
        ("evaluation__num_inference_steps", 3, {"attack", "sample", "evaluate", "judge"}),
        ("evaluation__metrics", [{"name": "clip_text"}, {"name": "clip_image"}, {"name": "dino"}],
         {"evaluate", "evaluate_references", "judge"}),
        ("evaluation__protocol", "imma_legacy", {"evaluate", "evaluate_references", "judge"}),
            # What D_S may not show is read by the defense too.
            ("concepts__malicious__0__recognized_as", ["cat", "tiger"],
             {"immunize", "attack", "sample", "evaluate", "judge"}),
        ("concepts__safe__0__validation_prompts", ["a palm"], {"attack", "evaluate"}),
        ("seeds", [1], {"attack", "evaluate"}),
        ("evaluation__seed", 9, {"sample", "evaluate", "judge"}),
        ("concepts__safe__0__instance_prompt", "a sks tree",
         {"prepare_concept", "attack", "evaluate", "evaluate_references", "judge"}),
    ],
)  # fmt: skip
def test_an_option_changes_only_what_reads_it(
    path: str, value: Any, expected: set[str], raw: dict[str, Any]
) -> None:
    assert kinds(plan(study(raw)), plan(study(raw, **{path: value}))) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("output_dir", "/elsewhere"),
        ("name", "other"),
        ("cluster__cpus_per_unit", 2),
        ("cluster__checkpoint_every", 7),
        ("cluster__workers_per_immunization", 2),
        ("evaluation__batch_size", 3),
        ("scoring__objective", "chebyshev"),
        ("gate__min_resistance", 0.5),
        ("confirm", {"seeds": [9], "attacks": [{"name": "lora"}]}),
        ("model__gradient_checkpointing", True),
    ],
)
def test_where_and_how_it_runs_is_not_identity(path: str, value: Any, raw: dict[str, Any]) -> None:
    assert changed(plan(study(raw)), plan(study(raw, **{path: value}))) == set()


def test_another_base_is_another_undefended_model(raw: dict[str, Any], tmp_path: Path) -> None:
    make_pipeline(tmp_path / "other", seed=1)
    before = plan(study(raw)).undefended
    after = plan(
        study(raw, model__pretrained_model_name_or_path=str(tmp_path / "other"))
    ).undefended
    assert before.immunize.fingerprint != after.immunize.fingerprint
    known = {step.fingerprint for step in before.steps()}
    assert not [step.label for step in after.steps() if step.fingerprint in known]


def test_other_safe_images_change_what_is_trained_and_nothing_undefended(
    raw: dict[str, Any],
) -> None:
    wolf = {"name": "openmoji", "match": "^(WOLF|FOX)( FACE)?$", "caption": "a wolf"}
    before, after = plan(study(raw)), plan(study(raw, prior__source=wolf))
    assert kinds(before, after) == {"prepare_prior", "immunize", "attack", "sample", "evaluate"}
    undefended = [[s.fingerprint for s in layout.undefended.steps()] for layout in (before, after)]
    assert undefended[0] == undefended[1]


def test_the_place_of_a_folder_is_not_identity_but_its_content_is(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    def planned(folder: Path) -> Plan:
        source = {"name": "folder", "path": str(folder), "caption": "a sky"}
        return plan(study(raw, prior__source=source))

    for name, text in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_text(text)
    one, two, three = (planned(tmp_path / name) for name in ("one", "two", "three"))
    assert changed(one, two) == set()
    assert "prepare D_S" in changed(one, three)


def test_one_undefended_model_serves_every_concept(raw: dict[str, Any]) -> None:
    layout = plan(study(raw))
    assert len(layout.defended) == 2
    assert sum(step.label == "undefended" for step in layout.steps()) == 1
    other = plan(study(raw, concepts__malicious__1__class_prompt="a hound"))
    assert other.undefended.immunize.fingerprint == layout.undefended.immunize.fingerprint
    cat = next(key for key in layout.undefended.attacks if key[0] == "cat")
    assert other.undefended.attacks[cat].fingerprint == layout.undefended.attacks[cat].fingerprint


def test_a_study_of_no_defense_is_the_undefended_arm(raw: dict[str, Any]) -> None:
    layout = plan(study(raw, defense={"name": "none"}))
    assert {arm.immunize.fingerprint for arm in layout.defended} == {
        layout.undefended.immunize.fingerprint
    }


def test_joint_mode_makes_one_model_against_all_concepts(raw: dict[str, Any]) -> None:
    (arm,) = plan(study(raw, concepts__mode="joint")).defended
    assert arm.malicious == ("cat", "dog")
    assert {name for name in arm.immunize.inputs if "/" in name} == {"concept/cat", "concept/dog"}


def test_merge_mode_merges_the_models_of_per_concept_mode(raw: dict[str, Any]) -> None:
    alone = [arm.immunize for arm in plan(study(raw)).defended]
    layout = plan(study(raw, concepts__mode="merge"))
    (arm,) = layout.defended
    assert arm.immunize.kind == "merge"
    models = [arm.immunize.inputs[f"model/{name}"] for name in ("cat", "dog")]
    assert [m.fingerprint for m in models] == [a.fingerprint for a in alone]
    assert arm.malicious == ("cat", "dog")
    assert {key[0] for key in arm.attacks} == {"cat", "dog", "tree"}
    # A search must not take the models for what all trials share.
    assert {s.kind for s in layout.shared()} == {s.kind for s in plan(study(raw)).shared()}
    assert not {m.fingerprint for m in models} & {s.fingerprint for s in layout.shared()}


def test_a_merged_model_is_polished_by_a_short_defense_that_starts_from_it(
    raw: dict[str, Any],
) -> None:
    merge = {"concepts__mode": "merge"}
    (merged,) = plan(study(raw, **merge)).defended
    (polished,) = plan(study(raw, **merge, concepts__merge__polish_steps=2)).defended
    assert polished.immunize.kind == "immunize"
    assert polished.immunize.inputs["model"].fingerprint == merged.immunize.fingerprint
    assert polished.immunize.work().training_steps == 2
    assert isinstance(polished.immunize, ImmunizeModel)
    assert polished.immunize.concepts == ("cat", "dog")
    (ridged,) = plan(study(raw, **merge, concepts__merge__ridge=0.1)).defended
    assert ridged.immunize.fingerprint != merged.immunize.fingerprint


@pytest.mark.parametrize(
    "defense", [{"name": "none"}, {"name": "chain", "defenses": [{"name": "gift"}]}]
)
def test_only_a_defense_of_steps_can_polish(
    defense: dict[str, Any], raw: dict[str, Any], tmp_path: Path
) -> None:
    merge = {"mode": "merge", "merge": {"polish_steps": 2}}
    bad = raw | {"defense": defense, "concepts": raw["concepts"] | merge}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(bad))
    with pytest.raises(ConfigError, match=r"polish_steps: .* has no max_train_steps to set to 2"):
        load_study(tmp_path / "study.yaml", [])


def test_an_added_concept_continues_from_the_joint_model_of_the_others(raw: dict[str, Any]) -> None:
    three = [*raw["concepts"]["malicious"], concept("bear", "^(BEAR|PANDA)$")]
    changes = {"concepts__mode": "joint", "concepts__malicious": three}
    config = study(raw, **changes, concepts__added=["bear"], concepts__added_steps=2)
    (arm,) = plan(config).defended
    assert arm.malicious == ("cat", "dog", "bear")
    assert isinstance(arm.immunize, ImmunizeModel)
    assert arm.immunize.concepts == ("cat", "dog", "bear")
    assert arm.immunize.work().training_steps == 2
    (earlier,) = plan(before_added(config)).defended
    (joint,) = plan(study(raw, concepts__mode="joint")).defended
    given = arm.immunize.inputs["model"]
    assert given.fingerprint == earlier.immunize.fingerprint == joint.immunize.fingerprint
    (anew,) = plan(study(raw, **changes)).defended
    assert anew.immunize.fingerprint != arm.immunize.fingerprint


@pytest.mark.parametrize(
    ("mode", "added"), [("merge", ["dog"]), ("joint", ["cat", "dog"]), ("joint", ["cow"])]
)
def test_what_is_added_must_have_something_to_continue_from(
    mode: str, added: list[str], raw: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="needs mode joint, and some but not all"):
        study(raw, concepts__mode=mode, concepts__added=added)


def test_a_matrix_attacks_every_model_with_every_concept(raw: dict[str, Any]) -> None:
    neighbors = {"concepts__malicious__1__neighbors": ["a wolf", "a fox"]}
    before, after = plan(study(raw, **neighbors)), plan(study(raw, **neighbors), matrix=True)
    for arm, other in zip(before.defended, after.defended, strict=True):
        assert {key[0] for key in arm.attacks} == {*arm.malicious, "tree"}
        assert {key[0] for key in other.attacks} == {"cat", "dog", "tree"}
        assert other.malicious == arm.malicious
        assert set(other.samples) == {"safe", "neighbors/dog"}
    known = {step.fingerprint for step in after.steps()}
    assert all(step.fingerprint in known for step in before.steps())


def test_the_same_attack_with_other_options_is_another_attack(raw: dict[str, Any]) -> None:
    attacks = [*raw["attacks"], raw["attacks"][0] | {"learning_rate": 1e-4}]
    (arm, _) = plan(study(raw, attacks=attacks)).defended
    assert len({step.fingerprint for step in arm.attacks.values()}) == 2 * 2
    assert {key[1] for key in arm.attacks} == {"dreambooth", "dreambooth-2"}


def test_every_step_stands_after_what_it_reads(raw: dict[str, Any]) -> None:
    seen: set[str] = set()
    for step in plan(study(raw)).steps():
        assert all(other.fingerprint in seen for other in step.inputs.values())
        assert step.fingerprint not in seen
        seen.add(step.fingerprint)


def test_all_bad_data_is_told_before_anything_runs(raw: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("not an image")
    bad = {"name": "folder", "path": str(tmp_path), "caption": "x"}
    config = study(raw, prior__source=bad, concepts__malicious__0__source=bad,
                   concepts__safe__0__source__match="^EVERGREEN TREE$")  # fmt: skip
    with pytest.raises(DataError) as error:
        check_data(config)
    # The file that the concept and D_S both read is named once.
    unreadable, too_few = error.value.mistakes
    assert "bad.png" in unreadable
    assert "'tree' has 1 image" in too_few
    check_data(study(raw))


def run(steps: list[Step], study_dir: Path) -> None:
    for step in steps:
        execute(step, study_dir, checkpoint_every=3)


@pytest.fixture(scope="module")
def finished(raw: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    study_dir = tmp_path_factory.mktemp("study")
    layout = plan(study(raw))
    run(layout.steps(), study_dir)
    return layout, study_dir


def test_the_undefended_arm_does_not_resist_and_keeps_everything(
    finished: tuple[Plan, Path],
) -> None:
    layout, study_dir = finished
    card = scorecard(Yardstick.of(layout, study_dir), layout.undefended)
    assert card.resistance == pytest.approx(0)
    assert card.retention == pytest.approx(1)
    assert card.objective == pytest.approx(0)
    assert card.concepts.keys() == {"cat", "dog"}
    assert card.probes.keys() == {"finetune/tree/dreambooth", "generation/safe"}
    assert card.reported == {"kid/safe": pytest.approx(0, abs=1e-6)}, (
        "it is the set it is held against"
    )


def test_a_defended_arm_gets_a_scorecard(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    for arm, name in zip(layout.defended, ("cat", "dog"), strict=True):
        card = scorecard(Yardstick.of(layout, study_dir), arm)
        assert card.concepts.keys() == {name}
        assert card.reported["kid/safe"] != 0
        (curve,) = card.concepts[name].curves.values()
        assert list(curve) == [0, 1, 2, 4, 8]
        assert card.resistance == pytest.approx(1 - max(curve.values()))
        assert card.retention == pytest.approx(sum(card.probes.values()) / len(card.probes))


def test_what_a_model_can_still_become_only_falls_to_its_verdict(
    finished: tuple[Plan, Path],
) -> None:
    layout, study_dir = finished
    for arm in layout.defended:
        keys = list(arm.attacks)
        seen = [
            outlook(Yardstick.of(layout, study_dir), arm, keys[:n]) for n in range(len(keys) + 1)
        ]
        card = scorecard(Yardstick.of(layout, study_dir), arm)
        assert seen[0].resistance == 1, "no attack has been seen"
        for name in ("objective", "resistance", "retention"):
            column = [getattr(standing, name) for standing in seen]
            assert column == sorted(column, reverse=True)
            assert column[-1] == getattr(card, name)
        assert seen[0].retention > card.retention


def test_rungs_are_everything_once_from_cheap_to_dear(raw: dict[str, Any]) -> None:
    attacks = [{**raw["attacks"][0], "max_train_steps": steps} for steps in (8, 4)]
    space = {"defense.beta": {"low": 0.1, "high": 1}}
    layout = plan(study(raw, attacks=attacks, search={"space": space, "pruner": "bound"}))
    ladder = rungs(layout)
    assert [keys for _, keys in ladder] == [
        [],
        *([(concept, attack, 0)] for attack in ("dreambooth-2", "dreambooth")
          for concept in ("cat", "dog", "tree")),
    ]  # fmt: skip
    done = [step.fingerprint for steps, _ in ladder for step in steps]
    arms = layout.defended
    wanted = [s for arm in arms for s in (*arm.samples.values(), *arm.attacks.values())]
    assert sorted(done) == sorted(step.fingerprint for step in wanted)
    # Nothing is compared without a pruner: then all attacks run at the same time.
    assert len(rungs(plan(study(raw, search={"space": space})))) == 2


def test_a_destroyed_model_is_found_before_it_is_attacked(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    # At this rate nothing is left of the one safe prompt group that is drawn: at best half of retention.
    config = study(raw, output_dir=str(tmp_path), defense__alpha_outer=0.1, scoring__min_retention=0.6,
                   concepts__malicious=[concept("cat", "^CAT( FACE)?$")])  # fmt: skip
    layout, study_dir = plan(config), config.study_dir
    run(closure([*layout.undefended.samples.values(), *layout.chance_prompt.values()]), study_dir)
    (outcome,) = evaluate(config, {}, lambda steps: run(closure(steps), study_dir))
    assert outcome.state == "infeasible"
    assert outcome.reason == "cat: retention 0.500 is under 0.6"
    (arm,) = layout.defended
    assert is_done(arm.immunize.folder(study_dir))
    assert not any(is_done(s.inputs["images"].folder(study_dir)) for s in arm.attacks.values())


def test_doing_a_study_twice_computes_nothing(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished

    def state() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in study_dir.rglob("*") if p.is_file()}

    before = state()
    run(layout.steps(), study_dir)
    assert state() == before
    assert list((study_dir / "checkpoints").iterdir()) == [], "a finished step keeps no checkpoint"


def test_scores_are_kept_for_every_image(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    table = scores(layout.undefended.attacks["cat", "dreambooth", 0], study_dir)
    assert len(table) == 5 * 2  # evaluation steps x images of one prompt
    assert {"step", "index", "prompt", "clip_text", "clip_image"} <= set(table.columns)
    unattacked = scores(layout.undefended.samples["safe"], study_dir)
    assert "clip_image" not in unattacked.columns, "there is no concept to compare with"


def test_a_set_is_measured_only_where_the_base_drew_the_same(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    arm = layout.defended[0]
    measured = {
        "safe": arm.samples["safe"],
        "attack": arm.attacks["cat", "dreambooth", 0],
        "chance": layout.chance_similarity["cat"],
        "chance prompt": layout.chance_prompt["safe"],
    }
    assert {n for n, step in measured.items() if "kid" in curves(step, study_dir)} == {
        "safe", "chance prompt",
    }  # fmt: skip


def test_chance_holds_unrelated_images_against_the_concept_and_its_prompts(
    raw: dict[str, Any],
) -> None:
    two = ["a cat", "a cat on a mat"]
    layout = plan(study(raw, concepts__malicious__0__validation_prompts=two,
                        evaluation__safe_prompts=["a", "b", "c"]))  # fmt: skip
    chance = layout.chance_similarity["cat"]
    assert isinstance(chance, EvaluateImages)
    drawn = chance.inputs["images"]
    assert isinstance(drawn, SampleImages)
    assert drawn.prompts == ("a", "b", "c")
    # Two images a prompt: the concept's prompts in turn, as often as there are images.
    assert chance.asked == (two[0],) * 2 + (two[1],) * 2 + (two[0],) * 2
    rolled = layout.chance_prompt["safe"]
    assert isinstance(rolled, EvaluateImages)
    assert rolled.asked == ("b", "b", "c", "c", "a", "a")


def test_every_attacked_image_gets_a_label(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    key = ("cat", "dreambooth", 0)
    chance = curves(layout.chance_similarity["cat"], study_dir)
    base = curves(layout.undefended.attacks[key], study_dir)
    halfway = {
        metric: (chance[metric][0] + max(chance[metric][0], *base[metric].values())) / 2
        for metric in ("clip_image", "clip_text")
    }
    copy = read_record(layout.references["cat"].folder(study_dir)).result["largest"]["lpips"]

    def label(row: Any) -> str:
        if row.degenerate > 0:
            return "degraded"
        if row.lpips > copy:
            return "memorised"
        shown = all(getattr(row, metric) >= level for metric, level in halfway.items())
        return "recovered" if shown else "unrelated"

    for arm in (layout.undefended, layout.defended[0]):
        table = labelled_scores(Yardstick.of(layout, study_dir), arm, key)
        assert len(table) == len(scores(arm.attacks[key], study_dir))
        assert list(table["label"]) == [label(row) for row in table.itertuples()]


def test_the_line_of_a_copy_is_drawn_between_different_real_images(
    finished: tuple[Plan, Path],
) -> None:
    layout, study_dir = finished
    step = layout.references["dog"]
    table = scores(step, study_dir)
    real = load_images(step.inputs["concept"].folder(study_dir) / "D_A")
    assert len(table) == len(real) > 1
    # A pair of images is as alike from either side; a copy of one would score 1.
    largest = read_record(step.folder(study_dir)).result["largest"]
    assert largest["lpips"] == pytest.approx(table["lpips"].max())
    assert largest["lpips"] < 1 - 1e-3
    assert set(largest) == {"clip_image", "lpips"}


def test_the_protocol_is_what_measures_and_not_what_is_measured(raw: dict[str, Any]) -> None:
    def protocol(**changes: Any) -> str:
        return protocol_id(study(raw, **changes))

    same = {
        protocol(), protocol(defense__beta=0.7), protocol(seed=5), protocol(name="other"),
        protocol(evaluation__batch_size=3), protocol(evaluation__sampler="default"),
        protocol(attacks__0__max_train_steps=9),
    }  # fmt: skip
    assert len(same) == 1
    others = [
        protocol(evaluation__protocol="imma_legacy"),
        protocol(evaluation__encoders__clip="builtin"),
        protocol(evaluation__num_inference_steps=3),
        protocol(evaluation__sampler="dpm++"),
        protocol(evaluation__safe_prompts=["a house", "a boat"]),
        protocol(concepts__malicious__0__validation_prompts=["a cat on a mat"]),
        protocol(evaluation__metrics=raw["evaluation"]["metrics"][:3]),
        protocol(scoring__min_retention=0.9),
    ]
    assert len({*same, *others}) == 1 + len(others)


def test_verdicts_compare_under_the_same_base_images_judges_attacks_and_seeds(
    raw: dict[str, Any],
) -> None:
    def verdict(**changes: Any) -> str:
        return verdict_id(study(raw, **changes))

    assert len({verdict(), verdict(defense__beta=0.7), verdict(name="other")}) == 1
    others = [
        verdict(attacks__0__max_train_steps=9), verdict(attacks=[{"name": "lora"}]),
        verdict(seeds=[1]), verdict(scoring__min_retention=0.9),
        # Another split gives the attacker other images, and another base is another task.
        verdict(seed=5), verdict(concepts__malicious__0__source__match="^CAT"),
        verdict(concepts__malicious__0__max_images=5), verdict(model__mixed_precision="bf16"),
        verdict(concepts__malicious__0__recognized_as=["cat", "tiger"]),
        verdict(scoring__judges=["lpips"]),
    ]  # fmt: skip
    assert len({verdict(), *others}) == 1 + len(others)


def test_the_defender_and_the_attacker_never_share_an_image(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    prepared = [step for step in layout.steps() if step.kind == "prepare_concept"]
    assert len(prepared) == 3
    for step in prepared:
        sides = read_record(step.folder(study_dir)).result
        assert sides["D_M"]
        assert sides["D_A"]
        assert not set(sides["D_M"]) & set(sides["D_A"])


def test_training_leaves_its_log(finished: tuple[Plan, Path]) -> None:
    layout, study_dir = finished
    log = pd.read_parquet(layout.defended[0].immunize.folder(study_dir) / "training.parquet")
    assert list(log["step"]) == [1, 2]
    assert {"L_prior", "L_max", "L_noise", "cosine", "std_ratio", "correlation"} <= set(log.columns)


def test_a_step_whose_input_is_missing_or_damaged_is_not_done(
    raw: dict[str, Any], tmp_path: Path
) -> None:
    immunize = plan(study(raw)).defended[0].immunize
    with pytest.raises(DataError, match="no readable record"):
        execute(immunize, tmp_path)
    prior = immunize.inputs["prior"]
    execute(prior, tmp_path)
    execute(immunize.inputs["concept/cat"], tmp_path)
    (prior.folder(tmp_path) / "D_S.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"D_S\.safetensors: missing or damaged"):
        execute(immunize, tmp_path)
    assert not immunize.folder(tmp_path).exists()


def test_a_verdict_knows_every_attack_of_a_grid(raw: dict[str, Any]) -> None:
    ids = set()
    for rates in ([1e-3], [1e-3, 1e-2]):
        grid = {"name": "dreambooth", "grid": {"learning_rate": rates}}
        ids.add(verdict_id(StudyConfig.model_validate({**raw, "attacks": [grid]})))
    assert len(ids) == 2
