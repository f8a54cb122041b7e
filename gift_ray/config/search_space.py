"""The configuration of a search: the ranges and choices of the options that it varies, and its algorithm."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gift_ray.config.part import EachOnce, Part, Positive
from gift_ray.config.plugin_choice import SeveralMistakes
from gift_ray.config.searchable import mistake_in_path


class Range(Part):
    """One searched option: a range (`low`, `high`, `log`, `integer`) or a list of `choices`.

    `num` says how many points of the range a grid takes. With `when` the option is searched only in settings
    that have these values: `when: {defense.name: gift}`, where a list stands for any of its values.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    num: int | None = Field(None, ge=2)
    choices: Annotated[tuple[Any, ...], EachOnce, Field(min_length=1)] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Range:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.choices is None:
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError(f"low must be below high (low={self.low}, high={self.high})")
            if self.log and self.low <= 0:
                raise ValueError(f"a log range needs low above 0 (low={self.low})")
            if self.integer and (self.low % 1 or self.high % 1):
                raise ValueError(f"integer needs whole ends (low={self.low}, high={self.high})")
        elif self.log or self.integer or self.num:
            raise ValueError("log, integer and num belong to a range, not to choices")
        return self

    def points(self) -> list[Any]:
        """The values that a grid tries: the choices, or `num` points from low to high."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        assert self.num is not None
        shares = [i / (self.num - 1) for i in range(self.num)]
        if self.log:
            # Written as a product of powers, so that both ends are exact.
            found = [self.low ** (1 - share) * self.high**share for share in shares]
        else:
            found = [self.low * (1 - share) + self.high * share for share in shares]
        return list(dict.fromkeys(round(x) for x in found)) if self.integer else found


class SearchConfig(Part):
    """What `jobs/sweep.py` searches; keys of `space` are dotted config paths (`defense.beta`).

    `pruner` ends trials early, by their score after a part of their work (a rung): `bound` ends those that
    can no longer beat the best one, `median` the worse half of the trials at the same rung, and `asha` all
    but the best third of them. `pareto` searches retention and resistance as two objectives instead of
    `scoring.objective`. `warm_start` names folders of earlier studies, from whose trials the sampler learns
    before it begins.
    """

    space: dict[str, Range] = Field(min_length=1)
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    num_samples: Positive = Field(
        8, description="number of trials; a grid always runs all of its points"
    )
    max_concurrent_trials: Positive = 1
    pruner: Literal["none", "bound", "median", "asha"] = "none"
    pareto: bool = False
    warm_start: Annotated[tuple[str, ...], EachOnce] = ()
    budget_hours: float | None = Field(
        None,
        gt=0,
        description="hours of GPUs (of units, if they have none) after which no new trial begins",
    )

    @field_validator("space")
    @classmethod
    def _is_of_the_defense(cls, space: dict[str, Range]) -> dict[str, Range]:
        mistakes = [(path, found) for path in space if (found := mistake_in_path(path))]
        if mistakes:
            raise SeveralMistakes(mistakes)
        return space

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        bare = [path for path, option in self.space.items() if not (option.choices or option.num)]
        if self.algorithm == "grid":
            if bare:
                raise ValueError(f"a grid needs choices, or num points, for {', '.join(bare)}")
            if any(option.when for option in self.space.values()):
                raise ValueError("a grid has no conditions: remove when, or search with tpe")
            size = math.prod(len(option.points()) for option in self.space.values())
            self.__dict__["num_samples"] = size
        elif any(option.num for option in self.space.values()):
            raise ValueError(f"num is for algorithm grid, and this is {self.algorithm}")
        if self.pareto and self.pruner != "none":
            raise ValueError("a pruner compares one objective: set pruner: none, or pareto: false")
        return self
