"""Whether the base suits the study: what its defenses and attacks ask of the base's family."""

from __future__ import annotations

from gift_ray import plugins
from gift_ray.config.plugin_choice import AttackConfig, DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ModelError
from gift_ray.models import families
from gift_ray.models.architecture import architecture
from gift_ray.models.merge import NOT_SOLVED


def check_base(config: StudyConfig) -> None:
    """The base, and what the study's defenses and attacks ask of its family.

    Raises:
        ModelError: a line for the base, or one for each defense and attack that it is not made for.
    """
    families.check_base(config.model)
    base = architecture(config.model)
    confirming = config.confirm.attacks if config.confirm else ()
    chosen: dict[str, DefenseConfig | AttackConfig] = {"defense": config.defense}
    chosen |= {f"rivals.{i}": rival for i, rival in enumerate(config.rivals)}
    for field, attacks in (("attacks", config.attacks), ("confirm.attacks", confirming)):
        members = [member for attack in attacks for member in attack.members()]
        chosen |= {f"{field} ({member.title})": member for member in members}
    mistakes = []
    for field, one in chosen.items():
        plugin: plugins.Plugin = plugins.build(one.kind, one.name, one.options)
        try:
            plugin.require(base)
        except ModelError as error:
            mistakes += [f"{field}: {line}" for line in error.mistakes]
    concepts = config.concepts
    solved = concepts.mode == "merge" and concepts.merge.keys_and_values == "solve"
    if solved and not base.family.keys_read_tokens:
        mistakes.append(NOT_SOLVED)
    if mistakes:
        raise ModelError(*mistakes)
