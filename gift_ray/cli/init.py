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
from gift_ray.config.schema import EncodersConfig
from gift_ray.errors import ConfigError, GiftError
from gift_ray.models.locate import device
from gift_ray.study.first_study import first_study, write_new
from gift_ray.study.load import check_data, load_study

QUESTIONS = {
    "model": "the model (builtin, a diffusers folder, a hub id)",
    "malicious": "what it is to resist (a folder of images, or words; several with commas)",
    "safe": "what must stay learnable (a folder of images, or words; several with commas)",
}


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    given = {name: getattr(arguments, name) for name in QUESTIONS}
    if not any(given.values()) and sys.stdin.isatty():
        given = {name: _ask(question) for name, question in QUESTIONS.items()}
    missing = [name for name in ("malicious", "safe") if not given[name]]
    if missing:
        raise ConfigError(*(f"--{name}: is missing; give {QUESTIONS[name]}" for name in missing))
    (model, *others) = given["model"] or ["builtin"]
    if others:
        raise ConfigError(f"--model: one model is immunized; got {model} and {', '.join(others)}")
    encoders = EncodersConfig() if arguments.encoders == "builtin" else None

    path = Path(arguments.to)
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
    say(f"next         gift-ray immunize {path} --dry-run")
    return console.OK


def _ask(question: str) -> list[str]:
    answer = console.console.input(f"{question}: ")
    return [part.strip() for part in answer.split(",") if part.strip()]
