"""Ray clusters of several nodes on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.cluster_utils import Cluster

from gift_ray.cluster import start_with

# A lost node is noticed in seconds, where Ray would take half a minute; one that is only slow is not lost.
IMPATIENT = {
    "health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000,
    "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3,
}  # fmt: skip


@contextmanager
def start_cluster(workers: int = 0, **head: Any) -> Iterator[Cluster]:
    """A head, and `workers` nodes that run one unit at a time. The driver is to join it."""
    # The raylets read their settings from the environment of whoever starts them.
    start_with(os.environ)
    settings = {
        "include_dashboard": False, "dashboard_port": None, "include_log_monitor": False,
        "no_monitor": True, "_system_config": IMPATIENT,
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args={**settings, **head})
    try:
        for _ in range(workers):
            add_worker(cluster)
        yield cluster
    finally:
        cluster.shutdown()


def add_worker(cluster: Cluster, **environment: str) -> Any:
    """One more node of one core; its processes have these variables too."""
    return cluster.add_node(num_cpus=1, env_vars=environment)
