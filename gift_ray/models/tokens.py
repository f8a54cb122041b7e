"""Tells which part of a prompt a base does not read: its text encoder cuts prompts to a number of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer


def read_and_lost(tokenizer: Path, room: int, text: str) -> tuple[str, str]:
    """A text in two parts: the part that a text encoder reads, and the end that it cuts.

    The second part is "" for a text that is read as a whole.

    Args:
        tokenizer: the folder of the tokenizer.
        room: the number of tokens of a text that are read.
    """
    places = _tokenizer(tokenizer).encode(text, add_special_tokens=False).offsets
    if len(places) <= room:
        return text, ""
    start, _ = places[room]
    return text[:start].strip(), text[start:].strip()


def whole_words(vocabulary: Iterable[str]) -> list[str]:
    """The words of three letters or more that are one token of a vocabulary each, in alphabetical order.

    CLIP's tokenizers end a word by a mark, those of language models begin it by one.
    """
    found = {
        token.removesuffix("</w>").removeprefix("\u0120")
        for token in vocabulary
        if token.endswith("</w>") or token.startswith("\u0120")
    }
    return sorted(word for word in found if len(word) >= 3 and word.isalpha() and word.islower())


def most_tokens(folder: Path) -> int:
    """The number of tokens that a tokenizer's configuration allows, or else CLIP's 77."""
    try:
        said = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        said = {}
    return int(said.get("model_max_length", 77))


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder, which neither pads nor cuts."""
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        # Older folders hold a vocabulary and merges, which transformers reads; its import takes seconds.
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
