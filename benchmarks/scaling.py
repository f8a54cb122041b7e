"""How far units spread, and what spreading costs.

    python benchmarks/scaling.py speedup [units]              # real units on 1 worker, then on 2
    python benchmarks/scaling.py scheduling WORKERS [units]   # units that do nothing, on as many fake CPUs

`speedup` times independent attacks on the built-in model, after each worker's first. `scheduling` runs the
real executor on a real Ray whose one node claims WORKERS cores, so that as many units are in flight; it
shows what the driver and Ray's scheduler can do and how much memory the driver needs, not what machines
would. Eight units at a time reach a process, however many are in flight: a worker is a process with 0.15 GB
of its own that needs five seconds of a core before its first unit. Measured is what comes after that.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil
import ray

from gift_ray.cluster import ENVIRONMENT, run, start_with
from gift_ray.config.running import ClusterConfig
from gift_ray.records.record import read_record
from gift_ray.records.storage import Storage
from gift_ray.study.journal import Journal
from gift_ray.study.load import load_study
from gift_ray.study.plan import plan
from gift_ray.study.step import Inputs, Step

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
# The demo's attack on the undefended model: 20 steps, 16 images, each unit with a seed of its own.
SMALL = [
    "concepts.malicious.0.source.num_images=7",
    "prior.source.words=[apple, bus, camera, house, lion, shoe]",
    "prior.source.images_per_word=5",
    "defense={name: none}",
    "search=null",
]

PROCESSES = 8
# Enough for each process to start.
FIRST = 100


def speedup(units: int) -> None:
    """Seconds for the same units on one worker and on two, and what a unit costs beyond its work."""
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder, cluster(workers):
            # Each worker's first unit starts its process and loads its model.
            attacks = independent_attacks(folder, units + workers)
            settings = ClusterConfig(under_train=())
            executor = run.RayExecutor(Path(folder), settings)
            executor.run(attacks[:workers])
            before = len(executor.events(0))
            started = time.perf_counter()
            executor.run(attacks[workers:])
            seconds[workers] = time.perf_counter() - started
            ended = [e for e in executor.events(before) if e.state == "done"]
            worked = [
                read_record(s.folder(Path(folder))).provenance["seconds"] for s in attacks[workers:]
            ]
            overhead = (sum(e.seconds for e in ended) - sum(worked)) / units
        print(
            f"{workers} worker(s): {units} units in {seconds[workers]:.1f} s, {overhead:.2f} s a unit "
            f"beyond its work; load {os.getloadavg()[0]:.1f}"
        )
    print(f"speed-up from 1 to 2 workers: {seconds[1] / seconds[2]:.2f}")


def independent_attacks(folder: str, count: int) -> list[Step]:
    seeds = f"seeds=[{', '.join(str(seed) for seed in range(count))}]"
    config = load_study(DEMO, [*SMALL, seeds, f"output_dir={folder}"])
    attacks = plan(config).undefended.attacks
    return [step.inputs["images"] for (concept, _, _), step in attacks.items() if concept == "cat"]


@dataclass(frozen=True, kw_only=True)
class Nothing(Step):
    """A step whose work is never called for: `do_nothing` stands in its place."""

    kind: ClassVar[str] = "nothing"
    version: ClassVar[int] = 1

    number: int

    def identity(self) -> dict[str, Any]:
        return {"number": self.number}

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        return {}


def scheduling(workers: int, units: int) -> None:
    """Units that do nothing through the real executor, `workers` of them in flight."""
    nothing = [Nothing(label=f"nothing {i}", number=i) for i in range(FIRST + units)]
    run._unit = ray.remote(max_calls=0, resources={"process": 1})(do_nothing)  # type: ignore[assignment]
    driver = psutil.Process()
    with tempfile.TemporaryDirectory() as folder, cluster(workers):
        executor = run.RayExecutor(Path(folder), ClusterConfig(under_train=()))
        executor.run(nothing[:FIRST])
        before, peak, over = driver.memory_info().rss, [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.2):
                peak[0] = max(peak[0], driver.memory_info().rss)

        threading.Thread(target=watch, daemon=True).start()
        started, cpu = time.perf_counter(), driver.cpu_times()
        executor.run(nothing[FIRST:])
        seconds = time.perf_counter() - started
        over.set()
        spent = sum(driver.cpu_times()[:2]) - sum(cpu[:2])
        processes = len(
            [p for p in driver.children(recursive=True) if p.name().startswith("ray::")]
        )
    print(
        f"{workers} workers: {units} units in {seconds:.1f} s, {units / seconds:.0f} units/s, "
        f"{1000 * spent / units:.1f} ms of the driver's CPU time each; driver "
        f"{before / 2**20:.0f} MiB before, {peak[0] / 2**20:.0f} at its peak; {processes} worker "
        f"processes; load {os.getloadavg()[0]:.1f}"
    )


def do_nothing(step: Step, storage: Storage, checkpoint_every: int) -> None:
    """A unit that is done at once."""


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """A Ray of our own with so many cores, and no process before a unit waits for one."""
    start_with(os.environ)
    ray.init(
        address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False,
        logging_level="error", runtime_env={"env_vars": dict(ENVIRONMENT)},
        resources={"process": PROCESSES}, _system_config={"enable_worker_prestart": False,
        "prestart_worker_first_driver": False},
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    if os.getloadavg()[0] > 1:
        print(f"this machine is not idle: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    kind, *numbers = sys.argv[1:]
    if kind == "speedup":
        speedup(int(numbers[0]) if numbers else 8)
    else:
        scheduling(int(numbers[0]), int(numbers[1]) if len(numbers) > 1 else 5000)
    print(f"ray {ray.__version__}, {os.cpu_count()} cores, {platform.machine()}")
