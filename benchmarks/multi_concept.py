"""One, two, four, ... concepts, each way of immunizing against them: what the worst concept resists, what
is kept, what it costs; and the concept x concept matrix of the largest number. Steps that ways have in
common are computed once; running it again continues.

    python benchmarks/multi_concept.py configs/builtin/multi_concept.yaml 1,2,4 [key=value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray import console
from gift_ray.comparison import as_text
from gift_ray.config import StudyConfig
from gift_ray.multi_concept import cost, matrix, standing
from gift_ray.plan import Plan, closure, configure, execute, load_study, plan


def ways(config: StudyConfig, count: int, variants: bool) -> dict[str, dict[str, Any]]:
    """Ways to immunize against `count` concepts, as changes of the configuration: the three modes at
    equal cost, and their variants."""
    steps = int(config.defense.options["max_train_steps"])
    joint = {"concepts.mode": "joint", "defense.max_train_steps": count * steps}
    merge = {"concepts.mode": "merge"}
    average = merge | {"concepts.merge.keys_and_values": "average"}
    found = {"per_concept": {"concepts.mode": "per_concept"}}
    if count > 1:
        found |= {"joint": joint, "merge": merge}
        found["merge, polished"] = merge | {"concepts.merge.polish_steps": steps}
    if count > 1 and variants:
        found["joint, steps of one concept"] = {"concepts.mode": "joint"}
        found["joint, projected"] = joint | {"defense.concept_projection": True}
        found["merge, averaged"] = average
        found["merge, summed"] = average | {"concepts.merge.scale": count}
    return found


def main(path: str, counts: list[int], overrides: list[str]) -> None:
    config = load_study(path, overrides)
    plans: dict[tuple[int, str], Plan] = {}
    for count in counts:
        concepts = config.concepts.malicious[:count]
        fewer = config.model_copy(
            update={"concepts": config.concepts.model_copy(update={"malicious": concepts})}
        )
        most = count == max(counts)
        for way, changes in ways(fewer, count, variants=most).items():
            plans[count, way] = plan(configure(fewer, changes), matrix=most)
    steps = closure(step for layout in plans.values() for step in layout.steps())

    # In this process, one after the other: their CPU seconds compare.
    study_dir = config.study_dir
    for number, step in enumerate(steps, 1):
        execute(step, study_dir)
        console.say(f"{number}/{len(steps)} {step.label}")

    rows = [
        {"concepts": count, "way": way, **standing(layout, study_dir), **cost(layout, study_dir)}
        for (count, way), layout in plans.items()
    ]
    cells = [
        matrix(layout, study_dir).assign(way=way)
        for (count, way), layout in plans.items()
        if count == max(counts)
    ]
    write(pd.DataFrame(rows), study_dir / "ways")
    write(pd.concat(cells), study_dir / "matrix")


def write(table: pd.DataFrame, path: Path) -> None:
    """As Markdown and CSV, and on the screen."""
    for kind in ("md", "csv"):
        path.with_suffix(f".{kind}").write_text(as_text(table, kind), "utf-8")
    console.console.print(as_text(table, "md"), markup=False)


if __name__ == "__main__":
    main(sys.argv[1], [int(n) for n in sys.argv[2].split(",")], sys.argv[3:])
