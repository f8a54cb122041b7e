"""Prompts that the model would not read to their end, and mistakes that are told together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from battery import Case, study

TITLE = "Prompts, and several mistakes at once"
LONG = (
    "an emoji of a very very big and really quite old and tired but still rather friendly purple "
)


def changed(command: str = "immunize", **changes: Any) -> Callable[[Path], object]:
    named = {path.replace("__", "."): value for path, value in changes.items()}
    return lambda folder: study(folder, named, command=command)


CASES = [
    Case("a validation prompt whose last words don't fit",
         changed(concepts__malicious__0__validation_prompts=[LONG + LONG + "cat"]), says="would be lost"),
    Case("a safe prompt that is too long",
         changed(evaluation__safe_prompts=["a house", LONG + LONG + "house"]), says="would be lost"),
    Case("a neighbour that is too long",
         changed(concepts__malicious__0__neighbors=["a fox", LONG + LONG + "tiger"]), says="would be lost"),
    Case("an `instance_prompt` that is too long",
         changed(concepts__malicious__0__instance_prompt=LONG + LONG + "sks"), says="would be lost"),
    Case("a blank safe prompt", changed(evaluation__safe_prompts=["a house", " "]), says="a prompt is blank"),
    Case("one safe prompt", changed(evaluation__safe_prompts=["a house"]), says="evaluation.safe_prompts"),
    Case("three wrong fields", changed(seed=-1, defense__beta=-1, evaluation__guidance_scale=0),
         says="defense.beta", mistakes=3),
    Case("no search, a judge of nothing, a prompt that is too long",
         changed("sweep", evaluation__metrics=[{"name": n} for n in ("clip_text", "clip_image", "kid")],
                 scoring__judges=["kid"],
                 evaluation__safe_prompts=["a house", LONG + LONG + "house"]),
         says="search: is missing", mistakes=4),
    Case("a missing model, a missing encoder and a search that is not possible",
         changed("sweep", model__pretrained_model_name_or_path="./no-model",
                 evaluation__encoders={"clip": "./no-clip"},
                 search={"space": {"defense.betta": {"choices": [1]}}}), says="no-clip", mistakes=3),
]  # fmt: skip
