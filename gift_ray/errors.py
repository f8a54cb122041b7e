"""Errors that a user can act on.

A GiftError is printed as its lines, without a traceback; any other exception is a mistake in this package and
keeps its traceback.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

# No room, over quota, over the process's limit: nothing more can be written.
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class GiftError(Exception):
    """A user's mistake, or a state of the world that the user can change.

    Args:
        mistakes: one line each, naming the field or file, the value, what is allowed and what to do.
    """

    exit_code = 2

    def __init__(self, *mistakes: str) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes

    def __reduce__(self) -> tuple[type, tuple[str, ...]]:
        # Ray ships exceptions between processes: rebuild from the lines, not from the joined text.
        return (type(self), self.mistakes)


class ConfigError(GiftError):
    """The study's configuration can't be run as written."""


class DataError(GiftError):
    """Images that can't be read, are too few, or would leak from the defense to the attack."""


class ModelError(GiftError):
    """A base model, encoder or checkpoint that can't be found, loaded or trusted."""


class UnitFailed(GiftError):
    """A unit failed for its own reason (non-finite loss, out of memory): an answer, never retried."""

    exit_code = 1


class ClusterFailed(GiftError):
    """The cluster failed a step: its storage is full, memory ran out, or workers were lost too often.

    What is finished stays, and the same command continues the study.
    """

    exit_code = 1


class GateRefused(GiftError):
    """No model met the gate."""

    exit_code = 3


@contextmanager
def any_failure_is(kind: type[GiftError], what: str) -> Iterator[None]:
    """Turn whatever a library raises within the block into one line: `what`, and the library's own message.

    This is for libraries that read files of others, whose errors are of many classes. Our own errors pass.
    """
    try:
        yield
    except GiftError:
        raise
    except Exception as error:
        detail = " ".join(str(error).split())[:300]
        raise kind(f"{what}: {detail}") from error


def is_storage_full(error: Exception) -> bool:
    """Whether a write failed for want of room. Libraries written in Rust say so in words alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)
