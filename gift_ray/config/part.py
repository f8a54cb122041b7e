"""What all parts of the configuration share: they are frozen, refuse unknown keys, and use these types."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gift_ray.config.names import each_once, given_words

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _several(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if len(prompts) == 1:
        raise ValueError("give at least two different prompts: chance is measured between them")
    return prompts


EachOnce = AfterValidator(each_once)
Prompts = Annotated[
    tuple[str, ...], EachOnce, AfterValidator(given_words), AfterValidator(_several)
]


class Part(BaseModel):
    """A part of the configuration: immutable, and without unknown keys, so that misspelt ones are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
