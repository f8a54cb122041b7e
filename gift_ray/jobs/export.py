"""Take a model out of a study, or the adapter that an attacker makes of it.

    python jobs/export.py CONFIG --concept weapon --form delta --to weapon.safetensors [key=value ...]

--form: `diffusers` (a folder), `delta` (what differs from the base, with the base's hash), `lora`
(pytorch_lora_weights.safetensors), `kohya` (one file). The last two train the attack again: --attack, --seed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gift_ray import console
from gift_ray.console import job_parser, run_job, say
from gift_ray.exports import FORMATS, export
from gift_ray.plan import load_study, plan


def main(arguments: argparse.Namespace) -> int:
    config = load_study(arguments.config, arguments.overrides)
    path = Path(arguments.to).expanduser().absolute()
    export(
        plan(config), arguments.concept, arguments.form, path,
        attack=arguments.attack, seed=arguments.seed,
    )  # fmt: skip
    say(f"{arguments.form:12} {path}")
    return console.OK


if __name__ == "__main__":
    parser = job_parser(__doc__ or "", runs=False)
    parser.add_argument(
        "--concept", required=True, help="the malicious concept whose model is meant"
    )
    parser.add_argument("--form", required=True, choices=FORMATS)
    parser.add_argument("--to", required=True, help="the file or folder to write")
    parser.add_argument("--attack", default="lora", help="whose adapter (lora, kohya)")
    parser.add_argument("--seed", type=int, default=0, help="of the attack (lora, kohya)")
    sys.exit(run_job(main, parser))
