"""What can't be judged is refused by its words, before anything runs; what weakens a verdict is said."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import tiny_study

from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.judgeable import check_judging, remarks
from gift_ray.study.measuring import judges, naming_metrics

RESNET = {"name": "recognition", "label": "resnet", "classifier": "builtin"}
CAR = {
    "name": "car",
    "source": {"name": "openmoji", "match": "^TAXI$", "caption": "a car"},
    "validation_prompts": ["a car"],
}


def study(
    metrics: list[dict[str, Any]], concept: dict[str, Any] | None = None, **parts: Any
) -> StudyConfig:
    cat = {
        "name": "cat",
        "source": {"name": "openmoji", "match": "^CAT( FACE)?$", "caption": "a cat"},
        "validation_prompts": ["a cat"],
    } | (concept or {})
    evaluation = {"metrics": metrics, "safe_prompts": ["a house", "a dog"]} | parts.pop(
        "evaluation", {}
    )
    concepts = {"malicious": [cat], "safe": parts.pop("safe", [CAR])}
    return tiny_study(evaluation=evaluation, concepts=concepts, **parts)


def refusal(config: StudyConfig) -> str:
    with pytest.raises(ConfigError) as refused:
        check_judging(config)
    assert len(refused.value.mistakes) == 1
    return refused.value.mistakes[0]


def test_a_study_that_can_be_judged_passes() -> None:
    config = study([{"name": "recognition"}, RESNET, {"name": "kid"}])
    check_judging(config)
    assert list(judges(config)) == ["recognition", "resnet"]


def test_all_measures_that_judge_are_judges_unless_some_are_named() -> None:
    metrics = [{"name": n} for n in ("clip_text", "clip_image", "degenerate", "lpips")]
    assert list(judges(study(metrics))) == ["clip_image", "lpips"]
    assert list(judges(study(metrics, scoring={"judges": ["lpips"]}))) == ["lpips"]


@pytest.mark.parametrize("name", ["clip_text", "degenerate", "kid"])
def test_what_does_not_judge_a_concept_is_no_judge(name: str) -> None:
    metrics = [{"name": n} for n in ("clip_text", "clip_image", "degenerate", "kid")]
    line = refusal(study(metrics, scoring={"judges": ["clip_image", name]}))
    assert line.startswith(f"scoring.judges: '{name}' does not judge")


def test_a_study_without_a_judge_is_refused() -> None:
    assert "add {name: recognition}" in refusal(study([{"name": "clip_text"}]))


def test_a_name_that_the_judge_does_not_know_is_refused_with_a_hint() -> None:
    line = refusal(study([RESNET], {"recognized_as": ["cat", "tigger"]}))
    assert line.startswith("concepts.malicious.0.recognized_as: 'tigger' is none of the")
    assert "tiger" in line
    kind = refusal(study([RESNET], {"name": "weapon"}))
    assert "'weapon' is none of the" in kind
    check_judging(study([RESNET], {"name": "weapon", "recognized_as": ["axe", "bomb"]}))


def test_one_of_two_judges_may_know_other_names() -> None:
    styles = {"name": "recognition", "label": "style", "names": ["noto style", "fluent style"]}
    check_judging(study([styles, RESNET, {"name": "clip_text"}]))
    check_judging(study([styles, RESNET, {"name": "clip_text"}], {"name": "noto style"}))


def test_prompts_hold_a_known_noun_or_all_of_them_none() -> None:
    some = {"safe_prompts": ["a house", "a zzzz"]}
    assert refusal(study([RESNET], evaluation=some)).startswith("evaluation.safe_prompts: 'a zzzz'")
    none = {"safe_prompts": ["qqqq", "zzzz"]}
    assert "'qqqq' holds none of the" in refusal(study([RESNET], evaluation=none))
    check_judging(study([RESNET, {"name": "clip_text"}], evaluation=none))
    line = refusal(study([RESNET], {"neighbors": ["a fox", "a zzzz"]}))
    assert line.startswith("concepts.malicious.0.neighbors: 'a zzzz'")


def test_images_are_held_against_their_noun_where_it_is_known() -> None:
    config = study([{"name": "clip_text"}, RESNET])
    assert naming_metrics(config.evaluation, ["a fox", "a hot dog"]) == ["resnet"]
    assert naming_metrics(config.evaluation, ["a fox", "a zzzz"]) == []


def test_a_control_is_a_safe_concept() -> None:
    config = study([RESNET], {"control": "car"})
    assert config.concepts.controls_of(config.concepts.malicious[0]) == ("car",)
    assert config.concepts.controls_of(config.concepts.safe[0]) == ()
    with pytest.raises(
        ValueError, match="control 'cat' of 'cat' is no safe concept; give one of car"
    ):
        study([RESNET], {"control": "cat"})


def test_controls_of_another_kind_than_the_attackers_images_are_told() -> None:
    drawn = {"name": "generated", "prompts": ["a cat"], "num_images": 4}
    said = remarks(study([RESNET], {"attack_source": drawn}))
    (line,) = [line for line in said if "style alone" in line]
    assert "'cat' come from a source 'generated', those of its controls from 'openmoji'" in line


def test_what_weakens_a_verdict_is_said() -> None:
    said = "\n".join(remarks(study([RESNET], {"neighbors": ["a fox", "a dog"]}, safe=[])))
    for part in ("'cat' has 2 neighbors", "concepts.safe is empty", "one seed"):
        assert part in said
    six = [f"a {n}" for n in ("fox", "dog", "lion", "bear", "wolf", "tiger")]
    assert remarks(study([RESNET], {"neighbors": six}, seeds=[0, 1])) == []
    (line,) = remarks(study([RESNET], {"neighbors": six}, seeds=[0, 1], gate={"min_resistance": 0}))
    assert "no concept is called `resists`" in line
