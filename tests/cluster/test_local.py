"""Heads of our own for a while."""

from __future__ import annotations

import pytest

from gift_ray.cluster.local import local_head, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_job_joins_its_own_head_and_no_younger_one() -> None:
    """The heads' tokens differ: a job that finds the other one is not let in."""
    with local_head() as own, local_head():
        assert submit(["-c", "import ray; ray.init('auto')"], own, None) == 0
