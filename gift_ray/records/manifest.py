"""The manifest of a released folder: the hash of each file, written last and verified whenever it is read.

It shows damaged and mixed-up files. Against somebody who can rewrite the manifest as well, compare the
manifest's own hash with the one that the registry keeps.
"""

from __future__ import annotations

import json
from pathlib import Path

from gift_ray.errors import ModelError
from gift_ray.records.record import file_hash, write_json_atomic

MANIFEST = "manifest.json"


def seal(folder: Path) -> str:
    """Write the manifest of a finished folder; returns its hash."""
    write_json_atomic(
        folder / MANIFEST, {name: file_hash(folder / name) for name in _files(folder)}
    )
    return file_hash(folder / MANIFEST)


def verify(folder: Path) -> str:
    """Verify every file of a folder against its manifest; returns the hash of the manifest.

    Raises:
        ModelError: no readable manifest; files that are missing, changed or not named in it.
    """
    path = folder / MANIFEST
    try:
        expected: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: no readable manifest; export the model anew") from error
    found = _files(folder)
    changed = [n for n in found if n in expected and file_hash(folder / n) != expected[n]]
    mistakes = {
        "missing": expected.keys() - set(found),
        "changed": set(changed),
        "not in the manifest": set(found) - expected.keys(),
    }
    lines = [f"{folder / n}: {what}" for what, names in mistakes.items() for n in sorted(names)]
    if lines:
        raise ModelError(*lines)
    return file_hash(path)


def _files(folder: Path) -> list[str]:
    """Names of the files below a folder, the manifest's own and hidden ones left out."""
    files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    return sorted(f.as_posix() for f in files if f.as_posix() != MANIFEST and f.parts[-1][0] != ".")
