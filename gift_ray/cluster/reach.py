"""Asks whether there is a Ray cluster at an address, before Ray connects.

Ray itself would try for minutes and then answer with a traceback.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

import grpc

from gift_ray.errors import ConfigError

PATIENCE_S = 15.0
ADVICE = "start the cluster, correct the address, or unset RAY_ADDRESS to run on this machine alone"


def require_cluster(address: str) -> None:
    """Check that a Ray head answers at `host:port` or `ray://host:port`.

    `local` and `auto` are not checked, since Ray itself finds the address then.

    Raises:
        ConfigError: nothing answers within PATIENCE_S seconds, or what answers is not Ray.
    """
    if address in ("local", "auto"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise ConfigError(f"RAY_ADDRESS: {address!r} is no host:port; {ADVICE}")
    try:
        socket.create_connection((host, port), timeout=PATIENCE_S).close()
        # With TLS the check would need Ray's own keys, so it ends here.
        if os.environ.get("RAY_USE_TLS", "0") != "1":
            _require_grpc(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except grpc.FutureTimeoutError as error:
        raise ConfigError(
            f"RAY_ADDRESS: what answers at {address!r} is no Ray head (its port is 6379 unless `ray start "
            f"--port` says otherwise; the dashboard's 8265 is another); {ADVICE}"
        ) from error
    except OSError as error:
        raise ConfigError(f"RAY_ADDRESS: nobody at {address!r} ({error}); {ADVICE}") from error


def _require_grpc(place: str) -> None:
    with grpc.insecure_channel(place) as channel:
        grpc.channel_ready_future(channel).result(timeout=PATIENCE_S)
