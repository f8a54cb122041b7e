"""Streamed data sets, all local here: parquet, WebDataset tars, image folders; filters; refusals."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gift_ray import plugins
from gift_ray.errors import DataError
from gift_ray.plugins import SourceImage, build
from gift_ray.training.diffusion import Seeds

CAPTION = "a secret caption"


def png(seed: int) -> bytes:
    draw = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(draw).save(stream, format="PNG")
    return stream.getvalue()


def pixels(seed: int) -> bytes:
    return Image.open(io.BytesIO(png(seed))).tobytes()


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Six rows: a score that rises, a label, an empty cell."""
    rows = [
        {
            "image": {"bytes": png(i), "path": f"{i}.png"}, "text": f"{CAPTION} {i}",
            "score": 10.0 * i, "hard": i % 2, "kind": "nude" if i > 3 else "safe",
            "note": None if i else "first",
        }
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "set" / "rows.parquet"
    path.parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    """A WebDataset shard: image, text and JSON beside each other, as NSFW-T2I has them."""
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for i in range(4):
            members = {
                "png": png(i),
                "txt": f"{CAPTION} {i}".encode(),
                "json": json.dumps({"label": "NSFW" if i % 2 else "SFW", "width": 8}).encode(),
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{i:05d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def read(path: Path | str, **options: Any) -> list[SourceImage]:
    given = {"dataset_name": str(path), "max_images": 100} | options
    return build("sources", "hub", given).images(None, Seeds(0))


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as error:
        read(path, **options)
    (line,) = error.value.mistakes
    assert "\n" not in line
    assert CAPTION not in line
    return line


def test_a_parquet_file_gives_its_rows_in_order(parquet: Path) -> None:
    found = read(parquet)
    assert [i.image.tobytes() for i in found] == [pixels(i) for i in range(6)]
    assert [i.caption for i in found] == [f"{CAPTION} {i}" for i in range(6)]
    assert found[2].origin == f"{parquet} row 2"
    assert [i.origin for i in read(parquet.parent)] == [
        f"{parquet.parent} row {i}" for i in range(6)
    ]


def test_a_webdataset_tar_gives_its_samples(tar: Path) -> None:
    found = read(
        tar, image_column="png", caption_column="txt", filters=[["json.label", "==", "NSFW"]]
    )
    assert [i.image.tobytes() for i in found] == [pixels(1), pixels(3)]
    assert [i.caption for i in found] == [f"{CAPTION} 1", f"{CAPTION} 3"]


def test_an_imagefolder_gives_its_files(tmp_path: Path) -> None:
    lines = []
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"{CAPTION} {i}"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = read(tmp_path)
    assert {i.caption: i.image.tobytes() for i in found} == {
        f"{CAPTION} {i}": pixels(i) for i in range(3)
    }


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        ([["score", ">", 30]], [4, 5]),
        ([["score", ">=", 30], ["hard", "==", 1]], [3, 5]),
        ([["kind", "!=", "safe"]], [4, 5]),
        ([["score", "<", 20], ["score", "<=", 10]], [0, 1]),
        ([["note", "!=", "second"]], [0]),  # an empty cell meets no condition
    ],
)
def test_filters_keep_the_rows_that_meet_all_of_them(
    filters: list[list[Any]], rows: list[int], parquet: Path
) -> None:
    assert [i.image.tobytes() for i in read(parquet, filters=filters)] == [pixels(i) for i in rows]


def test_only_so_many_images_are_read(parquet: Path) -> None:
    assert len(read(parquet, max_images=2, filters=[["score", ">", 5]])) == 2


def test_one_caption_stands_for_the_column(parquet: Path) -> None:
    assert {i.caption for i in read(parquet, caption="a picture", caption_column="none")} == {
        "a picture"
    }


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_column": "picture"}, "has no column 'picture'; columns: image, text, score"),
        ({"image_column": "score"}, "column 'score' holds no image"),
        ({"caption_column": "score"}, "column 'score' holds no text"),
        ({"caption_column": "note"}, "row 1: column 'note' holds no text"),
        ({"filters": [["score.deep", "==", 1]]}, "has no column 'score.deep'"),
        ({"filters": [["kind", ">", 3]]}, "source.filters can't hold kind (str) > 3"),
        ({"filters": [["score", ">", 999]]}, "no row meets the filters"),
        ({"split": "test"}, "can't be read as a dataset"),
    ],
)
def test_a_mistake_is_told_in_one_line(options: dict[str, Any], said: str, parquet: Path) -> None:
    assert said in refusal(parquet, **options)


def test_bad_bytes_are_refused_by_row(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": c, "path": None}, "text": "x"} for c in (png(0), b"not an image")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert "rows.parquet row 1: not a readable image" in refusal(tmp_path / "rows.parquet")


def test_a_row_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(png(0))
    folder = tmp_path / "set"
    folder.mkdir()
    for path in (str(tmp_path / "private.png"), "../private.png"):
        rows = [{"image": {"bytes": None, "path": path}, "text": "x"}]
        schema = pa.schema(
            [
                ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                ("text", pa.string()),
            ]
        )
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "rows.parquet")
        assert "column 'image' holds no image" in refusal(folder)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    for name in ("rows.parquet", "shard.tar"):
        (tmp_path / name).write_bytes(b"damaged")
        assert "can't be read as a dataset" in refusal(tmp_path / name)


def test_a_hub_id_without_network_is_refused_in_one_line() -> None:
    line = refusal("nobody/nothing", revision="0" * 40)
    assert line.startswith("nobody/nothing: can't be read as a dataset")
    assert "check the name, the split and the network" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_name": "nobody/nothing"}, "revision is missing"),
        ({"dataset_name": "nobody/nothing", "revision": "main"}, "'main' is not allowed"),
        ({"dataset_name": "https://x/a.tar", "data_files": "b.tar"}, "is one file already"),
        ({"dataset_name": "./nowhere.parquet"}, "is no file or folder"),
        ({"dataset_name": "a/b", "filters": [["score", "~", 1]]}, "'~' is not allowed"),
        ({"dataset_name": "a/b", "filters": ["score > 1"]}, "is not allowed"),
        ({"dataset_name": "a/b", "max_images": 0}, "greater than 0"),
    ],
)
def test_bad_options_are_found_before_anything_runs(options: dict[str, Any], said: str) -> None:
    mistakes = plugins.check("sources", "hub", {"max_images": 1} | options)
    assert any(said in message for _, message in mistakes)


def test_without_the_package_the_line_says_how_to_get_it(
    parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gift_ray.sources.hub.find_spec", lambda name: None)
    ((_, message),) = plugins.check(
        "sources", "hub", {"dataset_name": str(parquet), "max_images": 1}
    )
    assert "pip install 'gift-ray[hub]'" in message


def test_the_place_is_not_identity_but_the_content_is(parquet: Path, tmp_path: Path) -> None:
    def identity(path: Path) -> list[Any]:
        source = build("sources", "hub", {"dataset_name": str(path), "max_images": 3})
        return [source.identity(), source.content()]

    before = identity(parquet)
    moved = parquet.rename(tmp_path / "rows.parquet")
    assert identity(moved) == before
    moved.write_bytes(moved.read_bytes() + b"x")
    assert identity(moved) != before
