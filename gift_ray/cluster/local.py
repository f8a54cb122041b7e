"""Submits jobs to Ray: to a running cluster, or to a local one that ends with the job (`make demo`)."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gift_ray.cluster import start_with
from gift_ray.errors import ConfigError

START_TIMEOUT_S = 120
# Ray's own limit, which Ray checks only after the upload.
UPLOAD_LIMIT = 100 * 2**20


@contextmanager
def local_head() -> Iterator[dict[str, str]]:
    """The environment to reach a Ray cluster: a running one, else a head that ends with the block.

    The head listens on loopback only, with a token of its own.

    Raises:
        ConfigError: the head does not come up.
    """
    if joins_running_cluster():
        yield dict(os.environ)
        return
    port, gcs, agent = _free_ports(3)
    # The head has a folder of its own: in a shared one Ray's jobs connect to the newest head of the machine,
    # even to another user's. It is in /tmp, as Ray's own is, because the path of a socket below it may have
    # 100 characters at most, and the temporary folders of macOS have longer paths.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        # A node that ends waits half a minute for its work to move to other nodes; there are none here.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    start_with(environment)
    command = [
        _tool("ray"), "start", "--head", "--block", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--dashboard-host=127.0.0.1", f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={agent}", f"--temp-dir={folder}",
    ]  # fmt: skip
    head = subprocess.Popen(
        command, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # The head answers before the agent that starts its jobs is ready.
        _wait_until_up(head, environment, f"http://127.0.0.1:{port}/api/version")
        _wait_until_up(head, environment, f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        yield environment
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def joins_running_cluster() -> bool:
    """Whether the environment names a cluster to submit to."""
    return bool(os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS"))


def submit(entrypoint: Sequence[str], environment: dict[str, str], folder: Path | None) -> int:
    """Run `ray job submit` and follow its output; returns its exit code.

    Args:
        folder: the folder that is uploaded, in which the cluster runs the job; None if the cluster was
            started in it.

    Raises:
        ConfigError: the folder is more than Ray uploads.
    """
    command = [_tool("ray"), "job", "submit", "--log-style=record"]
    python = sys.executable
    if folder:
        require_uploadable(folder)
        command += ["--working-dir", str(folder)]
        # The cluster's machines have their own Python.
        python = "python"
    command += ["--", python, *entrypoint]
    return subprocess.run(command, env=environment, check=False).returncode


def require_uploadable(folder: Path, limit: int = UPLOAD_LIMIT) -> None:
    """Pack a folder by Ray's own rules, and look at its size.

    Raises:
        ConfigError: it is larger than `limit` bytes.
    """
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    with tempfile.TemporaryDirectory() as place:
        package = Path(place) / "package.zip"
        create_package(
            str(folder), package, include_gitignore=True,
            excludes=get_runtime_env_default_excludes(), logger=logging.getLogger("ray.upload"),
        )  # fmt: skip
        size = package.stat().st_size
        if size <= limit:
            return
        with zipfile.ZipFile(package) as archive:
            files = sorted(archive.infolist(), key=lambda f: -f.compress_size)
    largest = ", ".join(f"{f.filename} ({f.compress_size / 2**20:.1f} MiB)" for f in files[:3])
    raise ConfigError(
        f"{folder}: packs to {size / 2**20:.1f} MiB, and Ray uploads at most {limit / 2**20:.1f}; list "
        f"in .rayignore what the job does not read; the largest files: {largest}"
    )


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


def _wait_until_up(head: subprocess.Popen[bytes], environment: dict[str, str], url: str) -> None:
    request = urllib.request.Request(
        url,
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


def _end(head: subprocess.Popen[bytes]) -> None:
    """End the head and everything it started, and nothing else."""
    try:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=15)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
