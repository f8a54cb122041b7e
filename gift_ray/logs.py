"""Where the package's log goes: always into the study's folder, and to standard error if asked for.

Modules write to `logging.getLogger(__name__)` at level INFO, in whole sentences: what begins, what it waits
for, how far it is. The driver logs to the study's folder once it connects to Ray (`cluster/session.py`), a
worker when it begins a step (`cluster/run.py`, `cluster/train.py`). Every process has its own file in
`logs/`, whose last line says where that process is: on a file system that nodes share, several writers to
one file would lose lines.
"""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from contextlib import suppress
from pathlib import Path

FOLDER = "logs"
DRIVER = "driver.log"
# Set by `--verbose`; workers of a cluster that the job starts inherit it.
VERBOSE = "GIFT_RAY_VERBOSE"
# How often a loop says how far it is.
EVERY_S = 30.0


def to_stderr() -> None:
    """Show the log on standard error as well, in this process and in those that it starts."""
    os.environ[VERBOSE] = "1"
    _add(logging.StreamHandler(sys.stderr), "stderr")


def to_study(study_dir: Path, name: str = DRIVER) -> Path:
    """Append this process's log to a file in the study's `logs` folder; returns the file.

    A process logs to one study at a time: the file of an earlier one is closed.
    """
    path = study_dir / FOLDER / name
    # If the folder can't be written, the step that writes its result there reports it.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    _add(logging.FileHandler(path, encoding="utf-8", delay=True), "study")
    return path


def of_worker(study_dir: Path) -> Path:
    """`to_study` for a Ray worker, whose file is named for its machine and process."""
    if os.environ.get(VERBOSE):
        to_stderr()
    return to_study(study_dir, f"worker-{platform.node()}-{os.getpid()}.log")


def _add(handler: logging.Handler, name: str) -> None:
    """Give the package's logger a handler in place of the one of this name."""
    logger = logging.getLogger("gift_ray")
    for old in [old for old in logger.handlers if old.name == name]:
        logger.removeHandler(old)
        old.close()
    handler.name = name
    # As in `2026-01-31T12:00:00Z gift_ray.training.loop: 40 of 100 training steps are done.`, in UTC.
    line = logging.Formatter("%(asctime)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    line.converter = time.gmtime
    handler.setFormatter(line)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Other libraries' handlers on the root logger would repeat every line.
    logger.propagate = False


class Pace:
    """Says how far a loop is: at once, and then every `EVERY_S` seconds.

    Args:
        logger: of the module that loops.
        message: with `{done}` and `{total}`, a whole sentence.
    """

    def __init__(self, logger: logging.Logger, message: str, total: int) -> None:
        self._logger, self._message, self._total = logger, message, total
        self._next = 0.0

    def tell(self, done: int) -> None:
        """Report that `done` rounds of the loop have ended, if it is time to."""
        if time.monotonic() >= self._next or done == self._total:
            self._next = time.monotonic() + EVERY_S
            self._logger.info(self._message.format(done=done, total=self._total))
