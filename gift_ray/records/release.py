"""The released model: a standard diffusers folder with its card and a manifest of its files."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from gift_ray import THREAT_MODEL
from gift_ray.config.schema import ModelConfig
from gift_ray.models.families import base_model
from gift_ray.models.locate import identity, locate
from gift_ray.records.manifest import seal
from gift_ray.records.record import canonical, digest
from gift_ray.records.whole import written_whole
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.protocol import attack_names, verdict_id
from gift_ray.verdict.gate import in_words
from gift_ray.verdict.scoring import Scorecard

logger = logging.getLogger(__name__)

# The scores that the model card and the registry's tags hold, and what each one means.
MEASURED = {
    "resistance": "estimate, worst case over concepts, attacks, measures and steps; 0: the attacker "
    "regains all that the undefended model gives, 1: nothing",
    "resistance_low": "its lower 95 % bound, which the gate reads",
    "mean_resistance": "mean over the concepts of each one's worst case",
    "retention": "honest use that is left, estimate, mean over groups; 1: as the base",
    "retention_low": "its lower 95 % bound, which the gate reads",
    "worst_retention": "of the worst group",
    "worst_retention_low": "its lower 95 % bound",
    "objective": "of resistance and retention, what a search maximises",
}
CARD = """---
{{ card_data }}
---

# {{ title }}

{{ base }} immunized with `{{ defense }}` against: {{ concepts }}.

{% for name, verdict in verdicts -%}
- **{{ name }}**: {{ verdict }}
{% endfor %}
| measure | value | what it says |
|---|---|---|
{% for name, meaning, value in measures -%}
| {{ name }} | {{ "%.4f" | format(value) }} | {{ meaning }} |
{% endfor %}
Attacked by {{ attacks }}, seeds {{ seeds }}. {{ threat_model }}

Licence of the base model, which applies: {{ licence }}.

Settings: `{{ settings }}`. Made by gift-ray; fingerprint `{{ fingerprint }}`. `manifest.json` holds the hash
of every file.
"""


def export(
    plan: Plan, arm: Arm, card: Scorecard, settings: Mapping[str, Any], study_dir: Path
) -> Path:
    """Write the arm's model below `models`, whole or not at all; returns the folder.

    The same weights judged under another protocol are another release, since their card differs.
    """
    key = digest([arm.immunize.fingerprint, verdict_id(plan.config)])
    folder = study_dir / "models" / f"{plan.config.defense.name}-{key[:16]}"
    if folder.exists():
        return folder
    logger.info("Writing the model of %s to %s.", arm.label, folder)
    with written_whole(folder) as private:
        weights = arm.immunize.folder(study_dir) / "unet.safetensors"
        base_model(plan.config.model).with_weights(weights).save_pretrained(private)
        for text in locate(plan.config.model).glob("LICENSE*"):
            shutil.copy(text, private)
        model_card(plan, arm, card, settings).save(private / "README.md")
        seal(private)
    return folder


def model_card(plan: Plan, arm: Arm, card: Scorecard, settings: Mapping[str, Any]) -> ModelCard:
    """The Hugging Face model card: base, licence, metrics and threat model, for people and programs."""
    config = plan.config
    title = f"{config.name}: {', '.join(arm.malicious)}"
    base, licence = base_name(config.model), licence_of(config.model)
    metadata = ModelCardData(
        # The hub understands hub ids only.
        base_model=base if "/" in base else None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["gift-ray", "immunized"],
        model_name=title,
        eval_results=[
            EvalResult(
                task_type="text-to-image",
                dataset_type="gift-ray",
                dataset_name=f"gift-ray protocol {verdict_id(config)[:16]}",
                metric_type=name,
                metric_value=round(getattr(card, name), 4),
            )
            for name in MEASURED
        ],
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    card_text: ModelCard = ModelCard.from_template(
        metadata,
        template_str=CARD,
        title=title,
        base=base,
        defense=config.defense.title,
        concepts=", ".join(arm.malicious),
        measures=[(n, meaning, getattr(card, n)) for n, meaning in MEASURED.items()]
        + [(n, "beside retention, no part of it", value) for n, value in card.reported.items()],
        verdicts=[(name, in_words(found)) for name, found in card.concepts.items()],
        attacks=", ".join(attack_names(config)),
        seeds=", ".join(map(str, config.seeds)),
        threat_model=THREAT_MODEL,
        licence=licence.get("license_name")
        or licence.get("license")
        or "not stated beside its files",
        settings=dict(settings),
        fingerprint=arm.immunize.fingerprint,
    )
    return card_text


def registry_tags(plan: Plan, arm: Arm, card: Scorecard) -> dict[str, str]:
    """What the registry says of a version: what it is, what it scored, what it came from."""
    data = {name: step.fingerprint[:16] for name, step in arm.immunize.inputs.items()}
    return {
        "concepts": ", ".join(arm.malicious),
        "defense": plan.config.defense.title,
        "fingerprint": arm.immunize.fingerprint,
        "base": base_name(plan.config.model),
        "base_hash": identity(plan.config.model)["content"],
        "verdict": "; ".join(f"{name} {found.verdict}" for name, found in card.concepts.items()),
        "recovery_high": f"{max(found.recovery.high for found in card.concepts.values()):.4f}",
        **{name: f"{getattr(card, name):.4f}" for name in MEASURED},
        "data": canonical(data),
    }


def base_name(model: ModelConfig) -> str:
    """The name of the base: its hub id, or the name of its folder without the path."""
    name = model.pretrained_model_name_or_path
    return Path(name).name if Path(name).expanduser().is_dir() else name


def licence_of(model: ModelConfig) -> dict[str, str]:
    """The licence of a base as fields of a model card, from its own card or its LICENSE file.

    It is {} if neither of them names one.
    """
    folder = locate(model)
    if (folder / "README.md").exists():
        data = ModelCard.load(folder / "README.md", ignore_metadata_errors=True).data.to_dict()
        fields = {n: str(data[n]) for n in ("license", "license_name", "license_link") if n in data}
        if fields:
            return fields
    texts = sorted(folder.glob("LICENSE*"))
    lines = texts[0].read_text(encoding="utf-8", errors="replace").split("\n") if texts else []
    title = next((line.strip() for line in lines if line.strip()), "")
    return {"license": "other", "license_name": title[:100]} if title else {}
