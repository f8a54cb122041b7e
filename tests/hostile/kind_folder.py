"""What lies in a folder of images: nothing of it is passed over in silence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from battery import Case, study
from pictures import added, four, images, picture

from gift_ray.plugins import build

TITLE = "What lies in a folder of images"
BOM = b"\xef\xbb\xbf"


def holding(**files: Any) -> Callable[[Path], Path]:
    """Four pictures and these files, with _ for the dots in their names and __ for spaces; a folder of four
    pictures where the content is None."""

    def make(folder: Path) -> Path:
        path = four(folder)
        for name, content in files.items():
            place = path / name.replace("__", " ").replace("_", ".")
            if content is None:
                place.mkdir()
                picture(20).save(place / "inside.png")
            else:
                place.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


def reading(make: Callable[[Path], Path], **options: Any) -> Callable[[Path], object]:
    return lambda folder: images(make(folder), **options)


def captioned(
    make: Callable[[Path], Path], *captions: str, **options: Any
) -> Callable[[Path], None]:
    """The four pictures have these captions."""

    def attempt(folder: Path) -> None:
        assert [item.caption for item in images(make(folder), **options)] == list(captions)

    return attempt


def listed(make: Callable[[Path], Path], *parts: str, **options: Any) -> Callable[[Path], None]:
    """The folder is read, and what is not used is told: one line for each of `parts`, which it holds."""

    def attempt(folder: Path) -> None:
        path = make(folder)
        assert len(images(path, **options)) == 4
        given = {"path": str(path), "caption": "a cat"} | options
        lines = build("sources", "folder", given).leftovers()
        assert len(lines) == len(parts), lines
        assert all(part in line for part, line in zip(parts, lines, strict=True)), lines

    return attempt


def read_too(name: str, **options: str) -> Callable[[Path], None]:
    def attempt(folder: Path) -> None:
        assert added(name, lambda path: picture(9).save(path, **options))(folder) is not None  # type: ignore[arg-type]

    return attempt


def broken_link(folder: Path) -> object:
    path = four(folder)
    (path / "cat 9.png").symlink_to(folder / "nowhere.png")
    return images(path)


def resource_fork(folder: Path) -> None:
    path = four(folder)
    (path / "._cat 0.png").write_bytes(b"\0\5\x16\7 not an image")
    assert len(images(path)) == 4


def blank_caption(folder: Path) -> None:
    source = {"name": "folder", "path": str(four(folder)), "caption": " "}
    study(folder, {"prior.source": source})


def in_subfolders(folder: Path) -> object:
    path = four(folder)
    (folder / "outer").mkdir()
    shutil.move(path, folder / "outer" / "cats")
    return images(folder / "outer")


def rows(*captions: Any) -> str:
    return "\n".join(
        json.dumps({"file_name": f"cat {i}.png", "text": text}) for i, text in enumerate(captions)
    )


def table(*captions: str) -> str:
    return "file_name,text\n" + "\n".join(
        f'cat {i}.png,"{text}"' for i, text in enumerate(captions)
    )


CASES = [
    Case("a picture named .jfif", read_too("odd.jfif", format="JPEG"), outcome="read"),
    Case("a picture named .JPG", read_too("odd.JPG"), outcome="read"),
    Case("a picture named .bmp", read_too("odd.bmp"), outcome="read"),
    *[
        Case(f"a picture named {suffix}", reading(holding(**{"odd" + suffix.replace(".", "_"): "x"})),
             says="are not read; save them as")
        for suffix in (".gif", ".tiff", ".heic", ".avif", ".svg", ".HEIC")
    ],
    Case("macOS' `._cat 0.png` beside cat 0.png", resource_fork, outcome="left out"),
    Case("a folder within the folder, with pictures", listed(holding(more=None), "not used: more/"),
         outcome="told: not used: more/"),
    Case("pictures in folders within the folder only", in_subfolders, says="give that folder"),
    Case("a link to a picture that is not there", broken_link, says="links to a file that is not there"),
    Case("a note and an archive beside the pictures",
         listed(holding(notes_md="x", cats_zip="x"), "not used: cats.zip, notes.md"),
         outcome="told: not used: cats.zip, notes.md"),
    Case("a caption file without its image", listed(holding(dog_txt="a dog"), "not used: dog.txt"),
         outcome="told: not used: dog.txt"),
    Case("images without a caption where another has one",
         listed(holding(cat__1_txt="Tom"), "cat 0.png, cat 2.png, cat 3.png: no caption of their own"),
         outcome="told: captioned 'a cat'"),
    Case("images without any caption", reading(holding(cat__1_txt="Tom"), caption=None),
         says="cat 0.png, cat 2.png, cat 3.png: no caption"),
    Case("`caption: ' '`", blank_caption, says="caption"),
    Case("a caption in .TXT", captioned(holding(cat__0_TXT="Tom"), "Tom", *["a cat"] * 3), outcome="taken"),
    Case("a .txt that begins with a byte order mark",
         captioned(holding(cat__0_txt=BOM + b"Tom"), "Tom", *["a cat"] * 3), outcome="without the mark"),
    Case("an empty .txt", captioned(holding(cat__0_txt=" \n"), *["a cat"] * 4),
         outcome="the source's caption"),
    Case("a .txt in UTF-16", reading(holding(cat__0_txt="Tom".encode("utf-16"))), says="is not UTF-8"),
    Case("metadata.jsonl with a byte order mark",
         captioned(holding(metadata_jsonl=BOM + rows("a", "b", "c", "d").encode()), *"abcd"), outcome="read"),
    Case("metadata.csv", captioned(holding(metadata_csv=table(*"abcd")), *"abcd"), outcome="read"),
    Case("metadata.csv with commas and line breaks in captions",
         captioned(holding(metadata_csv=table("a, b", "c\nd", "e", "f")), "a, b", "c\nd", "e", "f"),
         outcome="read"),
    Case("metadata.csv with other columns", reading(holding(metadata_csv="image,label\ncat 0.png,cat")),
         says="metadata.csv:2: write"),
    Case("metadata.csv and metadata.jsonl",
         reading(holding(metadata_csv=table(*"abcd"), metadata_jsonl=rows(*"abcd"))),
         says="remove one of them"),
    Case("a blank `text` in metadata", reading(holding(metadata_jsonl=rows("a", "  "))),
         says="metadata.jsonl:2: write"),
    Case("`text: null` in metadata", reading(holding(metadata_jsonl=rows("a", None))),
         says="metadata.jsonl:2: write"),
    Case("a number as `text` in metadata", reading(holding(metadata_jsonl=rows(7))),
         says="metadata.jsonl:1: write"),
    Case("metadata of an image that is not there", reading(holding(metadata_jsonl=rows(*"abcde"))),
         says="names 'cat 4.png', which is not an image of the folder"),
    Case("two captions for one image in metadata",
         reading(holding(metadata_jsonl=rows("a") + "\n" + rows("b"))), says="a second caption"),
    Case("a cut-off line of metadata", reading(holding(metadata_jsonl=rows("a", "b")[:-9])),
         says="metadata.jsonl:2: write"),
]  # fmt: skip
