"""Ids of the conditions under which two scores, or two verdicts, may be compared."""

from __future__ import annotations

from typing import Any

from gift_ray import plugins
from gift_ray.config.names import told_apart
from gift_ray.config.plugin_choice import AttackConfig
from gift_ray.config.schema import ConceptConfig, StudyConfig
from gift_ray.models import locate
from gift_ray.records.record import digest
from gift_ray.study.drawing import drawing_identity
from gift_ray.study.measuring import measuring_identity
from gift_ray.study.steps.prepare_concept import source_identity


def protocol_id(config: StudyConfig) -> str:
    """Hex SHA-256 of everything by which a study measures; only scores with the same id may be compared.

    That is: encoders (by content), preprocessing, metrics, how images are drawn, all prompts, and the options
    of the scoring.
    """
    concepts = (*config.concepts.malicious, *config.concepts.safe)
    return digest(
        {
            "measuring": measuring_identity(config.evaluation),
            "drawing": drawing_identity(config.evaluation),
            "safe_prompts": config.evaluation.safe_prompts,
            "prompts": {c.name: [c.validation_prompts, c.neighbors] for c in concepts},
            "scoring": config.scoring.model_dump(mode="json"),
        }
    )


def verdict_id(config: StudyConfig) -> str:
    """Hex SHA-256 of everything that a verdict depends on besides the released model.

    That is: the protocol, the base, the attacker's images, the controls and the names of every concept, the
    attacks and their seeds. Only of two models with the same id can one be called better.
    """
    attacks = attack_names(config).values()
    concepts = (*config.concepts.malicious, *config.concepts.safe)
    built = [plugins.build("attacks", a.name, a.options) for a in attacks]
    return digest(
        {
            "protocol": protocol_id(config),
            "base": locate.identity(config.model),
            "seed": config.seed,
            "concepts": {c.name: _attackers_side(c) for c in concepts},
            "controls": {c.name: config.concepts.controls_of(c) for c in concepts},
            "attacks": [attack.identity() for attack in built],
            "seeds": config.seeds,
        }
    )


def _attackers_side(concept: ConceptConfig) -> dict[str, Any]:
    """What a concept's D_A depends on, and the names by which its images count as recognised."""
    source = concept.attacker_source
    return {
        "source": source_identity(source),
        "shared_with_the_defender": concept.attack_source is None,
        "names": concept.names,
        **concept.model_dump(mode="json", include={"instance_prompt", "max_images"}),
    }


def attack_names(config: StudyConfig) -> dict[str, AttackConfig]:
    """The attacks of a study by unique names; each setting of a grid is an attack of its own.

    An attack that is used again is called `dreambooth-2` and so on.
    """
    attacks = [member for each in config.attacks for member in each.members()]
    names = told_apart([attack.title for attack in attacks])
    return dict(zip(names, attacks, strict=True))
