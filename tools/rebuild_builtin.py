"""Train the built-in miniature Stable Diffusion and its judges, and write them to the package.

    python tools/rebuild_builtin.py --data DATA --work WORK [--stages ...] [--steps NAME=N ...] [--start DIR]

The stages, in order: vae, text, unet (the base); resnet, clip, dino (the judges); export, measure.
Every training stage keeps a checkpoint in WORK and goes on from it after a kill. DATA caches the
emoji packages, which npm fetches. One core trains one stage; the base and the judges may run beside
each other. With --start, vae, text and unet go on from an earlier bundle's weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from builtin_world.autoencoder import new_vae, train_vae
from builtin_world.card import write_card
from builtin_world.classifier import judge_resnet, train_resnet
from builtin_world.clip import train_judge, train_text
from builtin_world.dino import train_dino
from builtin_world.export import export
from builtin_world.measure import measure
from builtin_world.pictures import World, load_world
from builtin_world.training import steps_done, trained
from builtin_world.unet import train_unet
from builtin_world.views import Views
from gift_ray.models.builtin import BUNDLE


@dataclass
class Job:
    """What a stage needs."""

    world: World
    work: Path
    steps: int
    start: Path | None

    def views(self) -> Views:
        """The judges' augmentations, with round trips through the trained autoencoder."""
        return Views(trained(new_vae(), self.work, "vae"))


def vae(job: Job) -> None:
    train_vae(job.world, job.work, job.steps, job.start)


def text(job: Job) -> None:
    train_text(job.world, job.work, job.steps, job.start)


def unet(job: Job) -> None:
    train_unet(job.world, job.work, job.steps, job.start)


def resnet(job: Job) -> None:
    train_resnet(job.world, job.work, job.steps, job.views())


def clip(job: Job) -> None:
    teacher = judge_resnet(job.world, job.work)
    train_judge(job.world, job.work, job.steps, job.views(), teacher)


def dino(job: Job) -> None:
    train_dino(job.world, job.work, job.steps, job.views())


# stage -> its function and its number of steps
TRAINED: dict[str, tuple[Callable[[Job], None], int]] = {
    "vae": (vae, 2400),
    "text": (text, 800),
    "unet": (unet, 8000),
    "resnet": (resnet, 3000),
    "clip": (clip, 3000),
    "dino": (dino, 800),
}
WRITTEN = ("export", "measure")


def write(name: str, world: World, args: argparse.Namespace) -> None:
    """Export the checkpoints, or measure the bundle and write its card."""
    if name == "export":
        export(world, args.work, args.bundle)
    else:
        quality = measure(world, args.work, args.bundle, args.prompts)
        quality["steps"] = {stage: steps_done(args.work, stage) for stage in TRAINED}
        write_card(world, args.bundle, quality, continued=args.start is not None)


def main(argv: list[str] | None = None) -> None:
    """Run one stage, or all in order."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*TRAINED, *WRITTEN]
    parser.add_argument("--stages", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--data", type=Path, required=True, help="cache for the emoji packages")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and image sheets")
    parser.add_argument(
        "--steps", nargs="+", default=[], help="NAME=N: instead of the usual number"
    )
    parser.add_argument("--start", type=Path, help="an earlier bundle to go on from (base only)")
    parser.add_argument("--bundle", type=Path, default=BUNDLE, help="where the result goes")
    parser.add_argument("--prompts", type=int, default=50, help="nouns a style that are measured")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    world = load_world(args.data)
    asked = dict(part.split("=") for part in args.steps)
    for name in args.stages:
        if name in TRAINED:
            stage, steps = TRAINED[name]
            stage(Job(world, args.work, int(asked.get(name, steps)), args.start))
        else:
            write(name, world, args)


if __name__ == "__main__":
    main()
