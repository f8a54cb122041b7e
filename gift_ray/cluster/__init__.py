"""Running plans on Ray, and searching with Ray Tune. The only package that imports ray."""

import os
import secrets
import sys


def _choose_authentication() -> None:
    """A cluster of our own answers to this run's token alone.

    Ray reads these variables when it is imported, so they are set before that. Inside a job, in a
    worker, or with $RAY_ADDRESS the cluster's own choice stands.
    """
    joins = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if joins or "ray" in sys.modules:
        return
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


_choose_authentication()
