"""Plans on a real Ray cluster: done once, resumed bit for bit, failures told apart."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray
import torch
from killed import full_disk
from nodes import start_cluster
from safetensors.torch import load_file

from gift_ray.cluster import ENVIRONMENT
from gift_ray.cluster.run import RayExecutor
from gift_ray.cluster.session import slots
from gift_ray.config.running import ClusterConfig
from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.errors import ClusterFailed, UnitFailed
from gift_ray.models.families import base_model
from gift_ray.records.record import is_done, load_state
from gift_ray.records.storage import Storage
from gift_ray.study.attempt import attempt
from gift_ray.study.execute import execute
from gift_ray.study.plan import plan
from gift_ray.study.step import Step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster():
    with start_cluster(num_cpus=2, num_gpus=1) as started:
        ray.init(
            address=started.address, log_to_driver=False, logging_level="error",
            runtime_env={"env_vars": ENVIRONMENT},
        )  # fmt: skip
        yield ClusterConfig(cpus_per_unit=1, checkpoint_every=10)
        ray.shutdown()


def study(tiny_config: ModelConfig, seed: int = 0, **defense: object) -> StudyConfig:
    concept = {
        "name": "cat",
        "source": {"name": "openmoji", "match": "^CAT( FACE)?$", "caption": "a cat"},
        "validation_prompts": ["a sks cat"],
    }
    return StudyConfig.model_validate(
        {
            "name": "tiny",
            "seed": seed,
            "model": tiny_config.model_dump(),
            "concepts": {"malicious": [concept]},
            "prior": {"source": {"name": "openmoji", "match": "^DOG( FACE)?$", "caption": "a dog"}},
            "defense": {"name": "gift", "max_train_steps": 8, "train_batch_size": 2, **defense},
            "attacks": [{"name": "dreambooth", "max_train_steps": 4}],
            "evaluation": {
                "metrics": [{"name": "clip_text"}, {"name": "clip_image"}, {"name": "dino"}],
                "safe_prompts": ["a dog", "a car"],
                "num_images_per_prompt": 1,
                "num_inference_steps": 2,
            },
        }
    )


def immunize_step(config: StudyConfig) -> Step:
    (arm,) = plan(config).defended
    return arm.immunize


def test_killed_train_worker_continues_and_equals_the_plain_loop(cluster, tiny_config, tmp_path):
    # Long enough to be caught while it trains; no checkpoint is ever due.
    step = immunize_step(study(tiny_config, max_train_steps=120))
    cluster = cluster.model_copy(update={"checkpoint_every": 10**6})
    here, seen = tmp_path / "cluster", []

    def end_twice() -> None:
        # A machine that is taken back: it saves, though nothing was due, and ends.
        attempt = wait_for_attempt(here, step, seen)
        signal_unit("RayTrainWorker", signal.SIGTERM)
        while not list((here / "train" / step.name).glob("checkpoint_*")):
            time.sleep(0.05)
        seen.append(attempt)
        # The next one dies without a word.
        seen.append(wait_for_attempt(here, step, seen))
        signal_unit("RayTrainWorker", signal.SIGKILL)
        seen.append("killed")

    with in_background(end_twice):
        RayExecutor(here, cluster).run([step])
    assert "killed" in seen, "the run ended before its worker was ended twice"
    for needed in [*step.inputs.values(), step]:
        execute(needed, tmp_path / "plain")
    assert_same_weights(step, here, tmp_path / "plain")
    assert read_training(step, here).equals(read_training(step, tmp_path / "plain"))


def test_sigterm_to_a_task_saves_and_the_retry_continues(cluster, tiny_config, tmp_path):
    step = immunize_step(study(tiny_config))
    cluster = cluster.model_copy(update={"under_train": (), "checkpoint_every": 10**6})
    here, saved = tmp_path / "cluster", []

    def take_back() -> None:
        wait_for_attempt(here, step, [])
        signal_unit(step.label, signal.SIGTERM)
        while not step.checkpoint(here).exists():
            time.sleep(0.001)
        saved.append(load_state(step.checkpoint(here)))

    with in_background(take_back):
        RayExecutor(here, cluster).run([step])
    assert saved, "it ended without a checkpoint"
    for needed in [*step.inputs.values(), step]:
        execute(needed, tmp_path / "plain")
    assert_same_weights(step, here, tmp_path / "plain")


@pytest.mark.parametrize(("share", "fitting"), [(0.5, 2), (0.25, 4)])
def test_trials_share_a_gpu_by_fraction_and_none_waits_for_ever(
    share, fitting, cluster, tiny_config, tmp_path
):
    # Three trials of two units each on one GPU: more than fit at once, and fewer.
    cluster = cluster.model_copy(
        update={"under_train": (), "gpus_per_unit": share, "cpus_per_unit": 2 / fitting}
    )
    assert slots(cluster) == fitting
    trials = [list(immunize_step(study(tiny_config, seed=n)).inputs.values()) for n in range(3)]
    executor, most, over = RayExecutor(tmp_path, cluster), [0], threading.Event()

    def count_units() -> None:
        while not over.wait(0.01):
            private = list((tmp_path / "steps").glob(".*"))
            most[0] = max(most[0], len(private))

    def trial(steps: list[Step]) -> None:
        executor.run(steps)

    with in_background(count_units), ThreadPoolExecutor(len(trials)) as pool:
        list(pool.map(trial, trials))
        over.set()
    assert all(is_done(step.folder(tmp_path)) for steps in trials for step in steps)
    assert 2 <= most[0] <= fitting


def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_config, tmp_path):
    # D_S is larger than what this disk holds; the concept's two images are not.
    needed = immunize_step(study(tiny_config)).inputs["prior"]
    with full_disk():
        failed = attempt(needed, Storage(tmp_path))
    assert isinstance(failed, ClusterFailed)
    assert "storage is full" in str(failed)
    assert list((tmp_path / "steps").iterdir()) == []


def test_two_workers_train_what_one_does(cluster, tiny_config, tmp_path):
    """Up to the order of additions. Three images a batch: the workers' shares differ, and one concept's
    image is on one of them alone. Plain gradient steps: AdamW would divide by the differences."""
    config = study(tiny_config).model_dump(mode="json")
    dogs = {"name": "openmoji", "match": "WOLF|POODLE|GUIDE DOG|FOX", "caption": "a dog"}
    config["concepts"]["mode"] = "joint"
    config["concepts"]["malicious"].append(
        {"name": "dog", "source": dogs, "validation_prompts": ["a sks dog"]}
    )
    # D_S must show neither cats nor dogs.
    houses = {"name": "openmoji", "match": "^HOUSE", "caption": "a house"}
    config["prior"] = {"source": houses}
    plain = {"name": "gift", "max_train_steps": 4, "train_batch_size": 3, "optimizer": "sgd",
             "alpha_inner": 1e-2, "alpha_outer": 1e-2, "margin": 9.0}  # fmt: skip
    members = [
        plain | {"coordination": "project", "concept_projection": True, "max_train_steps": 8},
        plain | {"coordination": "joint", "noise_target": "sample"},
    ]
    config["defense"] = {"name": "chain", "defenses": members}
    step = immunize_step(StudyConfig.model_validate(config))

    two = cluster.model_copy(update={"workers_per_immunization": 2, "checkpoint_every": 3})
    RayExecutor(tmp_path / "cluster", two).run([step])
    for needed in [*step.inputs.values(), step]:
        execute(needed, tmp_path / "plain")
    ours, expected = (
        load_file(step.folder(tmp_path / where) / "unet.safetensors")
        for where in ("cluster", "plain")
    )
    base = base_model(tiny_config).denoiser.state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)
    moved = max(float((expected[n] - base[n]).abs().max()) for n in base)
    assert moved > 1e-3, "the tolerance would prove nothing"
    logs = [read_training(step, tmp_path / where) for where in ("cluster", "plain")]
    losses = ["L_prior", "L_max", "L_noise", "mse_malicious", "grad_norm_inner", "grad_norm_outer"]
    pd.testing.assert_frame_equal(*(log[losses] for log in logs), rtol=1e-4)


def test_a_unit_that_fails_for_its_own_reason_is_not_retried_and_the_others_go_on(
    cluster, tiny_config, tmp_path
):
    # Plain ascent with a huge rate leaves the finite numbers at once.
    exploding = study(
        tiny_config, max_loss="negative", optimizer="sgd", max_grad_norm=None, alpha_outer=1e30
    )
    layout, told = plan(exploding), {}
    executor = RayExecutor(tmp_path, cluster.model_copy(update={"under_train": ("immunize",)}))
    executor.run(
        layout.steps(),
        on_failed=lambda step, error: told.update({step.fingerprint: error}),
    )  # fmt: skip
    (arm,) = layout.defended
    ((failed, error),) = told.items()
    assert failed == arm.immunize.fingerprint
    assert isinstance(error, UnitFailed)
    assert "not finite" in str(error)
    events = [event for event in executor.events(0) if event.step == arm.immunize.name]
    assert [event.state for event in events] == ["started", "failed"]
    done = [step for step in layout.steps() if step.folder(tmp_path).exists()]
    assert {s.fingerprint for s in done} == {s.fingerprint for s in layout.shared()}


@contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(timeout=10)


def wait_for_attempt(study_dir: Path, step: Step, seen: list[str]) -> str:
    """The private folder of an attempt at a step; it is there before the attempt begins to train."""
    while True:
        for private in (study_dir / "steps").glob(f".*.{step.name}"):
            if private.name not in seen:
                return private.name
        time.sleep(0.001)


def signal_unit(title: str, number: signal.Signals) -> None:
    """To the processes of this title that our own cluster has started, and to no others."""
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if title in " ".join(process.cmdline())
    ]
    assert found
    for process in found:
        process.send_signal(number)


def assert_same_weights(step: Step, one: Path, other: Path) -> None:
    left, right = (load_file(step.folder(root) / "unet.safetensors") for root in (one, other))
    assert left.keys() == right.keys()
    assert all(left[name].equal(right[name]) for name in left)


def read_training(step: Step, root: Path) -> pd.DataFrame:
    return pd.read_parquet(step.folder(root) / "training.parquet")
