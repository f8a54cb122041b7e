"""Joins or starts a Ray cluster, with every setting explicit that Ray would choose by its surroundings."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayError

from gift_ray import logs
from gift_ray.cluster import ENVIRONMENT, start_with
from gift_ray.cluster.reach import require_cluster
from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed, ConfigError
from gift_ray.records.storage import Storage, require_writable, storage_of

logger = logging.getLogger(__name__)


@contextmanager
def session(cluster: ClusterConfig, study_dir: Path) -> Iterator[None]:
    """A connection to the job's cluster, to $RAY_ADDRESS, or to a local cluster of our own.

    A cluster that we started ends with the block; one that we joined stays.

    Raises:
        ConfigError: the study's folder can't be written; the cluster can't be reached or started, is open to
            anyone on the network, is too small for one unit, or can't reach the study's storage from every
            node.
    """
    require_writable(study_dir)
    start_with(os.environ)
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    address = "auto" if in_job else os.environ.get("RAY_ADDRESS", "local")
    require_cluster(address)
    logger.info("Connecting to the Ray cluster %r ('local' is started for this job).", address)
    joined = _joined(address)
    # Nothing is written into the study's folder before there is a cluster to work on.
    logs.to_study(study_dir)
    # After ray.init, which installs a handler of its own.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if address != "local":
            require_closed(
                [node["NodeManagerAddress"] for node in ray.nodes()], joined.dashboard_url
            )
        _preflight(cluster, study_dir)
        logger.info("The Ray cluster has room for %d units at once.", slots(cluster))
        yield
    finally:
        ray.shutdown()


def _joined(address: str) -> Any:
    """The connection to a Ray cluster.

    Raises:
        ConfigError: the cluster can't be joined, or not be started.
    """
    verbose = {name: os.environ[name] for name in (logs.VERBOSE,) if name in os.environ}
    try:
        return ray.init(
            address=address,
            include_dashboard=True if address == "local" else None,
            log_to_driver=bool(verbose),
            logging_level="warning",
            runtime_env={"env_vars": ENVIRONMENT | verbose},
        )
    except ConnectionError as error:
        # Somebody answers there, as `require_cluster` has found. Ray gives no other error for a wrong token.
        raise ConfigError(
            f"RAY_ADDRESS: the Ray cluster at {address!r} does not let this job in ({error}): give it the "
            "cluster's token in RAY_AUTH_TOKEN, or in the file at RAY_AUTH_TOKEN_PATH, with "
            "RAY_AUTH_MODE=token (docs/CLUSTER.md), and the cluster's version of Ray"
        ) from error
    except AuthenticationError as error:
        raise ConfigError(
            f"RAY_ADDRESS: the Ray cluster at {address!r} asks for its token: set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to a file that holds it (docs/CLUSTER.md)"
        ) from error
    except (TypeError, AttributeError):
        raise  # A bug of ours.
    except Exception as error:
        # Ray raises no exception class of its own when a node does not start.
        reason = " ".join(str(error).split())[:300]
        place = (
            "a Ray node can't be started here"
            if address == "local"
            else f"joining {address!r} failed"
        )
        raise ConfigError(
            f"Ray: {place}: {reason}; see to it (memory, free ports, room "
            "in /tmp or $RAY_TMPDIR), then run again"
        ) from error


def slots(cluster: ClusterConfig) -> int:
    """How many units fit on the cluster at once, at least 1."""
    total = ray.cluster_resources()
    fits = [int(total.get("CPU", 0) / cluster.cpus_per_unit)]
    if cluster.gpus_per_unit:
        fits.append(int(total.get("GPU", 0) / cluster.gpus_per_unit))
    return max(1, min(fits))


def require_closed(addresses: Sequence[str], dashboard_url: str | None) -> None:
    """Refuse a cluster that other machines can reach and that asks for no token.

    Such a cluster runs anyone's code, beside ours. `RAY_AUTH_MODE=disabled` in the environment says that only
    trusted machines can reach it.

    Args:
        addresses: of its nodes.
        dashboard_url: host:port of its dashboard, if it has one.

    Raises:
        ConfigError: it is open, and nobody said that it should be.
    """
    beyond = sorted({a for a in addresses if not ip_address(a).is_loopback})
    if (
        not beyond
        or os.environ.get("RAY_AUTH_MODE") == "disabled"
        or _asks_for_token(dashboard_url)
    ):
        return
    raise ConfigError(
        f"RAY_ADDRESS: the Ray cluster on {', '.join(beyond)} asks nobody for a token: whoever reaches it "
        "can run code on it; start its nodes with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN_PATH "
        "(docs/CLUSTER.md), or set RAY_AUTH_MODE=disabled if only trusted machines reach it"
    )


def _asks_for_token(dashboard_url: str | None) -> bool:
    """Whether the cluster asks for a token; if its dashboard does not answer, whether we have one."""
    question = f"http://{dashboard_url}/api/authentication_mode"
    try:
        with urllib.request.urlopen(question, timeout=10) as said:
            return bool(json.load(said)["authentication_mode"] == "token")
    except OSError:
        return os.environ.get("RAY_AUTH_MODE") == "token"


def _preflight(cluster: ClusterConfig, study_dir: Path) -> None:
    """One unit must fit on some node, and every node must see the study's folder."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": cluster.cpus_per_unit, "GPU": cluster.gpus_per_unit}
    if not any(all(n["Resources"].get(k, 0) >= v for k, v in wanted.items()) for n in nodes):
        have = [{k: n["Resources"].get(k, 0) for k in wanted} for n in nodes]
        raise ConfigError(
            f"cluster: a unit asks for {wanted} and no node has that (nodes: {have}); lower "
            "cluster.cpus_per_unit or cluster.gpus_per_unit, or add nodes"
        )
    _require_workers(cluster, nodes)
    if len(nodes) > 1 or cluster.storage_path:
        _require_storage(cluster, study_dir, nodes)


