"""Storage: where the nodes of a cluster find each other's finished steps.

It is either a disk that all nodes mount, or an object store (S3), from which each node copies what it reads.
In an object store each attempt at a step has a folder of its own below the step's name; the object `done`,
which is written last, names the attempt that counts. Since an object appears whole or not at all, so does a
step, and the files of two nodes that finish the same step do not mix.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pyarrow import fs

from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed, ConfigError, DataError
from gift_ray.records.locks import disk_lock, store_lock
from gift_ray.records.record import is_done, read_record
from gift_ray.records.whole import written_whole

logger = logging.getLogger(__name__)

DONE = "done"
# Large enough to fail on a full disk, which may still have room for small files.
PROBE_BYTES = 2**20


def storage_of(cluster: ClusterConfig, study_dir: Path) -> Storage:
    """The configured storage: `cluster.storage_path`, else the disk that the study's folder is on."""
    url = cluster.storage_path
    return ObjectStore(url, study_dir) if url else Storage(study_dir)


def require_writable(folder: Path) -> None:
    """Check that a folder can be made and a file of some size written there; leaves nothing behind.

    Raises:
        ConfigError: the folder can't be written, or the disk is full.
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with probe.open("wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"output_dir: {folder} can't be written ({error.strerror}); give a folder that can, or make room"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()


class Storage:
    """A disk that all nodes mount under the same path, so that nothing has to be sent or fetched.

    Args:
        study_dir: the study's folder on this node.
    """

    def __init__(self, study_dir: Path) -> None:
        self.study_dir = study_dir

    @property
    def filesystem(self) -> fs.FileSystem | None:
        """Where Ray keeps its own files of the study; None: on the disk."""
        return None

    def on_node(self) -> Storage:
        """The same storage for use on this node, after another node has sent the object here."""
        return self

    def path(self, name: str) -> str:
        """The path of a folder of the study for Ray, on `filesystem`."""
        return str(self.study_dir / name)

    def fetch_step(self, folder: Path) -> bool:
        """Make a finished step readable here; returns whether it is finished."""
        return is_done(folder)

    def send_step(self, folder: Path) -> None:
        """Make a step that was finished here readable everywhere."""

    def fetch(self, path: Path) -> None:
        """Replace a file or folder of the study by the stored one, if there is one."""

    def send(self, path: Path) -> None:
        """Store a file of the study."""

    def lock(
        self, name: str, cancelled: Callable[[], bool] = lambda: False
    ) -> AbstractContextManager[None]:
        """Within the block no other process of any node holds the lock of this name.

        Args:
            cancelled: ends the waiting for it, with ClusterFailed.
        """
        return disk_lock(self.study_dir / "locks" / f"{name}.lock", cancelled)

    def delete(self, path: Path) -> None:
        """Delete a file or folder of the study, if it exists."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class ObjectStore(Storage):
    """For nodes that share no disk: steps, checkpoints and trials are exchanged through an object store.

    Args:
        url: as pyarrow reads it, `s3://bucket/folder`, with `?endpoint_override=host:port&scheme=http`
            for stores other than Amazon's. Credentials come from each node's environment.
        study_dir: the study's folder on this node.

    Every method raises ClusterFailed if the store does not answer as it should.
    """

    def __init__(self, url: str, study_dir: Path) -> None:
        super().__init__(study_dir)
        self.url = url

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the connection, which belongs to this process."""
        return {"url": self.url, "study_dir": self.study_dir}

    @cached_property
    def _place(self) -> tuple[fs.FileSystem, str]:
        with self._answering():
            filesystem, root = fs.FileSystem.from_uri(self.url)
        return filesystem, f"{root}/{self.study_dir.name}"

    @property
    def filesystem(self) -> fs.FileSystem:
        return self._place[0]

    def on_node(self) -> ObjectStore:
        # The driver's folder may not exist here, or may not be writable.
        home = os.environ.get("GIFT_RAY_HOME")
        cache = (Path(home) if home else Path.home() / "gift-ray") / "cache"
        return ObjectStore(self.url, cache / self.study_dir.name)

    def path(self, name: str) -> str:
        return f"{self._place[1]}/{name}"

    def fetch_step(self, folder: Path) -> bool:
        if is_done(folder):
            return True
        with self._answering():
            attempt = self._done(folder.name)
            if attempt is None:
                return False
            logger.info("Fetching %s from the object store.", folder.name)
            try:
                with written_whole(folder) as private:
                    self._copy_here(f"steps/{folder.name}/{attempt}", private)
                    read_record(private)
            except DataError as error:
                raise ClusterFailed(
                    f"cluster.storage_path: {self.path(f'steps/{folder.name}')} is damaged; delete it to "
                    "compute it anew"
                ) from error
            except OSError:
                # Another process of this node may have fetched it first.
                if not is_done(folder):
                    raise
        return True

    def send_step(self, folder: Path) -> None:
        with self._answering():
            if self._done(folder.name) is not None:
                return
            logger.info("Sending %s to the object store.", folder.name)
            attempt = uuid.uuid4().hex[:8]
            there = self.path(f"steps/{folder.name}/{attempt}")
            fs.copy_files(str(folder), there, fs.LocalFileSystem(), self.filesystem)
            with self.filesystem.open_output_stream(
                self.path(f"steps/{folder.name}/{DONE}")
            ) as file:
                file.write(attempt.encode())

    def fetch(self, path: Path) -> None:
        with self._answering():
            there = self._info(path)
            if there.type == fs.FileType.Directory:
                self._copy_here(self._name(path), path)
            elif there.is_file:
                with written_whole(path) as private:
                    fs.copy_files(there.path, str(private), self.filesystem, fs.LocalFileSystem())

    def send(self, path: Path) -> None:
        with self._answering():
            fs.copy_files(
                str(path), self.path(self._name(path)), fs.LocalFileSystem(), self.filesystem
            )

    @contextmanager
    def lock(self, name: str, cancelled: Callable[[], bool] = lambda: False) -> Iterator[None]:
        with ExitStack() as held:
            with self._answering():
                place = self.path(f"locks/{name}")
                held.enter_context(store_lock(self.filesystem, place, cancelled))
            yield

    def delete(self, path: Path) -> None:
        super().delete(path)
        with self._answering():
            there = self._info(path)
            if there.type == fs.FileType.Directory:
                self.filesystem.delete_dir(there.path)
            elif there.is_file:
                self.filesystem.delete_file(there.path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.study_dir).as_posix()

    def _info(self, path: Path) -> fs.FileInfo:
        return self.filesystem.get_file_info(self.path(self._name(path)))

    def _done(self, step: str) -> str | None:
        """The attempt at a step that counts, if it is finished."""
        with (
            suppress(FileNotFoundError),
            self.filesystem.open_input_stream(self.path(f"steps/{step}/{DONE}")) as file,
        ):
            attempt: str = file.read().decode()
            return attempt
        return None

    def _copy_here(self, name: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self.path(name), str(folder), self.filesystem, fs.LocalFileSystem())

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ClusterFailed(
                f"cluster.storage_path: {self.url}: {reason}; see to it, then run again to continue"
            ) from error
