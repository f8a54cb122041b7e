"""A local folder of images: captions from metadata.jsonl (imagefolder), from a .txt beside an image,
or one caption for all. Files that are not images by name are ignored; images that can't be read are
errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from gift_ray.data.examples import SUFFIXES, image_files, read_image
from gift_ray.errors import DataError
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.records.record import file_hash
from gift_ray.training.diffusion import Seeds


class Folder(Source):
    """Every image directly in `path`, in natural order of the file names."""

    version: ClassVar[int] = 1

    path: str = Field(description="the folder; relative to the working directory of the driver")
    caption: str | None = Field(None, description="for images that have no caption of their own")

    @field_validator("path")
    @classmethod
    def _is_folder(cls, path: str) -> str:
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"{path!r} is not a folder; give one that holds images")
        return str(folder)

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        files = image_files(Path(self.path))
        if not files:
            raise DataError(f"{self.path}: holds no image ({', '.join(SUFFIXES)}); add some")
        captions = _metadata(Path(self.path), {file.name for file in files})
        return [SourceImage(read_image(f), self._caption(f, captions), f.name) for f in files]

    def content(self) -> Any:
        folder = Path(self.path)
        sidecars = [p for p in folder.iterdir() if p.suffix in {".txt", ".jsonl"}]
        return {p.name: file_hash(p) for p in sorted([*image_files(folder), *sidecars])}

    def identity(self) -> dict[str, Any]:
        # The same images under another path are the same source.
        return {key: value for key, value in super().identity().items() if key != "path"}

    def _caption(self, file: Path, captions: dict[str, str]) -> str:
        sidecar = file.with_suffix(".txt")
        if file.name in captions:
            return captions[file.name]
        if sidecar.exists() and (text := _read_text(sidecar).strip()):
            return text
        if self.caption is not None:
            return self.caption
        raise DataError(
            f"{file}: has no caption; add {sidecar.name}, a line in metadata.jsonl, or source.caption"
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error


def _metadata(folder: Path, names: set[str]) -> dict[str, str]:
    """file_name -> text of an imagefolder's metadata.jsonl; {} without one."""
    path = folder / "metadata.jsonl"
    if not path.exists():
        return {}
    captions: dict[str, str] = {}
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, text = str(row["file_name"]), (row.get("text") or row["caption"]).strip()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f'{path}:{number}: write {{"file_name": ..., "text": ...}}') from error
        if name not in names:
            raise DataError(f"{path}:{number}: names {name!r}, which is not an image of the folder")
        captions[name] = text
    return captions
