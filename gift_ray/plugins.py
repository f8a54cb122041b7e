"""The interfaces of plug-ins: Source, Defense, Attack, Metric and SetMetric.

A plug-in is one file in the folder of its kind and is found by the file's name. Its class is a frozen
pydantic model whose fields are its options. Its integer `version` is raised when the same options begin to
mean something else, and is part of the identity of every result.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from gift_ray.config.mistakes import mistakes_of
from gift_ray.errors import ConfigError
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report
from gift_ray.training.optimizers import require_optimizer

KINDS = ("sources", "defenses", "attacks", "metrics")


class Plugin(BaseModel, ABC):
    """What all plug-ins share: their fields are their options, and unknown options are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )
    version: ClassVar[int]

    def identity(self) -> dict[str, Any]:
        """Name, version and all options. Uses of a plug-in with equal identities give equal results."""
        name = type(self).__module__.rpartition(".")[2]
        return {"name": name, "version": self.version, **self.model_dump(mode="json")}

    def require(self, base: Architecture) -> None:
        """Hold what it asks of the base against it, before anything is trained.

        Raises:
            ModelError, ConfigError: the base's family, or this machine, has not what it needs.
        """
        require_optimizer(getattr(self, "optimizer", "adamw"))

    def footprint(self, base: Architecture) -> Footprint:
        """What its training holds in memory at once, beside the model that it is given.

        A plug-in that does not say it is taken to train a copy of all weights.
        """
        return Footprint.of(
            getattr(self, "optimizer", "adamw"), base.sizes("all"), weights=base.weights
        )


@dataclass(frozen=True)
class SourceImage:
    """One image of a source: RGB, any size, with its caption and a name for messages."""

    image: Image.Image
    caption: str
    origin: str


class Source(Plugin):
    """Where images come from. Captions of a `sensitive` source are never shown in a message."""

    sensitive: ClassVar[bool] = False

    @abstractmethod
    def images(self, model: Backbone, seeds: Seeds) -> list[SourceImage]:
        """All images, in a fixed order. Raises DataError for what can't be read.

        `model` is the base; only sources that generate look at it.
        """

    def content(self) -> Any:
        """What the images depend on besides the options: versions or hashes of the files that are read."""
        return None

    def leftovers(self) -> list[str]:
        """The files beside the images that are not used, a line for each, for a warning."""
        return []

    def uses_model(self) -> bool:
        """Whether the images depend on the base model (they are then recomputed for another)."""
        return False

    def concepts(self) -> list[tuple[dict[str, str], dict[str, Any]]] | None:
        """The concepts, if the source stands for all of a data set; None for a source of one concept.

        Each has its words (`name`, `class`) and the options of its own source.

        Raises:
            DataError: the data set can't be read, or has no concept that fits.
        """
        return None


class Defense(Plugin):
    """A way to immunize a model; `none`, which leaves it as it is, is one too."""

    trains: ClassVar[bool] = True

    def members(self) -> Sequence[Defense]:
        """The defenses that it is made of, in their order: itself, unless it is a chain."""
        return [self]

    @abstractmethod
    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        """An immunized copy; `model` is left as it was.

        Args:
            malicious: D_M, one set for each concept.
            safe: D_S.

        Raises:
            UnitFailed: the training gave values that are not finite, or the model collapsed.
        """


class Attack(Plugin):
    """A way in which an attacker, or an honest user, fine-tunes a model.

    Its arguments are the threat model: it gets the released weights and D_A, and nothing else.
    """

    @abstractmethod
    def evaluation_steps(self) -> tuple[int, ...]:
        """Training steps after which images are drawn: ascending, 0 first."""

    @abstractmethod
    def finetune(
        self, model: Backbone, concept: Examples, *, seeds: Seeds, report: Report
    ) -> Iterator[tuple[int, Backbone]]:
        """Yield (step, model so far) at each evaluation step; `model` is left as it was."""


@dataclass(frozen=True)
class MetricContext:
    """What a metric may use besides the images.

    Attributes:
        prompts: the prompt of each image.
        references: real images of the concept.
        encoders: the names or folders of the protocol's encoders.
        names: the names by which the concept counts as recognised; none if the images belong to no concept.
    """

    prompts: tuple[str, ...]
    references: tuple[Image.Image, ...]
    encoders: dict[str, str]
    names: tuple[str, ...] = ()


class Metric(Plugin):
    """A measure that gives one number for each image.

    A metric with `judges_concepts` is higher the more an image shows of a concept. It may be part of a
    verdict, unless the judges' check finds it blind.
    """

    direction: ClassVar[int]
    range: ClassVar[tuple[float, float]]
    unit: ClassVar[str]
    needs_references: ClassVar[bool] = False
    judges_concepts: ClassVar[bool] = False

    def known_names(self) -> tuple[str, ...] | None:
        """All names that the metric can give to an image; None for a metric that does not name images."""
        return None

    def named_in(self, prompt: str) -> tuple[str, ...]:
        """The name in a prompt, for a metric that names images; () if there is none."""
        return ()

    @abstractmethod
    def measure(self, images: Sequence[Image.Image], context: MetricContext) -> np.ndarray:
        """One value for each image, shape [N]; NaN for an image that could not be scored."""

    def examine(
        self, images: Sequence[Image.Image], context: MetricContext
    ) -> tuple[np.ndarray, list[str] | None]:
        """The values of `measure`, and for each image what its value was made of as JSON text, or None."""
        return self.measure(images, context), None


class SetMetric(Plugin):
    """A measure that gives one number for a set of images, compared with the base's of the same prompts."""

    direction: ClassVar[int]
    range: ClassVar[tuple[float, float]]
    unit: ClassVar[str]

    @abstractmethod
    def compare(
        self,
        images: Sequence[Image.Image],
        base_images: Sequence[Image.Image],
        context: MetricContext,
    ) -> tuple[float, float]:
        """The value of the whole set and its standard error; NaN if there are too few images.

        `images[i]` and `base_images[i]` share their prompt and their initial noise.
        """


def available(kind: str) -> list[str]:
    """Names of all plug-ins of a kind: the files of its folder."""
    package = importlib.import_module(f"gift_ray.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def resolve(kind: str, name: str) -> type[Any]:
    """The plug-in class behind a name.

    Raises:
        ConfigError: no file of that name.
    """
    names = available(kind)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"{name!r} is not one of the {kind}; {hint}available: {', '.join(names)}")
    module = importlib.import_module(f"gift_ray.{kind}.{name}")
    own = [
        item
        for item in vars(module).values()
        if isinstance(item, type)
        and issubclass(item, Plugin)
        and item.__module__ == module.__name__
    ]
    assert len(own) == 1, f"{module.__name__} must define exactly one plug-in class, has {own}"
    return own[0]


def build(kind: str, name: str, options: dict[str, Any]) -> Any:
    """The plug-in with its options. Options were checked when the configuration was read."""
    return resolve(kind, name)(**options)


def check(kind: str, name: str, options: dict[str, Any]) -> list[tuple[str, str]]:
    """Mistakes in a plug-in's name or options, as (option, message); [] if there is none."""
    try:
        plugin = resolve(kind, name)
    except ConfigError as error:
        return [("name", str(error))]
    try:
        # Plug-ins that are made of others, such as `chain`, check theirs with the function in the context.
        plugin.model_validate(options, context={"check": check})
    except ValidationError as error:
        return list(mistakes_of(error, lambda _: list(plugin.model_fields)))
    return []
