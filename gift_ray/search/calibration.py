"""How fast this machine is: a few real training steps, draws and measurements on the base model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import base_model
from gift_ray.plugins import MetricContext, Plugin
from gift_ray.records.record import canonical, peak_memory_bytes
from gift_ray.study.drawing import draw
from gift_ray.study.journal import Journal
from gift_ray.training.diffusion import Examples, Seeds

# The first step is not timed, since it also sets up what later ones use.
LAPS = 3
IMAGES = 2


@dataclass(frozen=True)
class Rates:
    """What was measured on this machine, in seconds.

    `training` is of the whole training of each plug-in, by its `key`; `draw` of drawing an image, `measure`
    of measuring one. `peak_memory_bytes` is of the process that did all of it.
    """

    training: dict[str, float]
    draw: float
    measure: float
    peak_memory_bytes: int


class Enough(Exception):
    """Ends a training once enough of its steps are timed."""


class Stopwatch(Journal):
    """A report that times a training's steps, and ends it after some."""

    def __init__(self) -> None:
        super().__init__(every=1)
        self.laps: list[tuple[float, float]] = []

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        # A step of a defense may be a round of several; the images that it saw are counted instead.
        self.laps.append((self.rows[-1].get("images_seen", step), time.perf_counter()))
        if len(self.laps) > LAPS:
            raise Enough

    def read(self) -> None:
        return None

    def rate(self) -> float:
        """Seconds for each image that a defense saw, or for each step of an attack."""
        (first, began), (last, ended) = self.laps[0], self.laps[-1]
        return (ended - began) / (last - first) if last > first else 0.0


def calibrate(config: StudyConfig, trained: Sequence[Plugin]) -> Rates:
    """Time a study's own plug-ins, prompts and metrics on noise; seconds on a laptop.

    Args:
        trained: the defenses and attacks to time.
    """
    with _threads(max(1, int(config.cluster.cpus_per_unit))):
        return _rates(config, trained)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within the block torch computes with as many threads as a unit has under Ray."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rates(config: StudyConfig, trained: Sequence[Plugin]) -> Rates:
    base, evaluation = base_model(config.model), config.evaluation
    random, px = np.random.default_rng(0), base.resolution
    pictures = [
        Image.fromarray(random.integers(0, 255, (px, px, 3), dtype=np.uint8)) for _ in range(IMAGES)
    ]
    words = [config.concepts.malicious[0].validation_prompts[0]] * IMAGES
    examples = base.encode(pictures, words, [str(i) for i in range(IMAGES)])
    training = {key(plugin): _training_seconds(plugin, base, examples) for plugin in trained}

    began = time.perf_counter()
    images = draw(base, words, evaluation, 0)
    drawn = time.perf_counter() - began
    context = MetricContext(tuple(words), tuple(pictures), evaluation.encoders.model_dump())
    measured = 0.0
    for metric in [plugins.build("metrics", m.name, m.options) for m in evaluation.metrics]:
        if isinstance(metric, plugins.Metric):
            metric.measure(images, context)
            # The first call loads the encoder, and is not timed.
            began = time.perf_counter()
            metric.measure(images, context)
            measured += time.perf_counter() - began
    return Rates(training, drawn / IMAGES, measured / IMAGES, peak_memory_bytes())


def key(plugin: Plugin) -> str:
    """The text of a plug-in's identity; plug-ins with the same text train alike."""
    return canonical(plugin.identity())


def _training_seconds(plugin: Any, base: Backbone, examples: Examples) -> float:
    """Seconds that the whole training of a plug-in takes, estimated from its first steps."""
    watch = Stopwatch()
    if isinstance(plugin, plugins.Attack):
        _run(lambda: list(plugin.finetune(base, examples, seeds=Seeds(0), report=watch)))
        return watch.rate() * plugin.evaluation_steps()[-1]
    _run(lambda: plugin.immunize(base, [examples], examples, seeds=Seeds(0), report=watch))
    return watch.rate() * float(plugin.max_train_steps * plugin.train_batch_size)


def _run(train: Callable[[], Any]) -> None:
    with suppress(Enough):
        train()
