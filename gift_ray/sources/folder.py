"""A local folder of images.

Captions come from metadata.jsonl or metadata.csv (as in the imagefolder format), from a .txt file beside each
image, or from one caption for all. An image that can't be read is an error. Other files of the folder that
are not used are listed by `leftovers`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator

from gift_ray.data.image_files import SUFFIXES, image_files, in_short, read_image
from gift_ray.errors import DataError
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.records.record import file_hash
from gift_ray.training.diffusion import Seeds

METADATA = ("metadata.jsonl", "metadata.csv")
# Files that operating systems leave in folders, besides hidden ones.
OF_THE_SYSTEM = {"thumbs.db", "desktop.ini"}


class Folder(Source):
    """Every image directly in `path`, in natural order of the file names."""

    version: ClassVar[int] = 1

    path: str = Field(description="the folder; relative to the working directory of the driver")
    caption: str | None = Field(
        None,
        min_length=1,
        pattern=r"\S",
        description="for images that have no caption of their own",
    )

    @field_validator("path")
    @classmethod
    def _is_folder(cls, path: str) -> str:
        folder = Path(path).expanduser().resolve()
        if not folder.is_dir():
            raise ValueError(f"{path!r} is not a folder; give one that holds images")
        return str(folder)

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        files = self._files()
        captions = self._captions(files)
        missing = [file.name for file in files if file not in captions]
        if missing and self.caption is None:
            raise DataError(
                f"{self.path}: {in_short(missing)}: no caption; add a .txt of the same name, a line in "
                "metadata.jsonl, or source.caption"
            )
        return [
            SourceImage(read_image(f), captions.get(f, self.caption or ""), f.name) for f in files
        ]

    def content(self) -> Any:
        folder = Path(self.path)
        beside = [*_metadata_files(folder), *_sidecars(folder).values()]
        return {p.name: file_hash(p) for p in sorted([*image_files(folder), *beside])}

    def identity(self) -> dict[str, Any]:
        # The path is no part of the identity: the same images elsewhere are the same source.
        return {key: value for key, value in super().identity().items() if key != "path"}

    def leftovers(self) -> list[str]:
        folder, files = Path(self.path), self._files()
        own = self._captions(files)
        stems = {file.stem for file in files}
        used = {*files, *_metadata_files(folder)}
        used |= {path for stem, path in _sidecars(folder).items() if stem in stems}
        shown = [p for p in folder.iterdir() if not p.name.startswith(".")]
        unused = [
            p.name + "/" * p.is_dir()
            for p in shown
            if p not in used and p.name.lower() not in OF_THE_SYSTEM
        ]
        without = [file.name for file in files if file not in own] if own else []
        lines = []
        if unused:
            lines.append(f"{folder}: not used: {in_short(unused)}")
        if without:
            lines.append(
                f"{folder}: {in_short(without)}: no caption of their own, others have one; "
                f"captioned {self.caption!r}"
            )
        return lines

    def _files(self) -> list[Path]:
        folder = Path(self.path)
        if files := image_files(folder):
            return files
        inside = [p.name for p in folder.iterdir() if p.is_dir() and image_files(p)]
        where = (
            f"; there are some in {in_short(inside)}: give that folder" if inside else "; add some"
        )
        raise DataError(f"{folder}: holds no image ({', '.join(SUFFIXES)}){where}")

    def _captions(self, files: list[Path]) -> dict[Path, str]:
        """The images' own captions. Metadata have precedence over a .txt; an empty .txt is no caption."""
        folder = Path(self.path)
        rows, sidecars = _metadata(folder, {file.name for file in files}), _sidecars(folder)
        found = {}
        for file in files:
            text = rows.get(file.name)
            if text is None and file.stem in sidecars:
                text = _read_text(sidecars[file.stem]).strip()
            if text:
                found[file] = text
        return found


def _sidecars(folder: Path) -> dict[str, Path]:
    """The .txt files of a folder by their stem; the suffix may be in upper case."""
    found = [p for p in folder.iterdir() if p.suffix.lower() == ".txt" and p.is_file()]
    return {path.stem: path for path in sorted(found)}


def _metadata_files(folder: Path) -> list[Path]:
    return [folder / name for name in METADATA if (folder / name).exists()]


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from error


def _metadata(folder: Path, names: set[str]) -> dict[str, str]:
    """The captions in the metadata of an imagefolder, by file name; {} if there are no metadata."""
    files = _metadata_files(folder)
    if len(files) > 1:
        raise DataError(f"{folder}: has {' and '.join(METADATA)}; remove one of them")
    captions: dict[str, str] = {}
    for path in files:
        rows = _json_rows(path) if path.suffix == ".jsonl" else _csv_rows(path)
        for number, row in rows:
            name, text = _entry(row, f"{path}:{number}")
            if name not in names:
                raise DataError(
                    f"{path}:{number}: names {name!r}, which is not an image of the folder"
                )
            if captions.get(name, text) != text:
                raise DataError(f"{path}:{number}: gives {name!r} a second caption; remove one")
            captions[name] = text
    return captions


def _entry(row: Any, where: str) -> tuple[str, str]:
    """(file_name, text) of a row of metadata."""
    try:
        name, text = row["file_name"], row.get("text") or row["caption"]
        if not (name.strip() and text.strip()):
            raise ValueError("blank")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f'{where}: write {{"file_name": ..., "text": ...}}, both not blank (in a .csv: columns of '
            "these names)"
        ) from error
    return name, text.strip()


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, row) of each line that is not blank; a row that can't be read is None."""
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(_read_text(path)))
    for row in reader:
        yield reader.line_num, row
