"""TPE with pruning against random search: unit-seconds until random search's best objective is reached.

    python benchmarks/search.py configs/demo.yaml [key=value ...]

A grid of settings is evaluated once, every one to its end, through the real stages; nothing is interpolated.
Then both searches run on that table many times: their suggestions are moved to the nearest setting of the
grid that was not tried yet, which then *is* the setting that was tried (and told to TPE). Costs are CPU
seconds of the units, from their records: a trial that is pruned after a rung has paid for the rungs so far.
What all are held against is plain random search, which attacks every model, the destroyed ones too. Running
it again continues the table.
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from gift_ray.config.schema import StudyConfig
from gift_ray.config.search_space import Range, SearchConfig
from gift_ray.records.record import digest, write_json_atomic
from gift_ray.records.trials import Trial
from gift_ray.search import costs
from gift_ray.search.sampler import Outcome, evaluate, is_hopeless, propose
from gift_ray.study.execute import execute
from gift_ray.study.load import configure, load_study
from gift_ray.study.plan import plan
from gift_ray.study.step import closure
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick

POINTS = (9, 5)
TRIALS = 20
SEEDS = 20
SPACE = {
    "defense.alpha_outer": Range(low=1e-4, high=1.6e-3, log=True),
    "defense.beta": Range(low=0.02, high=0.5, log=True),
}
PLAIN = "plain random"
Row = dict[str, Any]


def main(path: str, overrides: list[str]) -> None:
    study = load_study(path, overrides)
    # Rungs are attack by attack and concept by concept, whoever prunes: one table for all.
    study = study.model_copy(update={"search": SearchConfig(space=SPACE, pruner="bound")})
    layout = plan(study)
    run_all(layout.shared(), study.study_dir)
    scorecard(Yardstick.of(layout, study.study_dir), layout.undefended)
    table = evaluate_grid(study)
    shared = costs.seconds(layout.shared(), study.study_dir, "cpu_seconds")
    report(study, table, shared)


def run_all(steps: Any, study_dir: Path) -> None:
    for step in closure(steps):
        execute(step, study_dir)


def grid() -> list[tuple[float, ...]]:
    axes = [
        option.model_copy(update={"num": num}).points()
        for option, num in zip(SPACE.values(), POINTS, strict=True)
    ]
    return list(itertools.product(*axes))


def evaluate_grid(study: StudyConfig) -> dict[tuple[float, ...], list[Row]]:
    """setting -> its outcomes rung by rung, with the CPU seconds paid so far."""
    table = {}
    for number, point in enumerate(grid()):
        values = dict(zip(SPACE, point, strict=True))
        layout = plan(configure(study, values))
        kept = (
            study.study_dir
            / "table"
            / f"{digest([s.fingerprint for s in layout.steps()])[:16]}.json"
        )
        if not kept.exists():
            shared = {s.fingerprint for s in layout.shared()}
            own = [s for s in layout.steps() if s.fingerprint not in shared]
            rows = []
            for outcome in evaluate(study, values, lambda steps: run_all(steps, study.study_dir)):
                paid = costs.seconds(own, study.study_dir, "cpu_seconds")
                rows.append({"paid": paid, **asdict(outcome)})
            # What a search without rungs would have paid.
            run_all(own, study.study_dir)
            for row in rows:
                row["whole"] = costs.seconds(own, study.study_dir, "cpu_seconds")
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(kept, rows)
        table[point] = json.loads(kept.read_text("utf-8"))
        last = table[point][-1]
        said = ", ".join(f"{', '.join(a['malicious'])} {a['objective']:.3f}" for a in last["arms"])
        print(f"{number + 1}/{math.prod(POINTS)} {last['paid']:.1f} s  {point}: {said}", flush=True)
    return table


def nearest(values: Row, tried: Collection[tuple[float, ...]]) -> tuple[float, ...]:
    """The untried setting of the grid that is nearest on the log scale."""
    return min(
        (point for point in grid() if point not in tried),
        key=lambda p: sum(
            (math.log(v / values[path]) / math.log(SPACE[path].high / SPACE[path].low)) ** 2  # type: ignore[operator]
            for path, v in zip(SPACE, p, strict=True)
        ),
    )


def simulate(
    study: StudyConfig,
    table: dict[tuple[float, ...], list[Row]],
    algorithm: str,
    pruner: str,
    seed: int,
    budget: float = math.inf,
) -> list[tuple[float, float]]:
    """(CPU seconds paid, best objective of a complete trial) after each of the trials: TRIALS of them, or
    with a `budget` of CPU seconds as many as it pays for."""
    sampler: Any = "random" if algorithm == PLAIN else algorithm
    search = SearchConfig(space=SPACE, algorithm=sampler, pruner=pruner, num_samples=TRIALS)  # type: ignore[arg-type]
    config = study.model_copy(update={"search": search, "seed": seed})
    trials: list[Trial] = []
    paid, best, path = 0.0, -1.0, []
    tried: set[tuple[float, ...]] = set()
    for number in range(TRIALS if budget == math.inf else len(table)):
        if paid >= budget:
            break
        point = nearest(propose(config, trials, number), tried)
        tried.add(point)
        rungs: list[float] = []
        state: Any = "pruned"
        for row in table[point]:
            outcome = Outcome(**{k: v for k, v in row.items() if k not in ("paid", "whole")})
            rungs.append(fmean(arm["objective"] for arm in outcome.arms))
            state = outcome.state
            if state == "running" and is_hopeless(pruner, outcome, trials):
                state = "pruned"
                break
        paid += row["whole" if algorithm == PLAIN else "paid"]
        trials.append(as_trial(number, dict(zip(SPACE, point, strict=True)), outcome, rungs, state))
        if state == "complete":
            best = max(best, trials[-1].objective)
        path.append((paid, best))
    return path


def as_trial(number: int, values: Row, outcome: Outcome, rungs: list[float], state: Any) -> Trial:
    arms = outcome.arms
    return replace(
        Trial(str(number), values, rungs[-1], 0.0, 0.0, True, "", arms if state == "complete" else []),
        number=number, state=state, rungs=rungs, feasible=any(arm["feasible"] for arm in arms),
    )  # fmt: skip


def report(study: StudyConfig, table: dict[tuple[float, ...], list[Row]], shared: float) -> None:
    ends = [rows[-1] for rows in table.values()]
    finals = [fmean(arm["objective"] for arm in row["arms"]) for row in ends]
    dead = sum(row["state"] == "infeasible" for row in ends)
    whole = fmean(row["whole"] for row in ends)
    print(f"\ntable: {len(table)} settings, {dead} of them under the retention floor; objective best "
          f"{max(finals):.3f}, median {median(finals):.3f}")  # fmt: skip
    print(f"shared units {shared:.0f} s, a whole trial {whole:.0f} s (CPU); the cost: that of {TRIALS} "
          f"trials of plain random search; {SEEDS} seeds\n")  # fmt: skip
    print("| search | best at half of the cost, mean | best at its cost, mean (worst) | reaches plain "
          "random's best | by this share of its cost, median (worst) | by half |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    plain = [simulate(study, table, PLAIN, "none", seed) for seed in range(SEEDS)]
    for algorithm, pruner in itertools.product(
        (PLAIN, "random", "tpe"), ("none", "bound", "median", "asha")
    ):
        if algorithm == PLAIN and pruner != "none":
            continue
        half, bests, shares = [], [], []
        for seed, theirs in enumerate(plain):
            cost, goal = theirs[-1]
            ours = simulate(study, table, algorithm, pruner, seed, budget=cost)
            half.append(max((best for paid, best in ours if paid <= cost / 2), default=-1.0))
            bests.append(max(best for paid, best in ours if paid <= cost))
            reached = [paid / cost for paid, best in ours if best >= goal - 1e-9 and paid <= cost]
            shares.append(reached[0] if reached else math.inf)
        found = sum(math.isfinite(share) for share in shares)
        print(f"| {algorithm} + {pruner} | {fmean(half):.3f} | {fmean(bests):.3f} ({min(bests):.3f}) "
              f"| {found} of {SEEDS} | {median(shares):.2f} ({max(shares):.2f}) "
              f"| {sum(s <= 0.5 for s in shares)} of {SEEDS} |")  # fmt: skip
    tpe = [simulate(study, table, "tpe", "bound", seed)[-1][0] for seed in range(SEEDS)]
    print(f"\n{TRIALS} trials of tpe + bound, against {TRIALS} cold runs: "
          f"{fmean((shared + paid) / (TRIALS * (shared + whole)) for paid in tpe):.2f} "
          "of the CPU seconds")  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
