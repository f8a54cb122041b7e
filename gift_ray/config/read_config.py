"""Reads a study from YAML. All mistakes are reported at once, one line each, before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from gift_ray.config.absolute import with_absolute_paths
from gift_ray.config.dotted_paths import apply_override, settings
from gift_ray.config.mistakes import mistakes_in_lines
from gift_ray.config.plugin_choice import Check
from gift_ray.config.schema import StudyConfig, resolve_output_dir
from gift_ray.config.yaml_text import read_yaml
from gift_ray.errors import ConfigError


def load_config(path: str | Path, overrides: list[str], *, check: Check) -> StudyConfig:
    """Read a YAML study and apply dotted overrides (`defense.beta=0.3`).

    Args:
        check: checks the options of a plug-in: (kind, name, options) -> [(option, message)].

    Raises:
        ConfigError: every mistake of the file and the overrides, one line each.
    """
    raw = _read_yaml(Path(path))
    mistakes = [m for o in overrides if (m := apply_override(raw, o))]
    try:
        config = StudyConfig.model_validate(with_absolute_paths(raw), context={"check": check})
    except ValidationError as error:
        mistakes += mistakes_in_lines(error)
    if mistakes:
        raise ConfigError(*(f"{path}: {line}" for line in mistakes))
    # From here on the path is absolute, since Ray changes the working directory of its workers.
    return config.model_copy(update={"output_dir": str(resolve_output_dir(config.output_dir))})


def right_parts(path: str | Path, overrides: list[str]) -> StudyConfig:
    """The valid parts of a study of which other parts are invalid, so that they can be checked further.

    Reading an invalid part raises AttributeError. Options of plug-ins are not checked.

    Raises:
        ConfigError: the file can't be read.
    """
    raw = _read_yaml(Path(path))
    for override in overrides:
        apply_override(raw, override)
    raw = _without_unknown_keys(with_absolute_paths(raw))
    parts: dict[str, Any] = {}
    wrong = []
    for name, field in StudyConfig.model_fields.items():
        if name not in raw and not field.is_required():
            continue
        try:
            kind: Any = Annotated[field.annotation, field]
            parts[name] = TypeAdapter(kind).validate_python(raw[name])
        except (KeyError, ValidationError):
            wrong.append(name)
    config = StudyConfig.model_construct(**parts)
    for name in wrong:
        vars(config).pop(name, None)
    return config


def _without_unknown_keys(raw: dict[str, Any]) -> dict[str, Any]:
    """A study's plain values without its unknown keys, which were reported when it was read."""
    try:
        StudyConfig.model_validate(raw)
    except ValidationError as error:
        for item in error.errors():
            if item["type"] == "extra_forbidden":
                *parents, last = item["loc"]
                inner: Any = raw
                for key in parents:
                    inner = inner[key]
                del inner[last]
    return raw


def with_values(config: StudyConfig, values: dict[str, Any], *, check: Check) -> StudyConfig:
    """The same study with some dotted paths set, as a search trial does."""
    try:
        return StudyConfig.model_validate(settings(config, values), context={"check": check})
    except ValidationError as error:
        raise ConfigError(*mistakes_in_lines(error)) from error


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {detail}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, got {type(raw).__name__}")
    return raw
