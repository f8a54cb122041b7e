"""Counts the functions and files that `defense.beta` passes from a study's YAML to the training loss.

    python benchmarks/hops.py

A tiny study is read, planned and run in this process. Whenever `beta` is read, the functions of gift_ray on
the stack are noted (without lambdas and comprehensions). Three of these stacks are the way: the first one
while the study is read, where the options are checked; the first one while it is planned, where the defense
is built; and that of the loss. A way back is a call into a file that was left before.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from itertools import pairwise
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny import make_encoders, make_pipeline, tiny_study

import gift_ray
from gift_ray.defenses.gift import Gift
from gift_ray.study.execute import execute
from gift_ray.study.load import load_study
from gift_ray.study.plan import plan
from gift_ray.study.step import closure

PACKAGE = Path(gift_ray.__file__).parent
Stack = list[tuple[str, str]]


class Readings:
    """The stacks, as (file, function), from which `beta` was read since `begin`."""

    def __init__(self) -> None:
        self.stacks: list[Stack] = []
        plain = Gift.__getattribute__

        def watched(options: Gift, name: str) -> object:
            if name == "beta":
                self.stacks.append(stack())
            return plain(options, name)

        Gift.__getattribute__ = watched  # type: ignore[method-assign, assignment]

    def begin(self) -> None:
        self.stacks.clear()


def stack() -> Stack:
    """The functions of the package that are running now, the outermost first."""
    found = [
        (Path(code.co_filename).relative_to(PACKAGE).as_posix(), code.co_qualname)
        for frame, _ in traceback.walk_stack(None)
        if PACKAGE in Path((code := frame.f_code).co_filename).parents
    ]
    return [(file, name) for file, name in reversed(found) if not name.endswith(">")]


def main() -> None:
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="hops-"))
    make_pipeline(place / "model")
    written = tiny_study(
        output_dir=str(place / "runs"),
        model={"pretrained_model_name_or_path": str(place / "model")},
        defense={"name": "gift", "max_train_steps": 2, "train_batch_size": 2, "beta": 0.25},
        evaluation={"encoders": make_encoders(place / "encoders")},
    )
    file = place / "study.yaml"
    file.write_text(yaml.safe_dump(written.model_dump(mode="json")), encoding="utf-8")

    readings = Readings()
    config = load_study(file, [])
    checked = readings.stacks[0]
    readings.begin()
    (arm,) = plan(config).defended
    built = readings.stacks[0]
    readings.begin()
    for step in closure([arm.immunize]):
        execute(step, config.study_dir)
    loss = readings.stacks[-1]

    for title, way in (("options checked", checked), ("defense built", built), ("loss", loss)):
        print(title)
        for where, name in way:
            print(f"    {where}: {name}")
    way = [*checked, *built, *loss]
    files = [where for where, _ in way]
    back = sum(
        after != before and after in files[:place]
        for place, (before, after) in enumerate(pairwise(files), 1)
    )
    print(f"{len(set(way))} functions in {len(set(files))} files, {back} ways back")


if __name__ == "__main__":
    main()
