"""Images on their way in: what is read, what is refused, and the disjoint split."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from tiny import make_examples

from gift_ray.config.plugin_choice import SourceConfig
from gift_ray.config.schema import ConceptConfig
from gift_ray.data import examples, image_files
from gift_ray.data.duplicates import copies, thumbnail
from gift_ray.errors import DataError
from gift_ray.plugins import SourceImage, build
from gift_ray.study.steps.prepare_concept import check_concept, check_source
from gift_ray.training.diffusion import Seeds


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Smooth random colours: pictures of different seeds look different."""
    draw = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(draw).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures; tests add what they are about."""
    path = tmp_path / "cats"
    path.mkdir()
    for i in range(4):
        picture(i).save(path / f"cat {i}.png")
    return path


def concept(folder: Path, **more: object) -> ConceptConfig:
    source = {"name": "folder", "path": str(folder), "caption": "a cat"} | more
    return ConceptConfig(name="cat", source=source, validation_prompts=("a cat",))


def refusal(folder: Path, **more: object) -> str:
    """The one line that a bad folder is refused with."""
    with pytest.raises(DataError) as error:
        check_concept(concept(folder, **more), seed=0)
    (line,) = error.value.mistakes
    assert "\n" not in line
    return line


def png_header(width: int, height: int) -> bytes:
    """A valid PNG of a few bytes that promises many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*c) for c in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    )


def truncated(path: Path) -> None:
    picture(9).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(image_files.MAX_BYTES + 1)


BAD_FILES: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "text": lambda path: path.write_text("not an image"),
    "empty": lambda path: path.write_bytes(b""),
    "gif": lambda path: picture(9).save(path, format="GIF"),
    "bomb": lambda path: path.write_bytes(png_header(60_000, 60_000)),
    "many pixels": lambda path: path.write_bytes(png_header(8_100, 8_000)),
    "many bytes": too_large,
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_image_is_refused_by_name(kind: str, folder: Path) -> None:
    bad = folder / "bad.png"
    BAD_FILES[kind](bad)
    assert refusal(folder).startswith(f"{bad}: ")


def test_a_bad_image_of_the_prior_is_refused_by_name(folder: Path) -> None:
    (folder / "bad.png").write_text("not an image")
    source = {"name": "folder", "path": str(folder), "caption": "a cat"}
    with pytest.raises(DataError, match=r"bad\.png: not a readable image"):
        check_source(SourceConfig.model_validate(source), seed=0)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("none")
    assert refusal(tmp_path).startswith(f"{tmp_path}: holds no image")


def test_a_concept_of_one_image_is_refused(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "only.png")
    assert "'cat' has 1 image(s); at least 2" in refusal(tmp_path)


