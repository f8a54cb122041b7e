"""The choice of a plug-in in the configuration, such as `defense: {name: gift, beta: 0.1}`.

The options stand beside the name, and are checked by the plug-in's own class.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from gift_ray.config.names import each_once, one_line
from gift_ray.config.part import EachOnce

Check = Callable[[str, str, dict[str, Any]], list[tuple[str, str]]]


class SeveralMistakes(ValueError):
    """Mistakes that one check found, as those in a plug-in's options: (option, message) pairs."""

    def __init__(self, mistakes: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in mistakes))
        self.mistakes = mistakes


class PluginConfig(BaseModel):
    """A plug-in by its file name, with its options beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: ClassVar[str]

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The plug-in's own options: all keys that are no fields of this class."""
        return dict(self.__pydantic_extra__ or {})

    def settings(self) -> list[dict[str, Any]]:
        """The options of each plug-in that this stands for: one, or several for a grid."""
        return [self.options]

    @model_validator(mode="after")
    def _check_options(self, info: ValidationInfo) -> PluginConfig:
        check: Check | None = (info.context or {}).get("check")
        found = (
            [check(self.kind, self.name, options) for options in self.settings()] if check else []
        )
        mistakes = list(dict.fromkeys(m for each in found for m in each))
        if mistakes:
            raise SeveralMistakes(mistakes)
        return self


class SourceConfig(PluginConfig):
    """Where images come from: a file of `gift_ray/sources`."""

    kind = "sources"


class DefenseConfig(PluginConfig):
    """How the model is immunized: a file of `gift_ray/defenses`. `label` is its name in tables."""

    kind = "defenses"

    label: Annotated[str, AfterValidator(one_line)] | None = Field(None, max_length=80)

    @property
    def title(self) -> str:
        """Its name for people: the label, the titles of a chain's members, or the plug-in's name."""
        members = [DefenseConfig.model_validate(m).title for m in self.options.get("defenses", ())]
        return self.label or " + ".join(members) or self.name


class AttackConfig(PluginConfig):
    """How the attacker fine-tunes: a file of `gift_ray/attacks`.

    `label` is its name in tables and curves. A `grid` stands for one attack at each combination of its values
    (`grid: {learning_rate: [5.0e-5, 1.0e-4], rank: [4, 8]}`), of which the worst counts. The number of steps
    needs no grid, since images are drawn at several steps of every attack.
    """

    kind = "attacks"

    label: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_. -]{0,79}$")
    grid: dict[str, Annotated[tuple[Any, ...], EachOnce, Field(min_length=1)]] = {}

    @property
    def title(self) -> str:
        """Its name for people: the label, or the plug-in's name."""
        return self.label or self.name

    def settings(self) -> list[dict[str, Any]]:
        """The options of each attack of the grid."""
        return [member.options for member in self.members()]

    def members(self) -> list[AttackConfig]:
        """The attacks of the grid, each named by its values. Without a grid this is the attack itself."""
        if not self.grid:
            return [self]
        points = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        return [
            AttackConfig.model_validate({"name": self.name, **self.options, **point, "label":
                " ".join([self.title, *(f"{key} {_in_letters(value)}" for key, value in point.items())])})
            for point in points
        ]  # fmt: skip

    @model_validator(mode="after")
    def _grid_is_of_other_options(self) -> AttackConfig:
        twice = sorted(self.grid.keys() & self.options.keys())
        if twice:
            raise ValueError(f"grid and the attack both set {twice[0]}; leave one of them out")
        return self


def _in_letters(value: Any) -> str:
    """A grid's value as part of a label."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", str(value))


def _attacks_differ(attacks: tuple[AttackConfig, ...]) -> tuple[AttackConfig, ...]:
    members = [member for attack in attacks for member in attack.members()]
    seen: list[tuple[str, dict[str, Any]]] = []
    for member in members:
        if (member.name, member.options) in seen:
            raise ValueError(f"{member.title!r} is there twice with the same options; remove one")
        seen.append((member.name, member.options))
    return attacks


DifferentAttacks = Annotated[tuple[AttackConfig, ...], AfterValidator(_attacks_differ)]
Attacks = Annotated[DifferentAttacks, Field(min_length=1)]


class MetricConfig(PluginConfig):
    """What is measured on images: a file of `gift_ray/metrics`.

    `label` is its name in tables. A metric that a study uses twice, such as recognition by CLIP and by a
    classifier, needs a label to be told apart.
    """

    kind = "metrics"

    label: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,80}$")

    @property
    def title(self) -> str:
        """Its name for people: the label, or the plug-in's name."""
        return self.label or self.name


def metrics_differ(metrics: tuple[MetricConfig, ...]) -> tuple[MetricConfig, ...]:
    """Check that no two metrics have the same title; returns the metrics."""
    each_once(tuple(metric.title for metric in metrics))
    return metrics
