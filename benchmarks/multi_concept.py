"""One, two, four, ... concepts, each way of immunizing against them: what the worst concept resists, what
is kept, what it costs; and the concept x concept matrix of the largest number. Steps that ways have in
common are computed once; running it again continues.

    python benchmarks/multi_concept.py configs/builtin/multi_concept.yaml 4,2,1 \
        "per_concept;joint;merge" [key=value ...]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gift_ray.config.schema import StudyConfig
from gift_ray.records.record import is_done, read_record
from gift_ray.study.execute import execute
from gift_ray.study.load import configure, load_study
from gift_ray.study.plan import plan
from gift_ray.study.step import Step
from gift_ray.verdict.comparison import as_text
from gift_ray.verdict.multi_concept import cost, matrix, standing
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick


def ways(config: StudyConfig, count: int) -> dict[str, dict[str, Any]]:
    """Ways to immunize against `count` concepts, as changes of the configuration: the three modes at
    equal cost first, then their variants."""
    steps = int(config.defense.options["max_train_steps"])
    joint = {"concepts.mode": "joint", "defense.max_train_steps": count * steps}
    merge = {"concepts.mode": "merge"}
    average = merge | {"concepts.merge.keys_and_values": "average"}
    if count == 1:
        return {"per_concept": {}}
    return {
        "per_concept": {},
        "joint": joint,
        "merge": merge,
        "merge, polished": merge | {"concepts.merge.polish_steps": steps},
        "merge, summed": average | {"concepts.merge.scale": count},
        "merge, averaged": average,
        "joint, steps of one concept": {"concepts.mode": "joint"},
        "joint, projected": joint | {"defense.concept_projection": True},
    }


def main(path: str, counts: list[int], chosen: list[str], overrides: list[str]) -> None:
    config = load_study(path, overrides)
    study_dir, rows, cells = config.study_dir, [], []
    for count in counts:
        concepts = config.concepts.malicious[:count]
        fewer = config.model_copy(
            update={"concepts": config.concepts.model_copy(update={"malicious": concepts})}
        )
        for way, changes in ways(fewer, count).items():
            if way not in chosen:
                continue
            # The tables are written anew after each way: a run that is stopped has said what it knows.
            layout = plan(configure(fewer, changes), matrix=count == max(counts))
            # An attack that teaches the undefended model nothing would prove nothing: told first.
            run(layout.shared(), study_dir)
            scorecard(Yardstick.of(layout, study_dir), layout.undefended)
            run(layout.steps(), study_dir)
            results = {
                **standing(layout, Yardstick.of(layout, study_dir)),
                **cost(layout, study_dir),
            }
            rows.append({"concepts": count, "way": way, **results})
            write(pd.DataFrame(rows), study_dir / "ways")
            if count == max(counts):
                cells.append(matrix(layout, Yardstick.of(layout, study_dir)).assign(way=way))
                write(pd.concat(cells), study_dir / "matrix")


def run(steps: Sequence[Step], study_dir: Path) -> None:
    """In this process, one after the other: their CPU seconds compare."""
    for number, step in enumerate(steps, 1):
        if not is_done(step.folder(study_dir)):
            execute(step, study_dir)
            record = read_record(step.folder(study_dir))
            took = record.provenance["cpu_seconds"]
            print(f"{number}/{len(steps)} {took:6.1f} CPU s  {step.label}", flush=True)


def write(table: pd.DataFrame, path: Path) -> None:
    """As Markdown and CSV, and on the screen."""
    for kind in ("md", "csv"):
        path.with_suffix(f".{kind}").write_text(as_text(table, kind), "utf-8")
    print(as_text(table, "md"), flush=True)


if __name__ == "__main__":
    study, numbers, names, *changes = sys.argv[1:]
    main(study, [int(n) for n in numbers.split(",")], names.split(";"), changes)
