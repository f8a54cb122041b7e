"""Names that users give are data: each stays apart from the others on screen, in files and in MLflow."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any


def told_apart(titles: Sequence[str], mark: str = "-") -> list[str]:
    """The titles, each made a name of its own: the second `lora` becomes `lora-2`, or the next number that
    is nobody's."""
    names: list[str] = []
    for title in titles:
        name, number = title, 1
        while name in names or (number > 1 and name in titles):
            number += 1
            name = f"{title}{mark}{number}"
        names.append(name)
    return names


def slug(name: str) -> str:
    """A name in the letters that MLflow, and every file system, allow. Where letters are lost a piece of the
    name's SHA-256 stands for them, so that two names never become one."""
    plain = re.sub(r"[^A-Za-z0-9_. -]", "_", name)[:100]
    if plain == name and plain.strip(". "):
        return plain
    return f"{plain.strip('. ')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def looks(name: str) -> str:
    """What a reader sees of a name: two that agree in this can't be told apart by eye or on every disk."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def one_line(name: str) -> str:
    """A name that stands in tables and messages.

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
    """Values of which none is given twice; `1`, `1.0` and `true` are three.

    Raises:
        ValueError: naming the one that is.
    """
    seen: list[tuple[type, Any]] = []
    for value in values:
        if (type(value), value) in seen:
            raise ValueError(f"{value!r} is given twice; remove one")
        seen.append((type(value), value))
    return values


def given_words(prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Prompts that say something.

    Raises:
        ValueError: one of them is blank.
    """
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("a prompt is blank; write what should be drawn, or remove it")
    return prompts
