"""Names that users give: checked, and kept distinct on screen, in the names of files, and in MLflow."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def told_apart(titles: Sequence[str], mark: str = "-") -> list[str]:
    """The titles made unique: a second `lora` becomes `lora-2`, or `lora-3` if that is a title as well."""
    names: list[str] = []
    for title in titles:
        name, number = title, 1
        while name in names or (number > 1 and name in titles):
            number += 1
            name = f"{title}{mark}{number}"
        names.append(name)
    return names


def slug(name: str) -> str:
    """A name in the letters that MLflow and every file system allow.

    If letters are lost, the beginning of the name's SHA-256 is appended, so that two names never become one.
    """
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:100]
    if plain == name and plain.strip(". "):
        return plain
    return f"{plain.strip('. ')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def looks(name: str) -> str:
    """A name as readers and some file systems see it: two names that are equal in this form look alike."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def one_line(name: str) -> str:
    """Check a name that is shown in tables and messages; returns it.

    Raises:
        ValueError: it is blank, has spaces at its ends, or holds a line break or another control character.
    """
    if name != name.strip() or not name.strip():
        raise ValueError(
            f"{name!r} must not be blank, begin or end with a space; remove the spaces"
        )
    hidden = next((c for c in name if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")), None)
    if hidden:
        raise ValueError(f"{name!r} holds the invisible character {hidden!r}; remove it")
    return name


def each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Check that no value is given twice; returns the values.

    `1`, `1.0` and `true` count as three different values, though Python finds them equal.

    Raises:
        ValueError: a value is given twice; the message names it.
    """
    seen: list[tuple[type, Any]] = []
    for value in values:
        if (type(value), value) in seen:
            raise ValueError(f"{value!r} is given twice; remove one")
        seen.append((type(value), value))
    return values


def given_words(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Check that no prompt is blank; returns the prompts.

    Raises:
        ValueError: one of them is blank.
    """
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is blank; write what should be drawn, or remove it")
    return prompts
