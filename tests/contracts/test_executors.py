"""What every executor promises: each step once and after what it reads, failures told apart."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from counted import Count
from nodes import start_cluster

from gift_ray.config.running import ClusterConfig
from gift_ray.errors import UnitFailed
from gift_ray.records.record import is_done, read_record
from gift_ray.study import executor as seam
from gift_ray.study.event import Event
from gift_ray.study.executor import Executor, run_in_order
from gift_ray.study.inline import InlineExecutor
from gift_ray.study.step import Step

Open = Callable[[], Executor]


@pytest.fixture(scope="module")
def joined() -> Iterator[None]:
    """A connection to a Ray cluster of our own."""
    import ray

    from gift_ray.cluster import ENVIRONMENT

    # Workers import the kind of step that is defined beside the tests.
    tests = str(Path(__file__).parents[1])
    places = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    with start_cluster(num_cpus=2) as started:
        ray.init(
            address=started.address, log_to_driver=False, logging_level="error",
            runtime_env={"env_vars": ENVIRONMENT | {"PYTHONPATH": places}},
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(
    params=["inline", pytest.param("ray", marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens an executor on one study, as often as it is called."""
    if request.param == "inline":
        yield lambda: InlineExecutor(tmp_path / "study")
        return
    from gift_ray.cluster.run import RayExecutor

    request.getfixturevalue("joined")
    cluster = ClusterConfig(cpus_per_unit=0.5)
    yield lambda: RayExecutor(tmp_path / "study", cluster)


@pytest.fixture
def count(tmp_path: Path) -> Callable[..., Count]:
    def make(label: str, *inputs: Step, **fields: object) -> Count:
        named = {step.label: step for step in inputs}
        return Count(label=label, inputs=named, notes=tmp_path / "notes", **fields)  # type: ignore[arg-type]

    return make


def noted(tmp_path: Path) -> list[str]:
    return (tmp_path / "notes").read_text().split()


def events_of(executor: Executor, count: int) -> list[Event]:
    """The first `count` events; on a cluster they may arrive late."""
    deadline = time.monotonic() + 120
    while len(found := executor.events(0)) < count and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def total(step: Step, tmp_path: Path) -> int:
    return int(read_record(step.folder(tmp_path / "study")).result["total"])


def test_each_step_is_done_once_and_after_what_it_reads(
    opened: Open, count: Callable[..., Count], tmp_path: Path
) -> None:
    first = count("first")
    left, right = count("left", first, number=2), count("right", first, number=3)
    last = count("last", left, right, number=4)
    executor, told = opened(), list[Step]()
    executor.run([last, left], on_done=told.append)
    assert sorted(noted(tmp_path)) == ["first", "last", "left", "right"]
    assert [told[0].label, told[-1].label] == ["first", "last"]
    assert total(last, tmp_path) == 4 + (2 + 1) + (3 + 1)
    states = [(event.state, event.label) for event in events_of(executor, 8)]
    assert sorted(states) == sorted(
        (state, step.label) for step in (first, left, right, last) for state in ("started", "done")
    )
    assert executor.events(len(states)) == []

    again = opened()
    again.run([last])
    assert len(noted(tmp_path)) == 4
    assert {event.state for event in events_of(again, 8)} == {"started", "reused"}


def test_a_failure_of_its_own_ends_the_run_and_leaves_nothing(
    opened: Open, count: Callable[..., Count], tmp_path: Path
) -> None:
    failing = count("failing", failure="not finite")
    executor = opened()
    with pytest.raises(UnitFailed, match="failing: not finite"):
        executor.run([count("after", failing)])
    assert noted(tmp_path) == ["failing"], "it is not retried"
    assert [e.detail for e in events_of(executor, 2) if e.state == "failed"] == [
        "failing: not finite"
    ]
    assert list((tmp_path / "study" / "steps").iterdir()) == []


def test_where_failures_are_told_the_others_go_on(
    opened: Open, count: Callable[..., Count], tmp_path: Path
) -> None:
    failing, good = count("failing", failure="not finite"), count("good", number=2)
    reader = count("reader", failing, good)
    told: list[str] = []
    opened().run([reader, good], on_failed=lambda step, error: told.append(step.label))
    assert told == ["failing"]
    assert is_done(good.folder(tmp_path / "study"))
    assert "reader" not in noted(tmp_path)


def test_a_bug_of_ours_is_no_answer(
    opened: Open, count: Callable[..., Count], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        opened().run([count("buggy", bug="a bug")], on_failed=lambda step, error: None)


def test_two_runs_that_need_one_step_do_it_once(
    opened: Open, count: Callable[..., Count], tmp_path: Path
) -> None:
    shared = count("shared", seconds=2.0)
    own = [count("own", shared, number=number) for number in (5, 6)]
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(opened().run, [step]) for step in own]:
            future.result()
    assert noted(tmp_path).count("shared") == 1
    assert [total(step, tmp_path) for step in own] == [6, 7]
    assert [p.name for p in (tmp_path / "study" / "steps").glob(".*")] == []


def test_a_plan_of_which_nothing_is_ready_is_a_bug(
    count: Callable[..., Count], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A list of steps without what they read: nobody would ever begin.
    monkeypatch.setattr(seam, "closure", list)
    with pytest.raises(RuntimeError, match="no step is ready; waiting: reader"):
        run_in_order([count("reader", count("first"))], lambda step: Future(), None, None)


def test_steps_that_are_ready_run_at_the_same_time(count: Callable[..., Count]) -> None:
    both = threading.Barrier(2, timeout=30)
    steps = [count("one"), count("two", number=2)]
    with ThreadPoolExecutor(2) as pool:
        run_in_order(steps, lambda step: pool.submit(lambda: both.wait() and None), None, None)
