"""The record of a finished step: how a step's folder is written and read.

A step's folder appears whole or not at all: everything is written into a private folder, `record.json` last,
which is then renamed to the step's own. So a step whose record exists is done. Reading verifies the files
against the hashes in the record, so that nothing half-written or damaged is ever used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gift_ray.errors import DataError
from gift_ray.records.whole import remove_leftovers, written_whole

if TYPE_CHECKING:
    # Importing torch takes half of a report's start, and records are read without it.
    import torch

RECORD = "record.json"
PACKAGES = ("gift-ray", "torch", "diffusers", "transformers", "ray", "mlflow", "numpy", "pillow")


@dataclass(frozen=True)
class Score:
    """The score of several images by one metric, or of a whole set of images.

    Attributes:
        mean, stderr: mean and standard error over the `n` images that could be scored.
        unscored: the number of NaN values, which are excluded.
        worst: the value of the worst image.
        direction: +1 if higher values are better, -1 if lower ones are.
    """

    mean: float
    n: int
    stderr: float
    worst: float
    unscored: int
    direction: int

    @classmethod
    def of(cls, values: np.ndarray, direction: int) -> Score:
        """Aggregate one value per image, shape [N]; NaN means unscored."""
        scored = values[~np.isnan(values)]
        n = int(scored.size)
        if n == 0:
            return cls(math.nan, 0, math.nan, math.nan, int(values.size), direction)
        stderr = float(scored.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        worst = float(scored.min() if direction > 0 else scored.max())
        return cls(float(scored.mean()), n, stderr, worst, int(values.size) - n, direction)

    @classmethod
    def of_set(cls, value: float, stderr: float, n: int, direction: int) -> Score:
        """One value of a whole set of n images; NaN means unscored. No image of it is the worst."""
        scored = 0 if math.isnan(value) else n
        return cls(value, scored, stderr, math.nan, n - scored, direction)


@dataclass(frozen=True)
class Record:
    """What a finished step leaves: its identity, its provenance, its files and its result."""

    kind: str
    fingerprint: str
    identity: dict[str, Any]
    result: dict[str, Any]
    files: dict[str, str]
    provenance: dict[str, Any]


def canonical(value: Any) -> str:
    """The canonical JSON text of a value, with sorted keys and without spaces.

    Raises:
        TypeError: for a value outside dict, list, tuple, str, int, float, bool, None.
        ValueError: for NaN or infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Hex SHA-256 of the canonical text of a value."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class Draft:
    """A step's folder while it is being filled; `result` holds JSON values."""

    folder: Path
    result: dict[str, Any] = field(default_factory=dict)


@contextmanager
def step_written(folder: Path, identity: dict[str, Any], **extra: Any) -> Iterator[Draft]:
    """Give the block a private folder to fill; at its end add the record, and rename it to `folder`.

    If another process finished the same step meanwhile, its folder stands, and an error of the block is of no
    interest any more.

    Args:
        folder: the step's folder.
        identity: the step's kind, options, versions and inputs; hashed into its fingerprint.
        extra: provenance to add, such as the label.
    """
    started, cpu_started = time.time(), time.process_time()
    _reset_peak_memory()
    try:
        with written_whole(folder) as private:
            private.mkdir()
            draft = Draft(private)
            yield draft
            seconds = {
                "seconds": round(time.time() - started, 3),
                "cpu_seconds": round(time.process_time() - cpu_started, 3),
            }
            memory = {"peak_memory_bytes": peak_memory_bytes()}
            record = Record(
                kind=identity["kind"],
                fingerprint=digest(identity),
                identity=identity,
                result=draft.result,
                files=_hash_files(private),
                provenance=provenance() | seconds | memory | extra,
            )
            _write_json(private / RECORD, asdict(record))
    except Exception:
        if not is_done(folder):
            raise
    else:
        remove_leftovers(folder)


def read_record(folder: Path) -> Record:
    """The record of a finished step, after its files were verified.

    Raises:
        DataError: there is no record, or a file is missing or differs from its hash.
    """
    record = read_claim(folder)
    for name, expected in record.files.items():
        file = folder / name
        if not file.exists() or _hash_once(file, file.stat().st_mtime_ns) != expected:
            raise DataError(f"{file}: missing or damaged; delete {folder} to compute it anew")
    return record


def read_claim(folder: Path) -> Record:
    """The record of a finished step without verifying its files, for readers that need none of them.

    Raises:
        DataError: there is no readable record.
    """
    path = folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no readable record; delete the folder to compute it anew"
        ) from error


def is_done(folder: Path) -> bool:
    """Whether a step has ended: its folder, which appears in one rename, holds its record."""
    return (folder / RECORD).exists()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write nested dicts of tensors and JSON values, atomically, as safetensors (no pickle)."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    plain = _strip_tensors(state, [], tensors, set())
    text = json.dumps(plain)
    with written_whole(path) as private:
        save_file(tensors, private, metadata={"state": text, "checksum": _checksum(text, tensors)})


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        DataError: the file is damaged: cut short, or changed by as little as one bit.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    # A changed bit may also have renamed this entry, which is then missing.
    text = metadata.get("state", "")
    if metadata.get("checksum") != _checksum(text, tensors):
        raise DataError(f"{path}: damaged: the checksum differs")
    plain: dict[str, Any] = json.loads(text)
    for name, tensor in tensors.items():
        *parents, last = json.loads(name)
        place = plain
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = tensor
    return plain


def _checksum(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """CRC-32 of a state's content, types and shapes included, which finds accidental damage quickly."""
    import torch

    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        about = f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}"
        crc = zlib.crc32(about.encode(), crc)
        crc = zlib.crc32(tensors[name].cpu().reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def _strip_tensors(
    value: Any, keys: list[str], tensors: dict[str, torch.Tensor], storages: set[int]
) -> Any:
    """The state without its tensors; these are added to `tensors`, named by the JSON list of their keys."""
    import torch

    plain = {}
    for key, item in value.items():
        if isinstance(item, torch.Tensor):
            # Moved to the CPU first, since the GPU may have no room for a copy of an optimizer's state.
            own = item.detach().cpu().contiguous()
            place = own.untyped_storage().data_ptr()
            # safetensors refuses two tensors in one storage.
            tensors[json.dumps([*keys, str(key)])] = own.clone() if place in storages else own
            storages.add(place)
        elif isinstance(item, dict):
            plain[str(key)] = _strip_tensors(item, [*keys, str(key)], tensors, storages)
        else:
            plain[str(key)] = item
    return plain


def _reset_peak_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """The largest amount of memory that was in use at any time.

    This is the GPU's memory since its counter was reset. Without a GPU it is the memory of this process since
    it began, which includes its earlier work.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def provenance() -> dict[str, Any]:
    """With what a result was made: versions, commit, machine; without paths, host name or environment."""
    import torch

    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _write_json(path: Path, value: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of it."""
    with written_whole(path) as private:
        _write_json(private, value)


def _hash_files(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): file_hash(p) for p in files}


@lru_cache(maxsize=4096)
def _hash_once(file: Path, _modified: int) -> str:
    return file_hash(file)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@lru_cache(maxsize=1)
def _git_commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
