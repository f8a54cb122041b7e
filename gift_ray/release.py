"""The released model: a standard diffusers folder with its card."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import Any

from gift_ray.models import base_model
from gift_ray.plan import Arm, Plan

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
base_model: {base}
tags: [gift-ray, immunized]
---

# {title}

{base} immunized with `{defense}` against: {concepts}.

Worst case over attacks, similarities, seeds and steps: **resistance {resistance:.3f}** (0: the attacker
regains all that the undefended model gives, 1: nothing). Honest use: **retention {retention:.3f}**, worst
probe {worst_retention:.3f} (1: as good as the base).

Threat model: the attacker holds these weights and images of the concept, fine-tunes as they like, and
never sees the original weights. Whoever holds the original weights is not stopped; text-free
inversion is not covered. The licence of the base model applies.

Settings: `{settings}`. Made by gift-ray; fingerprint `{fingerprint}`.
"""


def export(plan: Plan, arm: Arm, card: Any, settings: dict[str, Any], study_dir: Path) -> Path:
    """Write the arm's model as `models/<fingerprint>`, whole or not at all; returns the folder."""
    folder = study_dir / "models" / f"{plan.config.defense.name}-{arm.immunize.fingerprint[:16]}"
    if folder.exists():
        return folder
    private = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        weights = arm.immunize.folder(study_dir) / "unet.safetensors"
        base_model(plan.config.model).with_weights(weights).save_pretrained(private)
        text = CARD.format(
            base=plan.config.model.pretrained_model_name_or_path,
            title=f"{plan.config.name}: {', '.join(arm.malicious)}",
            defense=plan.config.defense.title,
            concepts=", ".join(arm.malicious),
            resistance=card.resistance,
            retention=card.retention,
            worst_retention=card.worst_retention,
            settings=settings,
            fingerprint=arm.immunize.fingerprint,
        )
        (private / "README.md").write_text(text, encoding="utf-8")
        private.rename(folder)
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return folder
