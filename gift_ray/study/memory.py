"""What each training of a study holds in a device's memory at once, counted from the base's files.

Counted are weights, gradients and what optimizers keep, all in fp32. Activations come on top: they depend on
the device's kernels, and gradient checkpointing keeps them small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.models.architecture import Architecture, architecture
from gift_ray.study.suited import chosen
from gift_ray.training.footprint import Footprint

GIB = 2**30


@dataclass(frozen=True)
class Needed:
    """What one training holds at once: the frozen parts of the pipeline, and the training's own footprint."""

    title: str
    frozen: int
    footprint: Footprint

    @property
    def total(self) -> int:
        """Bytes of all of it."""
        return self.frozen + self.footprint.total

    def __str__(self) -> str:
        parts = {
            "frozen": self.frozen, "in training": self.footprint.weights,
            "gradients": self.footprint.gradients, "optimizer": self.footprint.optimizer,
        }  # fmt: skip
        told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{self.title}: {self.total / GIB:.1f} GiB ({told})"


def needed(config: StudyConfig) -> list[Needed]:
    """What the trainings of a study hold at once, the largest first."""
    base = architecture(config.model)
    found = [
        Needed(title, _frozen(config, base, plugin), plugin.footprint(base))
        for title, plugin in _plugins(config)
    ]
    return sorted(found, key=lambda each: -each.total)


def described(config: StudyConfig) -> list[str]:
    """What the dry run says of memory, in lines."""
    largest = needed(config)
    return [
        "memory of a unit's device, by arithmetic, without activations (unmeasured on a GPU):",
        *(f"  {each}" for each in largest),
    ]


def _plugins(config: StudyConfig) -> Iterator[tuple[str, plugins.Plugin]]:
    for title, one in chosen(config).items():
        yield title, plugins.build(one.kind, one.name, one.options)


def _frozen(config: StudyConfig, base: Architecture, plugin: plugins.Plugin) -> int:
    """Bytes of what is not trained.

    That is the base, the released model beside it for an attack (in its place with low_memory), the VAE, and
    the text encoders where they are not on the CPU.
    """
    both = isinstance(plugin, plugins.Attack) and not config.model.low_memory
    text = 0 if config.model.low_memory else base.text
    return base.weights * (2 if both else 1) + base.vae + text
