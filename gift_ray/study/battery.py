"""A battery: a dated list of attacks for the confirmation of a study, which the search did not use.

A study asks for it by its date, `confirm: {battery: 2026-11}`, or by the path of a file in the same form. The
file gives learning rates and steps as multiples of the study's own, since suitable rates differ by factors of
ten and more between models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from gift_ray import plugins
from gift_ray.config.mistakes import mistakes_of
from gift_ray.config.part import Fraction, Part
from gift_ray.config.plugin_choice import AttackConfig
from gift_ray.config.read_config import with_values
from gift_ray.config.schema import StudyConfig
from gift_ray.config.yaml_text import read_yaml
from gift_ray.errors import ConfigError

FOLDER = Path(__file__).with_name("batteries")
# The options that an attack of the battery takes from the study's own attack: multiplied, and as they are.
SCALED = ("learning_rate", "max_train_steps")
TAKEN = ("train_batch_size", "num_evaluations")


class Entry(Part):
    """One kind of attacker.

    Attributes:
        rates: factors of the learning rate; there is one attack for each.
        steps: the factor of the number of steps.
        shares: options that count steps, each given as a share of the attack's steps.
        benign: whether the attack has benign images beside the concept's.
    """

    label: str
    attack: str
    rates: tuple[float, ...] = Field((1.0,), min_length=1)
    steps: float = Field(1.0, gt=0)
    shares: dict[str, Fraction] = Field(default_factory=dict)
    benign: bool = False
    rare_token: bool = False
    options: dict[str, Any] = Field(default_factory=dict)


class Battery(Part):
    """The contents of a battery's file."""

    attacks: tuple[Entry, ...] = Field(min_length=1)


def with_battery(config: StudyConfig) -> StudyConfig:
    """The study with the attacks of `confirm.battery` added after those of `confirm.attacks`.

    Raises:
        ConfigError: there is no such battery, its file has mistakes, or its attacks don't fit the study.
    """
    if config.confirm is None or config.confirm.battery is None:
        return config
    battery = read(config.confirm.battery)
    there = [member for attack in config.confirm.attacks for member in attack.members()]
    own = [attack.model_dump(mode="json") for attack in config.confirm.attacks]
    added = [
        attack
        for entry in battery.attacks
        for attack in _attacks(entry, config)
        if not any(_same(attack, other) for other in there)
    ]
    try:
        return with_values(config, {"confirm.attacks": [*own, *added]}, check=plugins.check)
    except ConfigError as error:
        name = config.confirm.battery
        raise ConfigError(
            *(f"confirm.battery {name}: {line}" for line in error.mistakes)
        ) from error


def read(name: str) -> Battery:
    """Read a battery, given its date or the path of its file.

    Raises:
        ConfigError: there is no such file, or it does not hold a battery.
    """
    path = (
        Path(name).expanduser()
        if "/" in name or name.endswith(".yaml")
        else FOLDER / f"{name}.yaml"
    )
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise ConfigError(
            f"confirm.battery: {name!r} is not there; available: {names}, or give the path of a file"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    try:
        return Battery.model_validate(raw)
    except ValidationError as error:
        fields = [*Battery.model_fields, *Entry.model_fields]
        found = mistakes_of(error, lambda _: fields)
        lines = [f"{path}: {field or 'battery'}: {message}" for field, message in found]
        raise ConfigError(*lines) from error


def described(config: StudyConfig) -> list[str]:
    """The attacks of the confirmation, one line each; [] without a battery."""
    confirm = config.confirm
    if confirm is None or confirm.battery is None:
        return []
    members = [member for attack in confirm.attacks for member in attack.members()]
    return [
        f"battery {confirm.battery}: confirming takes {len(members)} attacks",
        *map(_line, members),
    ]


def _line(attack: AttackConfig) -> str:
    shown = (f"{key} {_in_short(value)}" for key, value in attack.options.items())
    return f"  {attack.title}: {attack.name}, {', '.join(shown)}"


def _in_short(value: Any) -> str:
    """An option's value on one line; a source is shown by its name."""
    if isinstance(value, dict):
        return str(value["name"])
    return f"{value:g}" if isinstance(value, float) else str(value)


def _attacks(entry: Entry, config: StudyConfig) -> list[dict[str, Any]]:
    """The attacks of an entry in the form that a study gives them, one for each rate."""
    own = _own(entry.attack, config)
    steps = max(1, round(own["max_train_steps"] * entry.steps))
    shares = {option: max(1, round(share * steps)) for option, share in entry.shares.items()}
    benign = {"benign_source": _benign(config)} if entry.benign else {}
    caption = {"caption": _rare_token(config)} if entry.rare_token else {}
    several = len(entry.rates) > 1
    return [
        {
            "name": entry.attack,
            "label": f"{entry.label} x{rate:g}" if several else entry.label,
            **own,
            "learning_rate": own["learning_rate"] * rate,
            "max_train_steps": steps,
            **shares,
            **benign,
            **caption,
            **entry.options,
        }
        for rate in entry.rates
    ]


def _own(name: str, config: StudyConfig) -> dict[str, Any]:
    """The study's own learning rate, steps, batch size and number of evaluations for an attack.

    They are taken from its first attack of that name. If it has none, steps, batch size and evaluations are
    those of its first attack, and the learning rate is the default of the named attack times the factor by
    which the study's first attack differs from its own default.
    """
    attacks = [
        member
        for attack in config.attacks
        for member in attack.members()
        if "learning_rate" in plugins.resolve("attacks", member.name).model_fields
    ]
    if not attacks:
        raise ConfigError(
            "confirm.battery: takes its learning rates from the study's attacks, and none has one; add "
            "dreambooth to attacks"
        )
    first = next((attack for attack in attacks if attack.name == name), attacks[0])
    found = {option: _value(first, option) for option in (*SCALED, *TAKEN)}
    if first.name != name:
        factor = found["learning_rate"] / _default(first.name, "learning_rate")
        found["learning_rate"] = _default(name, "learning_rate") * factor
    return found


def _value(attack: AttackConfig, option: str) -> Any:
    return attack.options.get(option, _default(attack.name, option))


def _default(attack: str, option: str) -> Any:
    return plugins.resolve("attacks", attack).model_fields[option].default


def _benign(config: StudyConfig) -> dict[str, Any]:
    """The source of the attacker's benign images: that of the first safe concept, or else of D_S."""
    concepts = config.concepts.safe
    source = concepts[0].attacker_source if concepts else config.prior.source
    return source.model_dump(mode="json")


def _rare_token(config: StudyConfig) -> str:
    """The word that stands for a concept in the study's instance prompts.

    Raises:
        ConfigError: it stands in none of them.
    """
    assert config.confirm is not None
    token = config.confirm.rare_token
    prompts = [c.instance_prompt for c in config.concepts.malicious if c.instance_prompt]
    if prompts and not any(token in prompt.split() for prompt in prompts):
        raise ConfigError(
            f"confirm.rare_token: {token!r} is in no instance_prompt (one is {prompts[0]!r}); give the word "
            "that stands for the concept there"
        )
    return token


def _same(attack: dict[str, Any], other: AttackConfig) -> bool:
    options = {key: value for key, value in attack.items() if key not in ("name", "label")}
    return attack["name"] == other.name and options == other.options
