"""Checks that the base reads all words of a study's prompts and captions.

Its text encoder reads a fixed number of tokens. Two longer prompts that differ in their ends only would be
the same to it, and a caption that is cut may lose the concept that it names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from gift_ray.config.schema import StudyConfig
from gift_ray.data.image_files import in_short
from gift_ray.errors import ConfigError, DataError
from gift_ray.models.families import family_of
from gift_ray.models.locate import locate
from gift_ray.models.tokens import read_and_lost

# The options, of a study and of its plug-ins, that hold what the base is to read.
OPTIONS = (
    "caption", "class_prompt", "erase_prompt", "instance_prompt", "neighbors", "prompt", "prompts",
    "safe_prompts", "validation_prompts",
)  # fmt: skip


def check_prompts(config: StudyConfig) -> None:
    """Refuse prompts and captions of the configuration that are longer than the base reads.

    Raises:
        ConfigError: one line for each.
    """
    reads = Reader.of(locate(config.model))
    mistakes = [
        f"{field}: {text!r} is longer than the model reads: {lost!r} would be lost; shorten it"
        for field, text in dict.fromkeys(_texts(config.model_dump(mode="json"), ""))
        if (lost := reads(text)[1])
    ]
    if mistakes:
        raise ConfigError(*mistakes)


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(dotted field, text) of all that the base is to read."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{path}{number}.")
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in OPTIONS:
                yield from _texts(inner, f"{path}{key}.")
            elif inner is not None:
                for text in [inner] if isinstance(inner, str) else inner:
                    yield f"{path}{key}", text


def check_captions(
    base: Path, whose: str, captions: Mapping[str, str], names: Sequence[str] = (), *,
    sensitive: bool = False,
) -> None:  # fmt: skip
    """Warn of captions that are longer than the base reads, and refuse those that lose their concept.

    Args:
        whose: the concept, or D_S, for the lines.
        captions: by the image's name.
        names: of the concept.
        sensitive: no line may hold a caption.

    Raises:
        DataError: the base would read no name of the concept in a caption that holds one.
    """
    reads = Reader.of(base)
    parts = {image: reads(caption) for image, caption in captions.items()}
    cut = {
        image: image if sensitive else f"{image} loses {lost!r}"
        for image, (_, lost) in parts.items()
        if lost
    }
    nameless = [
        told
        for image, told in cut.items()
        if _holds(captions[image], names) and not _holds(parts[image][0], names)
    ]
    if nameless:
        raise DataError(
            f"{whose}: captions are longer than the model reads and lose the concept's name: "
            f"{in_short(nameless)}; put the name first, or shorten them"
        )
    if cut:
        logging.getLogger(__name__).warning(
            "%s: captions are longer than the model reads: %s", whose, in_short(list(cut.values()))
        )


@dataclass(frozen=True)
class Reader:
    """What the first text encoder of a base reads of a text.

    Attributes:
        tokenizer: its tokenizer's folder.
        room: the number of a text's tokens that are read.
    """

    tokenizer: Path
    room: int

    @classmethod
    @lru_cache(maxsize=4)
    def of(cls, base: Path) -> Reader:
        """The reader of a diffusers folder."""
        return cls(base / "tokenizer", family_of(base).prompt_room(base))

    def __call__(self, text: str) -> tuple[str, str]:
        """The part of a text that is read, and the end that is lost, which is "" where none is."""
        return read_and_lost(self.tokenizer, self.room, text)


def _holds(text: str, names: Sequence[str]) -> bool:
    return any(name.casefold() in text.casefold() for name in names)
