"""Pictures of the images that an attack draws, one for each attack step, for the tracker to show."""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from gift_ray.config.names import slug
from gift_ray.records.record import is_done
from gift_ray.report.pictures import blurred, load
from gift_ray.study.plan import Arm, Plan


def attack_series(plan: Plan, arm: Arm) -> Iterator[tuple[str, int, Image.Image]]:
    """("attack/concept", attack step, the first images side by side) of every finished attack's first seed.

    Images that `report.images` does not allow are left out; those of unsafe concepts are blurred for good.
    """
    config = plan.config
    kinds = {c.name: c.kind for c in (*config.concepts.malicious, *config.concepts.safe)}
    for (concept, attack, seed), scores in arm.attacks.items():
        unsafe = kinds[concept] == "unsafe"
        folder = scores.inputs["images"].folder(config.study_dir)
        allowed = config.report.images == "all" or (
            config.report.images == "safe_only" and not unsafe
        )
        if seed != config.seeds[0] or not allowed or not is_done(folder):
            continue
        for step in sorted(folder.glob("step-*")):
            images = [blurred(i) if unsafe else i for i in load(step)]
            number = int(step.name.removeprefix("step-"))
            yield f"{attack}/{slug(concept)}", number, _side_by_side(images)


def _side_by_side(images: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)), "white")
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet
