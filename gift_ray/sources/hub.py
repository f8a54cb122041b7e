"""Images of a Hugging Face dataset, streamed row by row.

The dataset is a hub id at a commit, a local folder or file (parquet, WebDataset tar, imagefolder), or the URL
of a WebDataset tar. Sensitive datasets such as NSFW-T2I are read with it, so no image is shown and no message
holds a caption.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from gift_ray.data.image_files import read_image
from gift_ray.errors import DataError
from gift_ray.logs import Pace
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Source, SourceImage
from gift_ray.records.record import file_hash
from gift_ray.training.diffusion import Seeds

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Operator = Literal["==", "!=", "<", "<=", ">", ">="]
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class Hub(Source):
    """The first `max_images` rows that meet every filter.

    Columns inside a column are named with a dot: `json.label` of a WebDataset.
    """

    version: ClassVar[int] = 1
    sensitive: ClassVar[bool] = True

    dataset_name: str = Field(
        min_length=1, description="hub id, local folder or file, URL of a tar"
    )
    dataset_config_name: str | None = None
    revision: str | None = Field(
        None, pattern="^[0-9a-f]{40}$", description="a hub id's commit: a branch moves"
    )
    data_files: str | None = Field(None, description="file or pattern inside the dataset")
    split: str = "train"
    image_column: str = "image"
    caption_column: str = "text"
    caption: str | None = Field(None, description="of every image; instead of caption_column")
    filters: tuple[tuple[str, Operator, bool | int | float | str], ...] = Field(
        (), description="[column, operator, value], as pyarrow and pandas filter"
    )
    max_images: int = Field(gt=0)

    @field_validator("dataset_name")
    @classmethod
    def _absolute(cls, name: str) -> str:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name

    @model_validator(mode="after")
    def _can_be_read(self) -> Hub:
        if find_spec("datasets") is None:
            raise ValueError("needs the datasets package: pip install 'gift-ray[hub]'")
        if self.data_files and (self._is_url or (self._local and self._local.is_file())):
            raise ValueError(f"data_files: {self.dataset_name!r} is one file already; leave it out")
        if self._local is None and not self._is_url:
            if self.dataset_name.startswith((".", "/", "~")):
                raise ValueError(f"dataset_name: {self.dataset_name!r} is no file or folder")
            if self.revision is None:
                raise ValueError(
                    f"revision is missing: give the commit of {self.dataset_name!r} (40 hex digits), so "
                    "that the study can be repeated"
                )
        return self

    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        found: list[SourceImage] = []
        logger.info("Reading up to %d images of %s.", self.max_images, self.dataset_name)
        pace = Pace(logger, "{done} of {total} images are read.", self.max_images)
        for index, row in enumerate(self._rows()):
            origin = f"{self.dataset_name} row {index}"
            if all(_holds(row, *condition, origin) for condition in self.filters):
                image = read_image(self._picture(row, origin), origin)
                found.append(SourceImage(image, self._caption(row, origin), origin))
            pace.tell(len(found))
            if len(found) == self.max_images:
                break
        if not found:
            raise DataError(f"{self.dataset_name}: no row meets the filters; widen source.filters")
        return found

    def content(self) -> Any:
        if self._local is None:
            return None
        files = sorted(p for p in self._local.rglob("*") if p.is_file()) or [self._local]
        return {p.relative_to(self._local).as_posix(): file_hash(p) for p in files}

    def identity(self) -> dict[str, Any]:
        # The path is no part of the identity: the same files elsewhere are the same source.
        options = super().identity()
        return options if self._local is None else options | {"dataset_name": "local"}

    @property
    def _local(self) -> Path | None:
        path = Path(self.dataset_name)
        return path if path.is_absolute() and path.exists() else None

    @property
    def _is_url(self) -> bool:
        return self.dataset_name.startswith(("http://", "https://"))

    def _rows(self) -> Iterator[Row]:
        """The rows in the dataset's order. Images are bytes or paths, which `read_image` decodes."""
        from datasets import load_dataset

        where: dict[str, Any] = {"path": self.dataset_name, "data_files": self.data_files}
        if self._is_url:
            where = {"path": "webdataset", "data_files": self.dataset_name}
        elif self._local is not None and self._local.is_file():
            where = {"path": str(self._local.parent), "data_files": self._local.name}
        try:
            stream = load_dataset(
                **where,
                name=self.dataset_config_name,
                revision=self.revision,
                split=self.split,
                streaming=True,
            )
            yield from stream.decode(False)
        except Exception as error:
            detail = " ".join(str(error).split())[:200]
            raise DataError(
                f"{self.dataset_name}: can't be read as a dataset ({type(error).__name__}: {detail}); "
                "check the name, the split and the network, or give local files"
            ) from error

    def _picture(self, row: Row, origin: str) -> bytes | Path:
        value = _column(row, self.image_column, origin)
        content = value.get("bytes") if isinstance(value, dict) else value
        if isinstance(content, bytes):
            return content
        # A path in a row is read only if it lies inside the folder that the user named.
        path = (
            Path(value["path"]).resolve() if isinstance(value, dict) and value.get("path") else None
        )
        if path and self._local and path.is_relative_to(self._local):
            return path
        raise DataError(f"{origin}: column {self.image_column!r} holds no image; set image_column")

    def _caption(self, row: Row, origin: str) -> str:
        if self.caption is not None:
            return self.caption
        text = _column(row, self.caption_column, origin)
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{origin}: column {self.caption_column!r} holds no text; set caption_column or caption"
            )
        return text.strip()


def _holds(row: Row, column: str, how: str, value: Any, origin: str) -> bool:
    """Whether a row meets one condition; an empty cell meets none."""
    cell = _column(row, column, origin)
    try:
        return cell is not None and bool(OPERATORS[how](cell, value))
    except TypeError as error:
        raise DataError(
            f"{origin}: source.filters can't hold {column} ({type(cell).__name__}) {how} {value!r}; "
            "compare with a value of the column's type"
        ) from error


def _column(row: Row, name: str, origin: str) -> Any:
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise DataError(f"{origin}: has no column {name!r}; columns: {', '.join(row)}")
        value = value[part]
    return value
