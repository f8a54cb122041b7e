"""Puts pydantic's validation errors in plain words: the field, the value, what is allowed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

from gift_ray.config.plugin_choice import SeveralMistakes
from gift_ray.config.schema import StudyConfig


def mistakes_in_lines(error: ValidationError) -> Iterator[str]:
    """One line for each mistake: the field, the value, what is allowed, what to do."""
    for field, message in mistakes_of(error, _fields_at):
        yield f"{field or 'study'}: {message}"


def mistakes_of(
    error: ValidationError, fields_at: Callable[[tuple[int | str, ...]], list[str]]
) -> Iterator[tuple[str, str]]:
    """The dotted field and the message of each mistake, including those inside the options of plug-ins.

    Args:
        fields_at: gives the valid names at the place of a location's last key.
    """
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(
            _inside(other["loc"], item["loc"]) for other in items
        ):
            # The list is too short only because its entries are wrong, which is reported for each of them.
            continue
        field = ".".join(str(key) for key in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, SeveralMistakes):
            for option, message in cause.mistakes:
                yield f"{field}.{option}" if option else field, message
        else:
            yield field, explain(item, fields_at(item["loc"]))


def _inside(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def explain(item: Any, fields: list[str]) -> str:
    """A pydantic error item as one plain sentence with the value and the nearest valid key."""
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key; {hint}allowed: {', '.join(fields)}"
    if item["type"] == "missing":
        return "is missing; add it"
    if item["type"] == "string_type" and isinstance(item["input"], str | int | float | None):
        return f"{item['input']!r} is not read as text; put it in quotes"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    return f"{item['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """The names of the fields that are valid at the place of the last key of `location`."""
    model: Any = StudyConfig
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        model = part_of(field.annotation)
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def part_of(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, `Model | None`, `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = part_of(inner)
        if found is not None:
            return found
    return None
