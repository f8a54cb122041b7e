"""Reads a study and checks everything about it that can be checked before a worker starts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gift_ray import plugins
from gift_ray.config.dotted_paths import settings, value_at
from gift_ray.config.plugin_choice import SourceConfig
from gift_ray.config.read_config import load_config, right_parts, with_values
from gift_ray.config.schema import FITTING, ConceptConfig, StudyConfig
from gift_ray.config.search_space import Range
from gift_ray.data.drawn import DrawnSource
from gift_ray.data.naming import names_any
from gift_ray.errors import ConfigError, GiftError
from gift_ray.models.encoders import locate_encoder
from gift_ray.models.locate import locate
from gift_ray.records.trials import earlier_trials
from gift_ray.study.battery import with_battery
from gift_ray.study.expand import each_concept
from gift_ray.study.immunization import of_steps
from gift_ray.study.judgeable import check_judging
from gift_ray.study.measuring import is_published
from gift_ray.study.presets import check_preset, with_preset
from gift_ray.study.protocol import protocol_id
from gift_ray.study.steps.prepare_concept import check_concept, check_source
from gift_ray.study.suited import check_base
from gift_ray.study.words import check_captions, check_prompts


def load_study(path: str | Path, overrides: list[str], *, searched: bool = False) -> StudyConfig:
    """Read a study and check everything that can be checked without a worker.

    Args:
        searched: whether the study must have a `search`.

    Raises:
        ConfigError, DataError, ModelError: all mistakes of the file, and what the machine lacks.
    """
    try:
        read = with_battery(each_concept(load_config(path, overrides, check=plugins.check)))
        config = with_preset(read)
    except GiftError as error:
        others = _other_mistakes(path, overrides, searched)
        more = [line for line in others if not any(line in told for told in error.mistakes)]
        raise type(error)(*error.mistakes, *more) from error
    require_all(
        partial(_check_space, config),
        partial(_check_steps, config),
        *_checks_of_parts(config, searched),
    )
    if config.search and config.search.warm_start:
        earlier_trials(config.search.warm_start, config.search.space, protocol_id(config))
    return config


def _checks_of_parts(config: StudyConfig, searched: bool) -> list[Callable[[], object]]:
    """The checks that read some parts of a study and hold whatever the other parts are."""
    return [
        partial(_check_search, config, searched),
        partial(check_judging, config),
        partial(_check_fit, config),
        partial(check_prompts, config),
        partial(_check_encoders, config),
    ]


def _other_mistakes(path: str | Path, overrides: list[str], searched: bool) -> list[str]:
    """The mistakes in the valid parts of a study that can't be read because other parts are invalid.

    A check that reads an invalid part is skipped; it is made when that part is mended.
    """
    found: dict[str, None] = {}
    try:
        config = right_parts(path, overrides)
    except ConfigError:
        return []
    if any("{" in c.name for side in _sides(config) for c in side):
        # What an entry that stands for several concepts says is not known before it is expanded.
        vars(config).pop("concepts")
    fitting = [partial(_require_none, mistakes_of, config) for mistakes_of in FITTING]
    checks: list[Callable[[], object]] = [*fitting, *_checks_of_parts(config, searched)]
    for check in checks:
        try:
            check()
        except GiftError as error:
            found |= dict.fromkeys(error.mistakes)
        except (AttributeError, LookupError, TypeError, ValueError):
            continue
    return list(found)


def _sides(config: StudyConfig) -> list[tuple[ConceptConfig, ...]]:
    concepts = getattr(config, "concepts", None)
    return [concepts.malicious, concepts.safe] if concepts else []


def _require_none(check: Callable[[StudyConfig], Iterable[str]], config: StudyConfig) -> None:
    if mistakes := list(check(config)):
        raise ConfigError(*mistakes)


def _check_encoders(config: StudyConfig) -> None:
    require_all(
        *(
            partial(locate_encoder, role, name)
            for role, name in config.evaluation.encoders.model_dump().items()
            if not is_published(role, name)
        )
    )


def require_all(*checks: Callable[[], object]) -> None:
    """Make all checks, even if some of them fail.

    Raises:
        GiftError: the mistakes that all checks found together; its class is that of the first failure.
    """
    failures: list[GiftError] = []
    for check in checks:
        try:
            check()
        except GiftError as error:
            failures.append(error)
    if failures:
        mistakes = dict.fromkeys(line for failure in failures for line in failure.mistakes)
        raise type(failures[0])(*mistakes)


def check_data(config: StudyConfig) -> None:
    """Read every image that needs no model, so that bad data is found before any worker starts.

    Files beside the images that are not used, captions that the model does not read to their end, and images
    of D_S that a concept's model is not trained on, are reported as warnings.

    Raises:
        DataError: the mistakes of all concepts, of D_S and of the benign images that attackers bring.
    """
    concepts = (*config.concepts.malicious, *config.concepts.safe)
    require_all(
        *(partial(_check_concept, config, concept) for concept in concepts),
        partial(_check_prior, config),
        *(partial(check_source, source, config.seed) for source in _benign_sources(config)),
    )
    for line in dict.fromkeys(_leftovers(config)):
        logging.getLogger(__name__).warning(line)


def _check_concept(config: StudyConfig, concept: ConceptConfig) -> None:
    captions = check_concept(concept, config.seed)
    sources = [side for side in (concept.source, concept.attack_source) if side]
    check_captions(
        locate(config.model), f"concepts: {concept.name!r}", captions,
        (concept.name, *concept.recognized_as),
        sensitive=concept.kind == "unsafe" or any(map(_is_sensitive, sources)),
    )  # fmt: skip


def _check_prior(config: StudyConfig) -> None:
    source = config.prior.source
    captions = check_source(source, config.seed)
    check_captions(locate(config.model), "prior.source", captions, sensitive=_is_sensitive(source))
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    drawn = plugin.drawn_prompts() if isinstance(plugin, DrawnSource) else ()
    for concept in config.concepts.malicious:
        named = [c for c in (*captions.values(), *drawn) if names_any(concept.names, c)]
        if named:
            logging.getLogger(__name__).warning(
                "prior.source: %d of %d images name %r in their caption and are left out of its D_S.",
                len(named), len(captions) + len(drawn), concept.name,
            )  # fmt: skip


def _is_sensitive(source: SourceConfig) -> bool:
    sensitive: bool = plugins.resolve("sources", source.name).sensitive
    return sensitive


def _benign_sources(config: StudyConfig) -> Iterator[SourceConfig]:
    """Where the attacks' benign images come from, each once."""
    attacks = (*config.attacks, *(config.confirm.attacks if config.confirm else ()))
    given = [attack.options.get("benign_source") for attack in attacks]
    for source in {str(each): each for each in given if each}.values():
        yield SourceConfig.model_validate(source)