def _require_workers(cluster: ClusterConfig, nodes: list[dict[str, Any]]) -> None:
    """All data-parallel workers of one immunization must fit at once: they wait for each other."""
    fits = sum(
        min(
            int(node["Resources"].get(kind, 0) / each)
            for kind, each in (("CPU", cluster.cpus_per_unit), ("GPU", cluster.gpus_per_unit))
            if each
        )
        for node in nodes
    )
    if cluster.workers_per_immunization > fits:
        raise ConfigError(
            f"cluster.workers_per_immunization: {cluster.workers_per_immunization} don't fit on this "
            f"cluster, which has room for {fits}; lower it, or add nodes"
        )


def _require_storage(cluster: ClusterConfig, study_dir: Path, nodes: list[dict[str, Any]]) -> None:
    """Every node must read what the driver has written."""
    storage = storage_of(cluster, study_dir)
    probe = study_dir / f".probe-{secrets.token_hex(4)}"
    study_dir.mkdir(parents=True, exist_ok=True)
    probe.touch()
    try:
        storage.send(probe)
        sees = ray.remote(num_cpus=0)(_sees)
        checks = {
            node["NodeManagerAddress"]: sees.options(
                scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                )
            ).remote(storage, probe.name)
            for node in nodes
        }
        blind = [address for address, ref in checks.items() if not _answer(ref)]
    except ClusterFailed as error:
        raise ConfigError(*error.mistakes) from error
    finally:
        probe.unlink()
    storage.delete(probe)
    if blind and cluster.storage_path:
        raise ConfigError(
            f"cluster.storage_path: {cluster.storage_path} does not answer node(s) {', '.join(blind)}; give "
            "them its keys, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in their environment"
        )
    if blind:
        raise ConfigError(
            f"output_dir: {study_dir} is not visible from node(s) {', '.join(blind)}; give a folder "
            "on storage that all nodes mount, or cluster.storage_path"
        )


def _answer(ref: Any) -> bool:
    """What a node answered. A node that was lost meanwhile counts as fine: no step will run on it."""
    try:
        return bool(ray.get(ref))
    except RayError:
        return True


def _sees(storage: Storage, name: str) -> bool:
    here = storage.on_node()
    try:
        here.fetch(here.study_dir / name)
    except ClusterFailed:
        return False
    found = (here.study_dir / name).exists()
    if here.study_dir != storage.study_dir:
        (here.study_dir / name).unlink(missing_ok=True)
    return found


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM (ray job stop, preemption) ends like Ctrl-C: clean up, exit 130, resume by rerunning."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(
        "stopping: what is finished stays, the same command continues", file=sys.stderr, flush=True
    )
    raise KeyboardInterrupt
