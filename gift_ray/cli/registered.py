"""Show what is registered: every version with its scores and aliases.

gift-ray models [--tracking-uri URI]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gift_ray.cli import console
from gift_ray.errors import ConfigError
from gift_ray.tracking.registry import registered
from gift_ray.tracking.store import shown, sqlite_uri


def main(arguments: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    given = arguments.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    local = [sqlite_uri(path) for path in sorted(Path("runs").glob("*/mlflow.db"))]
    uris = [given] if given else local
    if not uris:
        raise ConfigError(
            "--tracking-uri: nothing is tracked in runs/*/mlflow.db; give the server's address, or go "
            "where the studies are"
        )
    for uri in uris:
        # Readers of the table must not learn the password of the server.
        console.console.print(console.table(f"registered in {shown(uri)}", registered(uri)))
    return console.OK
