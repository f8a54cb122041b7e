"""What of a prompt a base never reads: its text encoder takes a fixed number of tokens, the rest is cut."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=4)
def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def lost_words(base: Path, prompt: str) -> str:
    """The end of a prompt that the first text encoder of a diffusers folder does not read; mostly empty."""
    tokenizer = _tokenizer(base / "tokenizer")
    words = tokenizer(prompt, add_special_tokens=False).input_ids
    room = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    return tokenizer.decode(words[room:]).strip()
