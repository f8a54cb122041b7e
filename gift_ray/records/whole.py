"""Writes files and folders so that they appear whole or not at all.

They are written under a private name beside their own, and renamed at the end, which a file system does in
one step. So a reader finds the old content or the new one, and never half of it.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Give the block a private path to write a file or a folder to; rename it to `path` when the block ends.

    If the block raises, the private path is removed. An existing file at `path` is replaced.

    Raises:
        OSError: there is a folder with content at `path` already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The private name ends like the real one, since libraries tell the format of a file by its suffix.
    private = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        yield private
        os.replace(private, path)
    finally:
        _remove(private)


def remove_leftovers(path: Path) -> None:
    """Remove the private files that killed processes left beside `path`.

    A process that is still writing such a file will fail.
    """
    for private in path.parent.glob(f".????????.{path.name}"):
        _remove(private)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
