"""Paths: relative ones, links, and names that only look like one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from battery import Case, study
from kind_init import pictures

from gift_ray.cli.attack import against
from gift_ray.models.checkpoints import locate_checkpoint

TITLE = "Relative paths and links"


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def source_of(folder: Path, path: str) -> Any:
    pictures(folder / "cats", 4)
    source = {"name": "folder", "path": path, "caption": "a cat"}
    with working_in(folder):
        config = study(folder, {"concepts.malicious.0.source": source})
    return config.concepts.malicious[0].source.options["path"]


def relative_source(folder: Path) -> None:
    assert source_of(folder, "./cats") == str(folder / "cats")


def relative_model(folder: Path) -> None:
    from gift_ray.models.builtin import BUNDLE

    (folder / "link").symlink_to(BUNDLE / "pipeline")
    (folder / "judge").symlink_to(BUNDLE / "clip")
    with working_in(folder):
        config = study(
            folder,
            {"model.pretrained_model_name_or_path": "link", "evaluation.encoders.clip": "./judge"},
        )
        attacked = against(config, "link")
    assert config.model.pretrained_model_name_or_path == str(folder / "link")
    assert config.evaluation.encoders.clip == str(folder / "judge")
    assert attacked.defense.options["path"] == str(folder / "link")
    assert attacked.defense.label == "link"


def linked_checkpoint(folder: Path) -> None:
    (folder / "blobs").mkdir()
    (folder / "blobs" / "0123abcd").write_bytes(b"")
    (folder / "unet.safetensors").symlink_to(folder / "blobs" / "0123abcd")
    assert locate_checkpoint(str(folder / "unet.safetensors")).suffix == ".safetensors"


def hub_id_stays(folder: Path) -> None:
    from gift_ray.config.absolute import with_absolute_paths

    raw = {"model": {"pretrained_model_name_or_path": "owner/name"}, "name": "a"}
    assert with_absolute_paths(raw) == raw


CASES = [
    Case("a source with a relative folder", relative_source, outcome="that folder, whoever reads it where"),
    Case("a relative model, encoder and `--model`", relative_model,
         outcome="absolute, links by their own name"),
    Case("a checkpoint that is a link to a file without a suffix, as in the hub's cache", linked_checkpoint,
         outcome="read by the link's suffix"),
    Case("a hub id", hub_id_stays, outcome="stays a hub id"),
]  # fmt: skip
