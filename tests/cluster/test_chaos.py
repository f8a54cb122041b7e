"""Workers, nodes and drivers killed at random while a small study runs on a real cluster of several
nodes. What it leaves equals, bit for bit, what an undisturbed run leaves; nothing finished is computed again.

    make chaos      # 20 kills; three of them are among the default tests
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from nodes import IMPATIENT, add_worker, start_cluster
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from tiny import make_encoders

from gift_ray.cluster import ENVIRONMENT
from gift_ray.cluster.run import RayExecutor
from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.records.record import RECORD, read_record
from gift_ray.study.execute import execute
from gift_ray.study.load import load_study
from gift_ray.study.step import Step, closure
from gift_ray.verdict import comparison
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.yardstick import Yardstick

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("kills", "seeds"),
    [(3, 1), pytest.param(20, 4, marks=pytest.mark.chaos)],
    ids=["short", "full"],
)
def test_killed_study_leaves_what_an_undisturbed_one_leaves(kills, seeds, tiny_config, tmp_path):
    config = write_study(tmp_path, tiny_config, seeds)
    study_dir = tmp_path / "chaos" / "small"
    with start_cluster(workers=2, num_cpus=0) as cluster, Watch(study_dir / "steps") as watch:
        survived = run_and_kill(cluster, config, tmp_path, watch, kills)

    # Undisturbed: the same plan, step by step, in this process, less what proves nothing.
    plans = comparison.layouts(load_study(config, []))
    for step in plans["undefended"].steps():
        execute(step, tmp_path / "undisturbed")
    yardstick = Yardstick.of(plans["undefended"], tmp_path / "undisturbed")
    plans = comparison.without(plans, comparison.set_aside(yardstick))
    steps = closure([step for layout in plans.values() for step in layout.steps()])
    for step in steps:
        execute(step, tmp_path / "undisturbed")
    different = [
        s.label for s in steps if files(s, study_dir) != files(s, tmp_path / "undisturbed")
    ]
    recomputed = sum(len(attempts) - 1 for attempts in watch.attempts.values())
    print(
        f"\n{len(survived)} kills survived ({', '.join(survived)}); {len(steps)} units, "
        f"{recomputed} begun again, {len(watch.again)} of them finished before; "
        f"{len(different)} different"
    )

    assert len(survived) == kills, "the study ended before all kills were made"
    assert different == []
    assert watch.again == [], "finished, and computed again"
    for layout in plans.values():
        for arm in layout.defended:
            cards = [
                scorecard(Yardstick.of(layout, d), arm)
                for d in (study_dir, tmp_path / "undisturbed")
            ]
            assert repr(asdict(cards[0])) == repr(asdict(cards[1]))


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_drained_node_hands_over_what_it_has_trained(tiny_config, tmp_path):
    config = load_study(
        write_study(tmp_path, tiny_config, seeds=1),
        ["cluster.checkpoint_every=100000", "defense.max_train_steps=400"],
    )
    step = comparison.layouts(config)["gift"].defended[0].immunize
    study_dir, saved = tmp_path / "drained", threading.Event()
    with start_cluster(workers=2, num_cpus=0) as cluster, Watch(study_dir / "steps") as watch:
        ray.init(
            address=cluster.address, log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT}
        )

        def drain() -> None:
            while not watch.attempts[step.name]:
                time.sleep(0.001)
            (busy,) = [node for node in cluster.worker_nodes if units_on(node)]
            deadline_ms = int(1000 * (time.time() + 60))
            busy.get_gcs_client().drain_node(
                busy.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "test", deadline_ms
            )
            while not step.checkpoint(study_dir).exists():
                time.sleep(0.001)
            saved.set()

        threading.Thread(target=drain, daemon=True).start()
        RayExecutor(study_dir, config.cluster).run([step])
        ray.shutdown()
    assert saved.is_set(), "nothing was saved, though no checkpoint was due"
    for needed in [*step.inputs.values(), step]:
        execute(needed, tmp_path / "undisturbed")
    assert files(step, study_dir) == files(step, tmp_path / "undisturbed")


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_node_without_memory_ends_in_one_line(tiny_config, tmp_path):
    config = write_study(tmp_path, tiny_config, seeds=1)
    # To Ray's memory monitor this machine is full as it stands.
    full = {"_system_config": {**IMPATIENT, "memory_usage_threshold": 0.01}}
    with start_cluster(workers=1, num_cpus=0, **full) as cluster:
        driver = start_driver(cluster, config, tmp_path)
        assert driver.wait() == 1
    (line,) = [
        line
        for line in (tmp_path / "driver.log").read_text().splitlines()
        if line.startswith("error: ")
    ]
    assert "its node ran out of memory" in line
    assert not list((tmp_path / "chaos" / "small" / "steps").glob("[!.]*"))


def units_on(node: Any) -> list[psutil.Process]:
    """The processes of a node that do a unit right now. A node whose agent is killed ends itself: that is
    another kind of loss."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    others = tuple(
        f"ray::{name}" for name in ("IDLE", "Board", "DashboardAgent", "RuntimeEnvAgent")
    )
    return [
        process
        for process in raylet.children()
        if process.name().startswith("ray::") and not process.name().startswith(others)
    ]


