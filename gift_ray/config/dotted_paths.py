"""Reads and sets settings by their dotted paths, as overrides on the command line do: `defense.beta=0.3`."""

from __future__ import annotations

from typing import Any

import yaml

from gift_ray.config.schema import StudyConfig
from gift_ray.config.yaml_text import read_yaml


def settings(config: StudyConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The study as plain JSON values with some dotted paths set, not validated."""
    raw = config.model_dump(mode="json")
    for path, value in values.items():
        _set_path(raw, path.split("."), value)
    return raw


def value_at(raw: Any, path: str) -> Any:
    """The value at a dotted path; None if there is no such place."""
    for key in path.split("."):
        try:
            raw = raw[int(key)] if isinstance(raw, list) else raw[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return raw


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set one `dotted.path=YAML value` in place. Returns the mistake in it as a line, or None."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"override {override!r}: write it as dotted.path=value, as defense.beta=0.3"
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return f"override {override!r}: the value is not valid YAML"
    try:
        _set_path(raw, path.split("."), value)
    except (AttributeError, KeyError, IndexError, ValueError, TypeError):
        return f"override {override!r}: no such place in the configuration"
    return None


def _set_path(raw: Any, keys: list[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        raw = raw[int(key)] if isinstance(raw, list) else raw.setdefault(key, {})
    if isinstance(raw, list):
        raw[int(last)] = value
    else:
        raw[last] = value
