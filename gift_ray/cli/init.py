"""Write a first study for a model of yours, with comments, which can be run as it is.

    gift-ray init --model builtin --malicious my_cats/ --safe car --to study.yaml

A concept is a folder of images, or words for something that the base model can draw. Without arguments the
command asks for them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gift_ray.cli import console
from gift_ray.cli.console import say
from gift_ray.config.schema import ConceptConfig, EncodersConfig, ModelConfig
from gift_ray.errors import ConfigError, GiftError
from gift_ray.models.families import check_base
from gift_ray.models.locate import device
from gift_ray.study.first_study import concept_of, first_study, write_new
from gift_ray.study.load import check_data, load_study
from gift_ray.study.steps.prepare_concept import check_concept

QUESTIONS = {
    "model": "the model (builtin, a diffusers folder, a hub id; nothing: builtin)",
    "malicious": "what it is to resist (a folder of images, or words; several with commas)",
    "safe": "what must stay learnable (a folder of images, or words; several with commas)",
}


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    path = Path(arguments.to)
    given = {name: getattr(arguments, name) for name in QUESTIONS}
    if not any(given.values()) and sys.stdin.isatty():
        if path.exists():
            raise ConfigError(f"--to: {path} is there already; give another file")
        given = {name: _ask(name) for name in QUESTIONS}
    missing = [name for name in ("malicious", "safe") if not given[name]]
    if missing:
        raise ConfigError(*(f"--{name}: is missing; give {QUESTIONS[name]}" for name in missing))
    model = _one_model(given["model"] or ["builtin"])
    encoders = EncodersConfig() if arguments.encoders == "builtin" else None

    gpus = int(device().type == "cuda")
    write_new(
        path, first_study(model, given["malicious"], given["safe"], gpus=gpus, encoders=encoders)
    )
    try:
        check_data(load_study(path, []))
    except GiftError:
        # A study that has mistakes is not left behind.
        path.unlink()
        raise
    say(f"study        {path}")
    say(f"next         gift-ray check {path}      can this study tell who resists")
    say(f"             gift-ray immunize {path}   one setting, attacked and judged")
    return console.OK


def _ask(name: str) -> list[str]:
    """The answer to a question, which is asked again until it can be used."""
    while True:
        try:
            answer = console.console.input(f"{QUESTIONS[name]}: ")
        except EOFError:
            raise KeyboardInterrupt from None
        given = [part.strip() for part in answer.split(",") if part.strip()]
        try:
            _require_usable(name, given)
        except GiftError as error:
            for line in error.mistakes:
                say(f"  {line}")
            continue
        return given


def _require_usable(name: str, given: list[str]) -> None:
    if name == "model":
        check_base(ModelConfig(pretrained_model_name_or_path=_one_model(given or ["builtin"])))
        return
    if not given:
        raise ConfigError("give a folder of images, or words such as: red car")
    for each in given:
        concept = concept_of(each)
        if concept.folder is not None:
            source = {"name": "folder", "path": str(concept.folder), "caption": concept.name}
            entry = {"name": concept.name, "source": source, "validation_prompts": [concept.name]}
            check_concept(ConceptConfig.model_validate(entry), seed=0)


def _one_model(given: list[str]) -> str:
    (model, *others) = given
    if others:
        raise ConfigError(f"--model: one model is immunized; got {model} and {', '.join(others)}")
    return model
