"""A Ray head of our own for a while, and jobs submitted to it: what `make demo` does."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gift_ray.cluster import start_with
from gift_ray.errors import ConfigError

START_TIMEOUT_S = 120


@contextmanager
def local_head() -> Iterator[dict[str, str]]:
    """The environment to reach a Ray cluster: a running one, else a head that ends with the block.

    The head listens on loopback only, with a token of its own.

    Raises:
        ConfigError: the head does not come up.
    """
    running = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if running:
        yield dict(os.environ)
        return
    port, gcs = _free_ports(2)
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
    }
    start_with(environment)
    command = [
        _tool("ray"), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until_up(head, environment)
        yield environment
    finally:
        _end(head)


def submit(entrypoint: Sequence[str], environment: dict[str, str]) -> int:
    """Run `ray job submit` and follow its output; returns its exit code."""
    command = [
        _tool("ray"),
        "job",
        "submit",
        "--log-style=record",
        "--",
        sys.executable,
        *entrypoint,
    ]
    return subprocess.run(command, env=environment, check=False).returncode


def _tool(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait_until_up(head: subprocess.Popen, environment: dict[str, str]) -> None:
    request = urllib.request.Request(
        environment["RAY_API_SERVER_ADDRESS"] + "/api/version",
        headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if head.poll() is not None:
            raise ConfigError(f"the local Ray head ended at once (exit code {head.returncode})")
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise ConfigError(f"the local Ray head did not answer within {START_TIMEOUT_S} s")


def _end(head: subprocess.Popen) -> None:
    """End the head and everything it started, and nothing else."""
    try:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
