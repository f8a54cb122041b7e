"""Export a model of a study, or the adapter that an attacker trains on it.

    gift-ray export CONFIG --concept weapon --form delta --to weapon.safetensors [key=value ...]

--form is `diffusers` (a folder), `delta` (the tensors that differ from the base, with the base's hash),
`lora` (pytorch_lora_weights.safetensors) or `kohya` (one file). The last two train the attack of --attack and
--seed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gift_ray.cli import console
from gift_ray.cli.console import say
from gift_ray.records.exports import export
from gift_ray.study.load import load_study
from gift_ray.study.plan import plan


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    config = load_study(arguments.config, arguments.overrides)
    path = Path(arguments.to).expanduser().absolute()
    export(
        plan(config), arguments.concept, arguments.form, path,
        attack=arguments.attack, seed=arguments.seed,
    )  # fmt: skip
    say(f"{arguments.form:12} {path}")
    return console.OK