def _leftovers(config: StudyConfig) -> Iterator[str]:
    """The files that the study's sources do not use, a line for each."""
    concepts = (*config.concepts.malicious, *config.concepts.safe)
    sides = [side for c in concepts for side in (c.source, c.attack_source) if side]
    for side in (*sides, config.prior.source):
        source: plugins.Source = plugins.build("sources", side.name, side.options)
        yield from source.leftovers()


def _check_fit(config: StudyConfig) -> None:
    """Check that the base suits the study, and that the study fits the GPU of its preset."""
    check_base(config)
    check_preset(config)


def _check_search(config: StudyConfig, searched: bool) -> None:
    if searched and config.search is None:
        raise ConfigError("search: is missing; add a space to search")


def _check_space(config: StudyConfig) -> None:
    """Check that both ends and an inner value of every searched range are valid, whatever else is chosen."""
    mistakes = []
    space = config.search.space if config.search else {}
    for path, searched in space.items():
        contexts = _contexts(config, path, space)
        if not contexts:
            mistakes.append(
                f"search.space: {path}: when {searched.when} holds in no setting; name a value that "
                "the study has, or one of the choices of an option of the space"
            )
        wrong = _impossible(config, path, _ends(searched), contexts)
        mistakes += wrong or _impossible(config, path, _inside(searched), contexts)
    if mistakes:
        raise ConfigError(*dict.fromkeys(mistakes))


def _impossible(
    config: StudyConfig, path: str, values: list[Any], contexts: list[dict[str, Any]]
) -> list[str]:
    mistakes = []
    for value, context in itertools.product(values, contexts):
        try:
            configure(config, {**context, path: value})
        except (GiftError, AttributeError, LookupError, ValueError, TypeError) as error:
            mistakes.append(f"search.space: {path} = {value} is not possible: {error}")
    return mistakes


def _contexts(config: StudyConfig, path: str, space: Mapping[str, Range]) -> list[dict[str, Any]]:
    """All combinations of the searched choices on which it depends whether this option exists."""
    when = space[path].when
    deciding = {
        other: option.choices
        for other, option in space.items()
        if option.choices is not None
        and any(name == other or name.startswith(f"{other}.") for name in when or [path])
        and other != path
    }
    found = (
        dict(zip(deciding, chosen, strict=True)) for chosen in itertools.product(*deciding.values())
    )
    return [context for context in found if holds(settings(config, context), when)]


def holds(raw: dict[str, Any], when: Mapping[str, Any]) -> bool:
    """Whether a study has the wanted values at these dotted paths; a list stands for any of its values."""
    wanted = {path: v if isinstance(v, list) else [v] for path, v in when.items()}
    return all(value_at(raw, path) in values for path, values in wanted.items())


def _check_steps(config: StudyConfig) -> None:
    """Check that the number of steps can be set, if the study polishes a merge or adds concepts."""
    concepts = config.concepts
    asked = {
        "concepts.merge.polish_steps": concepts.mode == "merge" and concepts.merge.polish_steps,
        "concepts.added_steps": concepts.added_steps,
    }
    mistakes = [
        f"{name}: {config.defense.name} has no max_train_steps to set to {steps}; leave {name} out, or "
        "take a defense that has"
        for name, steps in asked.items()
        if steps
        and plugins.check("defenses", config.defense.name, of_steps(config.defense, steps).options)
    ]
    if mistakes:
        raise ConfigError(*mistakes)


def _ends(searched: Range) -> list[Any]:
    if searched.choices is not None:
        return list(searched.choices)
    assert searched.low is not None
    assert searched.high is not None
    whole = searched.integer
    return [round(end) if whole else end for end in (searched.low, searched.high)]


def _inside(searched: Range) -> list[float]:
    """A fraction inside a range of any numbers; [] for other ranges.

    An option that counts steps refuses it, which shows that its range must be `integer`.
    """
    if searched.low is None or searched.high is None or searched.integer:
        return []
    return [searched.low + (searched.high - searched.low) / 3**0.5]


def configure(config: StudyConfig, values: dict[str, Any]) -> StudyConfig:
    """The study of one search trial."""
    return with_values(config, values, check=plugins.check)
