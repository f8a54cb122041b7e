"""Checks, before anything runs, that the metrics of a study can judge its concepts and prompts.

Only the configuration is read: which metrics may judge a concept, and whether they know the names of its
concepts and the nouns in its prompts. Whether they recognise real images is measured later
(gift_ray/verdict/judges.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from gift_ray import plugins
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.measuring import image_metrics

# With fewer neighbours than this, retention says little of what is lost around a concept.
LEAST_NEIGHBORS = 6


def check_judging(config: StudyConfig) -> None:
    """Check that the study's metrics can judge its concepts and prompts.

    Raises:
        ConfigError: one line for each mistake.
    """
    mistakes = [*_no_judges(config), *_unknown_names(config), *_unnamed_prompts(config)]
    if mistakes:
        raise ConfigError(*mistakes)


def remarks(config: StudyConfig) -> list[str]:
    """What makes the study's verdicts weaker, though not wrong; one line each."""
    few = [
        f"concepts.malicious: {c.name!r} has {len(c.neighbors)} neighbors; with {LEAST_NEIGHBORS} or more "
        "retention tells what is lost around it"
        for c in config.concepts.malicious
        if len(c.neighbors) < LEAST_NEIGHBORS
    ]
    if not config.concepts.safe:
        few.append(
            "concepts.safe is empty: without a control the floor is chance alone, and a style that the "
            "attack teaches counts as the concept"
        )
    few += _controls_of_another_kind(config)
    if config.gate.min_resistance == 0:
        few.append(
            "gate.min_resistance is 0: the gate asks for no resistance, a model that was never immunized "
            "passes it, and no concept is called `resists`"
        )
    if len(config.seeds) == 1:
        few.append(
            "seeds: with one seed the bounds cover the spread of images alone, not that of attacks"
        )
    return few


def _controls_of_another_kind(config: StudyConfig) -> Iterator[str]:
    """Concepts whose images have another kind of source than those of all of their controls."""
    for concept in config.concepts.malicious:
        names = config.concepts.controls_of(concept)
        controls = {c.attacker_source.name for c in config.concepts.safe if c.name in names}
        own = concept.attacker_source.name
        if controls and own not in controls:
            yield (
                f"concepts.safe: the images of {concept.name!r} come from a source {own!r}, those of its "
                f"controls from {', '.join(sorted(controls))!r}: where the styles differ too, a judge can "
                "tell them apart by the style alone; give a safe concept in the style of these images"
            )


def _no_judges(config: StudyConfig) -> Iterator[str]:
    metrics = image_metrics(config.evaluation)
    measured = {metric.title for metric in config.evaluation.metrics}
    # Names that are not measured at all are refused as the study is read.
    for name in [name for name in config.scoring.judges or () if name in measured]:
        if name not in metrics or not metrics[name].judges_concepts:
            yield (
                f"scoring.judges: {name!r} does not judge whether an image shows a concept; give one as "
                "recognition or clip_image"
            )
    if not any(metric.judges_concepts for metric in metrics.values()):
        yield (
            "evaluation.metrics: none judges whether an image shows a concept; add {name: recognition}"
        )


def _naming(config: StudyConfig) -> dict[str, tuple[plugins.Metric, tuple[str, ...]]]:
    """The metrics that give images a name, with all the names that each of them can give."""
    found = {}
    for title, metric in image_metrics(config.evaluation).items():
        known = metric.known_names()
        if known is not None:
            found[title] = (metric, known)
    return found


def _unknown_names(config: StudyConfig) -> Iterator[str]:
    """Concepts whose names a metric does not know.

    A metric must know all names of a concept or none of them, and each malicious concept must be known to one
    of the metrics that name images.
    """
    naming = _naming(config)
    for side in ("malicious", "safe"):
        for number, concept in enumerate(getattr(config.concepts, side)):
            knowing = [
                title for title, (_, known) in naming.items() if set(concept.names) <= {*known}
            ]
            for title, (_, known) in naming.items():
                unknown = [name for name in concept.names if name not in known]
                if not unknown or (
                    len(unknown) == len(concept.names) and (side == "safe" or knowing)
                ):
                    continue
                yield (
                    f"concepts.{side}.{number}.recognized_as: {unknown[0]!r} is none of the {len(known)} "
                    f"names of {title}; {_hint(unknown[0], known)}"
                )


def _unnamed_prompts(config: StudyConfig) -> Iterator[str]:
    """Prompts without a noun that a metric knows, in groups where other prompts have one.

    Images of safe prompts and of neighbours are judged by the noun in their prompt. Either all prompts of a
    group hold a known noun, or none does and the group is judged by `clip_text`.
    """
    has_text = any(m.name == "clip_text" for m in config.evaluation.metrics)
    groups = {"evaluation.safe_prompts": config.evaluation.safe_prompts} | {
        f"concepts.malicious.{number}.neighbors": concept.neighbors
        for number, concept in enumerate(config.concepts.malicious)
        if concept.neighbors
    }
    for title, (metric, known) in _naming(config).items():
        for field, prompts in groups.items():
            unnamed = [prompt for prompt in prompts if not metric.named_in(prompt)]
            if unnamed and (len(unnamed) < len(prompts) or not has_text):
                yield (
                    f"{field}: {unnamed[0]!r} holds none of the {len(known)} names of {title}; "
                    f"{_hint(unnamed[0].split()[-1], known)}"
                )


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:3]
    return f"give some that it knows, as {', '.join(near)}"