def files(step: Step, study_dir: Path) -> dict[str, str]:
    """The hashes of everything that a step has left: weights, images, scores, logs."""
    return read_record(step.folder(study_dir)).files


def write_study(folder: Path, model: ModelConfig, seeds: int) -> Path:
    """Two malicious concepts, one safe; GIFT against DreamBooth; units of seconds on a tiny model."""

    def concept(name: str, match: str) -> dict:
        return {
            "name": name,
            "source": {"name": "openmoji", "match": match, "caption": f"a {name}"},
            "instance_prompt": f"a sks {name}",
            "validation_prompts": [f"a sks {name}"],
        }

    study = {
        "name": "small",
        "seeds": list(range(seeds)),
        "output_dir": str(folder / "chaos"),
        "model": model.model_dump(),
        "concepts": {
            "malicious": [
                concept("cat", "^CAT( FACE)?$"), concept("heart", "^(YELLOW|BLUE|GREEN) HEART$"),
            ],
            "safe": [concept("car", "^(TAXI|AUTOMOBILE)$")],
        },
        "prior": {"source": {"name": "openmoji", "match": "^DOG( FACE)?$", "caption": "a dog"}},
        "defense": {"name": "gift", "max_train_steps": 30, "train_batch_size": 2},
        "attacks": [{"name": "dreambooth", "max_train_steps": 20, "learning_rate": 1e-3}],
        "evaluation": {
            "metrics": [{"name": "clip_text"}, {"name": "clip_image"}],
            "encoders": make_encoders(folder / "encoders"),
            "safe_prompts": ["a dog", "a car"],
            "num_images_per_prompt": 2,
            "num_inference_steps": 2,
        },
        "scoring": {"judges": ["clip_image"], "least_auc": 0, "least_rise": 0},
        # One unit may be hit again and again.
        "cluster": {"under_train": [], "max_failures": 20, "checkpoint_every": 5},
    }  # fmt: skip
    StudyConfig.model_validate(study)
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def run_and_kill(
    cluster: Cluster, config: Path, folder: Path, watch: Watch, kills: int
) -> list[str]:
    """Run the study to its end, killing something each time that it has come further."""
    rng = random.Random(kills)
    kinds = ["worker", "node", "driver"]
    rng.shuffle(kinds)
    kinds += rng.choices(["worker", "node", "driver"], weights=[3, 2, 1], k=kills - len(kinds))
    driver, made, due = start_driver(cluster, config, folder), [], 1
    try:
        while driver.poll() is None:
            time.sleep(rng.uniform(0.05, 0.5))
            replace_lost(cluster)
            if len(made) == kills or len(watch.done) < due:
                continue
            kind = kinds[len(made)]
            if kind == "worker" and not kill_worker(cluster, rng):
                continue
            if kind == "node":
                cluster.remove_node(
                    rng.choice(sorted(cluster.worker_nodes, key=str)), allow_graceful=False
                )
                add_worker(cluster)
            if kind == "driver":
                driver.kill()
                driver.wait()
                driver = start_driver(cluster, config, folder)
            made.append(kind)
            due = len(watch.done) + rng.randint(1, 2)
    finally:
        driver.kill()
    assert driver.returncode == 0, (folder / "driver.log").read_text()[-4000:]
    return made


def replace_lost(cluster: Cluster) -> None:
    """Give another node for one that its head took for dead, on a busy machine: as an autoscaler does."""
    for node in list(cluster.worker_nodes):
        if any(kind == "raylet" for kind, _ in node.dead_processes()):
            cluster.remove_node(node, allow_graceful=False)
            add_worker(cluster)


def start_driver(cluster: Cluster, config: Path, folder: Path) -> subprocess.Popen:
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "jobs/benchmark.py", str(config)], cwd=ROOT, stdout=log, stderr=log,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
        )  # fmt: skip


def kill_worker(cluster: Cluster, rng: random.Random) -> bool:
    """Kill the process of a unit that runs; False if there is none right now."""
    running = [process for node in cluster.worker_nodes for process in units_on(node)]
    if running:
        rng.choice(running).kill()
    return bool(running)


@dataclass
class Watch:
    """Follows a study's folder of steps: who began what, and what was begun after it was done."""

    steps: Path
    attempts: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    done: set[str] = field(default_factory=set)
    again: list[str] = field(default_factory=list)

    def __enter__(self) -> Watch:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.01):
            names = os.listdir(self.steps) if self.steps.exists() else []
            # A step in the making lies in a private folder `.<name>.<random>`.
            for private in (n for n in names if n.startswith(".")):
                name = private[1:].rpartition(".")[0]
                if private not in self.attempts[name] and name in self.done:
                    self.again.append(name)
                self.attempts[name].add(private)
            self.done |= {n for n in names if (self.steps / n / RECORD).exists()}
