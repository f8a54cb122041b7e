"""Running plans on Ray, and searching with Ray Tune. The only package that imports ray."""

import os
import secrets
import sys
from collections.abc import MutableMapping

# Settings that every process of the cluster reads:
# - Train polls its workers four times a second (default: every 2 s), and a run may queue a week for its
#   workers (default: a minute), since each time that Ray gives up costs one of the retries, which are meant
#   for lost workers;
# - idle processes are kept for five minutes (default: 1 s), since they hold loaded models;
# - PL_DISABLE_FORK is set by Tune for its trials; set everywhere, steps of trials and of the driver have
#   equal environments and can use each other's processes;
# - Ray starts no processes in advance: they would lack these settings and never be used;
# - a task for which its node has no memory is retried three times (default: without end).
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "604800",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "PL_DISABLE_FORK": "1",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "300000",
    "RAY_task_oom_retries": "3",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def start_with(environment: MutableMapping[str, str]) -> None:
    """Add our settings to the environment of a process to come; what is set already stands."""
    for name, value in ENVIRONMENT.items():
        environment.setdefault(name, value)


def _choose_authentication() -> None:
    """Let a cluster that this process starts accept this run's token only.

    Ray reads these variables when it is imported, so they are set before that. Inside a job, in a
    worker, or with $RAY_ADDRESS the cluster's own choice stands.
    """
    joins = "RAY_ADDRESS" in os.environ or "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if joins or "ray" in sys.modules:
        return
    if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


_choose_authentication()
# Some are read when Ray is imported.
start_with(os.environ)
