"""Checks that the base's family supports what the study's defenses, attacks and drawing do."""

from __future__ import annotations

from gift_ray import plugins
from gift_ray.config.plugin_choice import AttackConfig, DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import GiftError, ModelError
from gift_ray.models import families
from gift_ray.models.architecture import architecture
from gift_ray.models.merge import NOT_SOLVED


def check_base(config: StudyConfig) -> None:
    """Check the base, and that its family supports the study's defenses, attacks and sampler.

    Raises:
        ModelError: the base can't be used, or one line for each defense, attack and sampler that its family
            does not support.
    """
    families.check_base(config.model)
    base = architecture(config.model)
    mistakes = []
    for field, one in chosen(config).items():
        plugin: plugins.Plugin = plugins.build(one.kind, one.name, one.options)
        try:
            plugin.require(base)
        except GiftError as error:
            mistakes += [f"{field}: {line}" for line in error.mistakes]
    if config.evaluation.sampler != "default" and base.family.only_sampler:
        mistakes.append(base.family.only_sampler)
    concepts = config.concepts
    solved = concepts.mode == "merge" and concepts.merge.keys_and_values == "solve"
    if solved and not base.family.keys_read_tokens:
        mistakes.append(NOT_SOLVED)
    if mistakes:
        raise ModelError(*mistakes)


def chosen(config: StudyConfig) -> dict[str, DefenseConfig | AttackConfig]:
    """All defenses and attacks of a study by the field that chooses them, a grid's members each."""
    confirming = config.confirm.attacks if config.confirm else ()
    found: dict[str, DefenseConfig | AttackConfig] = {"defense": config.defense}
    found |= {f"rivals.{i}": rival for i, rival in enumerate(config.rivals)}
    for field, attacks in (("attacks", config.attacks), ("confirm.attacks", confirming)):
        members = [member for attack in attacks for member in attack.members()]
        found |= {f"{field} ({member.title})": member for member in members}
    return found
