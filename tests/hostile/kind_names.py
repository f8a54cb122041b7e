"""Names and duplicates: what a user names twice, or alike, must never make one of the two vanish."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from battery import STUDY, Case, study

from gift_ray.config.names import slug
from gift_ray.study.plan import plan
from gift_ray.study.protocol import attack_names

TITLE = "Two things of one name"
CAT = STUDY["concepts"]["malicious"][0]
ATTACK = {"name": "dreambooth", "max_train_steps": 4}


def changed(**changes: Any) -> Callable[[Path], object]:
    """Try the study with these changes, with __ for the dots."""
    return partial(study, changes={path.replace("__", "."): v for path, v in changes.items()})


def named(*names: Any) -> Callable[[Path], object]:
    """Try the study with malicious concepts of these names."""
    return changed(concepts__malicious=[copy.deepcopy(CAT) | {"name": name} for name in names])


def attacks(*members: dict[str, Any]) -> Callable[[Path], object]:
    return changed(attacks=[{"name": "lora", "max_train_steps": 4, **member} for member in members])


def three_attacks_run(folder: Path) -> None:
    config = study(folder, {"attacks": [
        {"name": "lora", "label": "lora-2", "rank": 2}, {"name": "lora", "rank": 4},
        {"name": "lora", "rank": 8},
    ]})  # fmt: skip
    ranks = {name: attack.options["rank"] for name, attack in attack_names(config).items()}
    assert ranks == {"lora-2": 2, "lora": 4, "lora-3": 8}
    assert {key[1] for key in plan(config).undefended.attacks} == set(ranks)


def grid_names_stay_apart(folder: Path) -> None:
    grid = {"target_modules": [["to_q"], ["to_k"], ["to_q", "to_k"]], "rank": [2]}
    config = study(folder, {"attacks": [{"name": "lora", "grid": grid}]})
    assert len(attack_names(config)) == 3


def concepts_stay_apart(*names: str) -> Callable[[Path], None]:
    def attempt(folder: Path) -> None:
        config = named(*names)(folder)
        assert [concept.name for concept in config.concepts.malicious] == list(names)  # type: ignore[attr-defined]
        assert len({slug(name) for name in names}) == len(names)

    return attempt


APART = "each has its own steps, metrics, registered model and files"
CASES = [
    Case("attacks labelled `lora-2`, and two more of `lora`", three_attacks_run,
         outcome="three attacks run: lora-2, lora, lora-3"),
    Case("the same attack twice", changed(attacks=[ATTACK, ATTACK]), says="twice with the same options"),
    Case("the same attack under two labels", attacks({"label": "a"}, {"label": "b"}),
         says="twice with the same options"),
    Case("an attack that a grid holds already", attacks({"grid": {"rank": [4, 8]}}, {"rank": 4}),
         says="twice with the same options"),
    Case("a grid with one value twice", attacks({"grid": {"rank": [4, 4]}}), says="4 is given twice"),
    Case("a grid of lists", grid_names_stay_apart, outcome="an attack each, under names of their own"),
    Case("`seeds: [0, 0]`", changed(seeds=[0, 0]), says="0 is given twice"),
    Case("`confirm.seeds: [5, 5]`", changed(confirm={"attacks": [ATTACK], "seeds": [5, 5]}),
         says="5 is given twice"),
    Case("one metric with two settings",
         changed(evaluation__metrics=[{"name": n} for n in ("clip_text", "clip_image", "dino", "dino")]),
         says="'dino' is given twice"),
    Case("one judge twice", changed(scoring__judges=["dino", "dino"]),
         says="'dino' is given twice"),
    Case("one safe prompt twice",
         changed(evaluation__safe_prompts=["a house", "a pizza", "a house"]),
         says="'a house' is given twice"),
    Case("one neighbour twice", changed(concepts__malicious__0__neighbors=["a fox", "a tiger", "a fox"]),
         says="'a fox' is given twice"),
    Case("one validation prompt twice",
         changed(concepts__malicious__0__validation_prompts=["a cat", "a cat"]),
         says="'a cat' is given twice"),
    Case("two concepts of one name", named("cat", "cat"), says="'cat' is used twice"),
    Case("a malicious and a safe concept of one name", named("car"), says="'car' is used twice"),
    Case("concepts `Cat` and `cat`", named("Cat", "cat"), says="look alike"),
    Case("a concept spelt with composed and with combining letters", named("caf\u00e9", "cafe\u0301"),
         says="look alike"),
    Case("concepts `\u732b` and `\u72ac`", concepts_stay_apart("\u732b", "\u72ac"), outcome=APART),
    Case("concepts `a/b`, `a:b` and `a_b`", concepts_stay_apart("a/b", "a:b", "a_b"), outcome=APART),
    Case("concepts `a, b`, `a` and `b`", concepts_stay_apart("a, b", "a", "b"), outcome=APART),
    Case("concepts `..` and `.`", concepts_stay_apart("..", "."), outcome=APART),
    Case("two concepts that differ after 100 letters",
         concepts_stay_apart("x" * 120 + "a", "x" * 120 + "b"), outcome=APART),
    Case("a concept named `cat` with a space after it", named("cat "), says="remove the spaces"),
    Case("a concept with a blank name", named(" "), says="must not be blank"),
    Case("a concept with an empty name", named(""), says="must not be blank"),
    Case("a line break in a concept's name", named("a\nb"), says="invisible character"),
    Case("a zero-width space in a concept's name", named("ca\u200bt"), says="invisible character"),
    Case("a concept's name of 301 letters", named("x" * 301), says="at most 300 characters"),
    Case("`concepts.added` with one concept twice",
         changed(concepts__mode="joint", concepts__added=["cat", "cat"]), says="'cat' is given twice"),
    Case("a choice twice in a search",
         changed(search={"space": {"defense.beta": {"choices": [0.1, 0.1]}}}), says="0.1 is given twice"),
    Case("`search.warm_start` with one folder twice",
         changed(search={"space": {"defense.beta": {"choices": [0.1]}}, "warm_start": ["a", "a"]}),
         says="'a' is given twice"),
]  # fmt: skip
