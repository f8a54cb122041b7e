"""Prompts that the model would not read to their end, and mistakes that are told together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from battery import Case, study
from pictures import four

TITLE = "Prompts, and several mistakes at once"
LONG = (
    "an emoji of a very very big and really quite old and tired but still rather friendly purple "
)


def changed(command: str = "immunize", **changes: Any) -> Callable[[Path], object]:
    named = {path.replace("__", "."): value for path, value in changes.items()}
    return lambda folder: study(folder, named, command=command)


def captioned(caption: str, *, where: str = "txt", **concept: Any) -> Callable[[Path], object]:
    """A concept whose first picture has this caption, in a .txt or in metadata.jsonl."""

    def attempt(folder: Path) -> object:
        path = four(folder)
        if where == "txt":
            (path / "cat 0.txt").write_text(caption)
        else:
            row = {"file_name": "cat 0.png", "text": caption}
            (path / "metadata.jsonl").write_text(json.dumps(row))
        source = {"name": "folder", "path": str(path), "caption": "an emoji of a cat"}
        set_there = {f"concepts.malicious.0.{name}": value for name, value in concept.items()}
        return study(folder, {"concepts.malicious.0.source": source, **set_there})

    return attempt


def warned(attempt: Callable[[Path], object], end: str) -> Callable[[Path], None]:
    """What is attempted is done, and the warning of captions that are cut ends so."""

    def check(folder: Path) -> None:
        lines: list[str] = []
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("gift_ray")
        logger.addHandler(handler)
        try:
            attempt(folder)
        finally:
            logger.removeHandler(handler)
        (line,) = (line for line in lines if "longer than the model reads" in line)
        assert line.endswith(end), line

    return check


CASES = [
    Case("a validation prompt whose last words don't fit",
         changed(concepts__malicious__0__validation_prompts=[LONG + LONG + "cat"]), says="would be lost"),
    Case("a safe prompt that is too long",
         changed(evaluation__safe_prompts=["a house", LONG + LONG + "house"]), says="would be lost"),
    Case("a neighbour that is too long",
         changed(concepts__malicious__0__neighbors=["a fox", LONG + LONG + "tiger"]), says="would be lost"),
    Case("an `instance_prompt` that is too long",
         changed(concepts__malicious__0__instance_prompt=LONG + LONG + "sks"), says="would be lost"),
    Case("a prompt of D_S that is too long",
         changed(prior__source={"name": "generated", "num_images": 2, "prompts": [LONG + LONG + "dog"]}),
         says="prior.source.prompts"),
    Case("an attack's `caption` that is too long",
         changed(attacks__0__caption=LONG + LONG + "cat"), says="attacks.0.caption"),
    Case("a .txt caption whose last words don't fit", warned(captioned("a cat, " + LONG + LONG + "Tom"),
         "purple Tom'"), outcome="told: cat 0.png loses ..."),
    Case("a .txt caption that loses the concept's name", captioned(LONG + LONG + "cat"),
         says="lose the concept's name: cat 0.png"),
    Case("a caption of metadata.jsonl that loses the concept's name",
         captioned(LONG + LONG + "Cat", where="metadata"), says="lose the concept's name: cat 0.png"),
    Case("a .txt caption that loses one of `recognized_as`",
         captioned(LONG + LONG + "kitten", recognized_as=["cat", "kitten"]),
         says="lose the concept's name: cat 0.png"),
    Case("a too long .txt caption, where `class_prompt` and `instance_prompt` stand in for it",
         captioned(LONG + LONG + "cat", class_prompt="an emoji of a cat"), outcome="not used"),
    Case("a caption of an `unsafe` concept whose last words don't fit",
         warned(captioned("a cat, " + LONG + LONG + "Tom", kind="unsafe"), "reads: cat 0.png"),
         outcome="told without its words"),
    Case("a blank safe prompt", changed(evaluation__safe_prompts=["a house", " "]), says="a prompt is blank"),
    Case("one safe prompt", changed(evaluation__safe_prompts=["a house"]), says="evaluation.safe_prompts"),
    Case("three wrong fields", changed(seed=-1, defense__beta=-1, evaluation__guidance_scale=0),
         says="defense.beta", mistakes=3),
    Case("no search, a judge of nothing, a prompt that is too long",
         changed("sweep", evaluation__metrics=[{"name": n} for n in ("clip_text", "clip_image", "kid")],
                 scoring__judges=["kid"],
                 evaluation__safe_prompts=["a house", LONG + LONG + "house"]),
         says="search: is missing", mistakes=3),
    Case("two wrong fields, no search, a prompt that is too long, a missing encoder",
         changed("sweep", seed=-1, defense__beta=-1,
                 evaluation__safe_prompts=["a house", LONG + LONG + "house"],
                 evaluation__encoders={"clip": "./no-clip"}), says="search: is missing", mistakes=5),
    Case("an unknown key in a concept, a judge that is not measured, a stale seed, a gate without a measure",
         changed(concepts__malicious__0__instance_promt="sks", scoring__judges=["lpips"],
                 confirm={"seeds": [0], "attacks": [{"name": "lora"}]}, gate={"max_kid": 0.1}),
         says="scoring.judges names 'lpips'", mistakes=4),
    Case("a folder of images that is not there, a model that is not there, no search",
         changed("sweep", model__pretrained_model_name_or_path="./no-model",
                 concepts__malicious__0__source={"name": "folder", "path": "./no-cats"}),
         says="'./no-cats' is not a folder", mistakes=3),
    Case("a judge that is not measured, a gate without a measure",
         changed(scoring__judges=["lpips"], gate={"max_kid": 0.1}), says="gate.max_kid", mistakes=2),
    Case("a wrong model, and prompts that another model might read",
         changed(model__revision=7, evaluation__safe_prompts=["a house", LONG + LONG + "house"]),
         says="model.revision"),
    Case("a missing model, a missing encoder and a search that is not possible",
         changed("sweep", model__pretrained_model_name_or_path="./no-model",
                 evaluation__encoders={"clip": "./no-clip"},
                 search={"space": {"defense.betta": {"choices": [1]}}}), says="no-clip", mistakes=3),
]  # fmt: skip
