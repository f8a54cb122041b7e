"""Replaces an entry that stands for all concepts of a data set by one entry for each concept.

    name: "{name}"
    source: {name: custom_concept_101, folder: customconcept101, concept: "*"}
    instance_prompt: a photo of a sks {class}

The data set says what the words `{name}` and `{class}` are for each of its concepts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gift_ray import plugins
from gift_ray.config.read_config import with_values
from gift_ray.config.schema import ConceptConfig, StudyConfig


def each_concept(config: StudyConfig) -> StudyConfig:
    """The study with an entry for each single concept.

    Raises:
        ConfigError: two concepts have the same name, because the entry's name has no `{name}`.
        DataError: the data set can't be read, or holds no concept that fits.
    """
    sides = {"malicious": config.concepts.malicious, "safe": config.concepts.safe}
    entries = {
        f"concepts.{side}": [each for concept in concepts for each in _members(concept)]
        for side, concepts in sides.items()
    }
    return with_values(config, entries, check=plugins.check)


def _members(concept: ConceptConfig) -> list[dict[str, Any]]:
    """The concepts that an entry stands for, as plain values. Most entries stand for themselves alone."""
    entry, given = concept.model_dump(mode="json"), concept.source
    found = plugins.build("sources", given.name, given.options).concepts()
    if found is None:
        return [entry]
    return [
        {**_filled(entry, words), "source": {"name": given.name, **options}}
        for words, options in found
    ]


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    """Plain values with the words in place of `{name}` and the like."""
    if isinstance(value, dict):
        return {key: _filled(inner, words) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, words) for inner in value]
    if isinstance(value, str):
        for word, meant in words.items():
            value = value.replace(f"{{{word}}}", meant)
    return value
