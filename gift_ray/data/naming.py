"""Tells whether a text, such as a caption, names a concept."""

from __future__ import annotations

import re
from collections.abc import Iterable


def is_named(name: str, text: str) -> bool:
    """Whether the text holds the name as whole words, whatever their case."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def names_any(names: Iterable[str], text: str) -> bool:
    """Whether the text holds one of the names."""
    return any(is_named(name, text) for name in names)