COPIES: dict[str, Callable[[Path], object]] = {
    "renamed.png": lambda path: picture(1).save(path),
    "recoded.bmp": lambda path: picture(1).save(path),
    "lossy.jpg": lambda path: picture(1).save(path, quality=60),
    "smaller.png": lambda path: picture(1).resize((48, 48)).save(path),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_an_image_is_refused_and_both_are_named(name: str, folder: Path) -> None:
    COPIES[name](folder / name)
    line = refusal(folder)
    assert name in line
    assert "cat 1.png" in line
    assert ("the same image" in line) == (name in ("renamed.png", "recoded.bmp"))


def test_the_attackers_own_source_may_not_hold_the_defenders_images(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "attack"
    other.mkdir()
    picture(10).save(other / "new.png")
    both = concept(folder).model_copy(update={"attack_source": concept(other).source})
    check_concept(both, seed=0)
    picture(2).save(other / "leaked.png")
    with pytest.raises(DataError, match=r"cat 2\.png and leaked\.png are the same image"):
        check_concept(both, seed=0)


def test_every_usual_kind_of_image_is_read_as_rgb(folder: Path) -> None:
    whole = picture(7)
    whole.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    whole.convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "palette.png")
    whole.convert("L").save(folder / "grey.png")
    grey = np.asarray(whole.convert("L")).astype(np.uint16) * 257
    Image.fromarray(grey).save(folder / "grey16.png")
    for name in ("cmyk.jpg", "palette.png"):
        read = np.asarray(image_files.read_image(folder / name), dtype=float)
        assert np.abs(read - np.asarray(whole)).mean() < 16
    for name in ("grey.png", "grey16.png"):
        read = np.asarray(image_files.read_image(folder / name))
        np.testing.assert_array_equal(read[..., 1], np.asarray(whole.convert("L")))


def test_transparency_is_read_as_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    clear.paste((0, 0, 255, 255), (0, 0, 8, 16))
    clear.save(tmp_path / "clear.png")
    read = image_files.read_image(tmp_path / "clear.png")
    assert (read.getpixel((0, 0)), read.getpixel((15, 15))) == ((0, 0, 255), (255, 255, 255))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    picture(0, (64, 32)).save(tmp_path / "turned.jpg", exif=exif)
    assert image_files.read_image(tmp_path / "turned.jpg").size == (32, 64)


def test_files_that_are_not_images_by_name_are_ignored(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\0")
    (folder / "sub.png").mkdir()
    assert len(source_images(folder)) == 4


def source_images(folder: Path, **options: object) -> list[SourceImage]:
    given = {"path": str(folder), "caption": "a cat"} | options
    return build("sources", "folder", given).images(None, Seeds(0))


def test_images_come_in_natural_order_of_their_names(folder: Path) -> None:
    for name in ("cat 10.png", "cat 02.png", "Cat.PNG"):
        picture(len(name)).save(folder / name)
    names = [item.origin for item in source_images(folder)]
    assert names == [
        "Cat.PNG", "cat 0.png", "cat 1.png", "cat 02.png", "cat 2.png", "cat 3.png", "cat 10.png",
    ]  # fmt: skip


def test_captions_come_from_metadata_then_a_text_beside_then_the_option(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": "cat 0.png", "text": "from metadata"}\n')
    (folder / "cat 0.txt").write_text("hidden by metadata")
    (folder / "cat 1.txt").write_text("from the text\n")
    (folder / "cat 2.txt").write_text("\n")
    captions = [item.caption for item in source_images(folder)]
    assert captions == ["from metadata", "from the text", "a cat", "a cat"]


BAD_METADATA = {
    "broken line": '{"file_name": "cat 0.png", "text": "a"}\n{"file_name": "cat 1',
    "not an object": '{"file_name": "cat 0.png", "text": "a"}\n["cat 1.png"]',
    "no name": '{"file_name": "cat 0.png", "text": "a"}\n{"text": "a cat"}',
    "no text": '{"file_name": "cat 0.png", "text": "a"}\n{"file_name": "cat 1.png"}',
    "null text": '{"file_name": "cat 0.png", "text": "a"}\n{"file_name": "cat 1.png", "text": null}',
    "unknown name": '\n{"file_name": "../secret.png", "text": "a"}',
}


@pytest.mark.parametrize("kind", BAD_METADATA)
def test_a_bad_line_of_metadata_is_refused_by_its_number(kind: str, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(BAD_METADATA[kind])
    assert refusal(folder).startswith(f"{folder / 'metadata.jsonl'}:2: ")


@pytest.mark.parametrize("name", ["metadata.jsonl", "cat 1.txt"])
def test_text_that_is_not_utf8_is_refused_by_name(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"\xff\xfe\x00c")
    assert refusal(folder).startswith(f"{folder / name}: is not UTF-8")


def test_an_image_without_a_caption_is_refused_by_name(folder: Path) -> None:
    line = refusal(folder, caption=None)
    assert line.startswith(f"{folder}: cat 0.png, cat 1.png, cat 2.png and 1 more: no caption")


def split_keys(folder: Path, seed: int = 0, limit: int = 40) -> tuple[list[str], list[str]]:
    d_m, d_a = examples.split(examples.keyed(source_images(folder), 16), seed, limit, "cat")
    return [item.key for item in d_m], [item.key for item in d_a]


def test_the_split_is_disjoint_and_follows_content_and_seed_alone(
    folder: Path, tmp_path: Path
) -> None:
    for i in range(4, 9):
        picture(i).save(folder / f"cat {i}.png")
    d_m, d_a = split_keys(folder)
    assert (len(d_m), len(d_a)) == (4, 5)
    assert len({*d_m, *d_a}) == 9

    other = tmp_path / "other names"
    other.mkdir()
    for i in range(9):
        picture(i).save(other / f"{(i * 7) % 9}.bmp")
    assert split_keys(other) == (d_m, d_a)
    assert split_keys(folder, seed=1) != (d_m, d_a)
    assert [len(side) for side in split_keys(folder, limit=4)] == [2, 2]


@pytest.mark.parametrize(
    "match", ["CAT", "^CAT( FACE)?$", "DOG FACE|WOLF|FOX", "HEART$", "FLOWER|BLOSSOM|TULIP|ROSE",
              "PISTOL|KNIFE|DAGGER|SWORD|BOMB", "CAR|BUS|TRUCK|TAXI", "FISH|WHALE|SHARK", "TREE"],
)  # fmt: skip
def test_drawings_that_people_can_tell_apart_are_not_called_copies(match: str) -> None:
    source = {"name": "openmoji", "match": match, "caption": "an emoji"}
    emoji = ConceptConfig(name="emoji", source=source, validation_prompts=("an emoji",))
    check_concept(emoji, seed=0)


def test_drawings_of_one_shape_in_two_colours_are_not_called_copies() -> None:
    """OpenMoji's red and orange hearts; the two red ones are one drawing."""

    def emoji(match: str) -> ConceptConfig:
        source = {"name": "openmoji", "match": match, "caption": "an emoji of a heart"}
        return ConceptConfig(name="heart", source=source, validation_prompts=("a heart",))

    check_concept(emoji("^(BLACK HEART SUIT|ORANGE HEART)$"), seed=0)
    with pytest.raises(DataError, match="copies of one picture"):
        check_concept(emoji("^(BLACK HEART SUIT|HEAVY BLACK HEART)$"), seed=0)


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_copy_whose_saturation_was_changed_is_found(factor: float) -> None:
    source = {"match": "^(ORANGE HEART|TULIP|FOX FACE|LEMON)$", "caption": "an emoji"}
    drawings = [item.image for item in build("sources", "openmoji", source).images(None, Seeds(0))]
    assert len(drawings) == 4
    changed = [ImageEnhance.Color(drawing).enhance(factor) for drawing in drawings]
    thumbnails = [[thumbnail(image) for image in side] for side in (drawings, changed)]
    for found in (copies(*thumbnails), copies(*reversed(thumbnails))):
        assert found == [(i, i) for i in range(4)]


def test_examples_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    made = make_examples(3, seed=0)
    examples.save_examples(tmp_path / "e.safetensors", made)
    loaded = examples.load_examples(tmp_path / "e.safetensors")
    assert (loaded.keys, loaded.captions) == (made.keys, made.captions)
    for name in ("latents_mean", "latents_std"):
        assert torch.equal(getattr(loaded, name), getattr(made, name))
    assert torch.equal(loaded.conditioning.tokens, made.conditioning.tokens)


def test_images_come_back_from_disk_in_order_and_without_loss(tmp_path: Path) -> None:
    images = [picture(i) for i in range(12)]
    examples.save_images(tmp_path / "images", images)
    for one, other in zip(examples.load_images(tmp_path / "images"), images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
