"""What a study needs to fit a GPU of some size.

`model.preset` sets every option that saves memory and that the study does not set itself, and refuses what
does not fit even so.
"""

from __future__ import annotations

from typing import Any

from gift_ray import plugins
from gift_ray.config.read_config import with_values
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.memory import needed

LEAN = {"gradient_checkpointing": True, "low_memory": True, "mixed_precision": "bf16"}
# With 24 GB there is no room for a second denoiser, nor for its gradients.
OPTIONS: dict[str, dict[str, Any]] = {
    "24gb": {"optimizer": "adamw_8bit", "rank": 16},
    "80gb": {"optimizer": "adamw_8bit"},
}
GIGABYTES = {"24gb": 24, "80gb": 80}


def with_preset(config: StudyConfig) -> StudyConfig:
    """The study with the options of `model.preset` where it sets none itself."""
    if config.model.preset is None:
        return config
    given = config.model.model_fields_set
    values: dict[str, Any] = {f"model.{n}": v for n, v in LEAN.items() if n not in given}
    options = OPTIONS[config.model.preset]
    chosen: dict[str, Any] = {"defense": config.defense}
    chosen |= {f"rivals.{i}": one for i, one in enumerate(config.rivals)}
    chosen |= {f"attacks.{i}": one for i, one in enumerate(config.attacks)}
    if config.confirm:
        chosen |= {f"confirm.attacks.{i}": one for i, one in enumerate(config.confirm.attacks)}
    for place, one in chosen.items():
        fields = plugins.resolve(one.kind, one.name).model_fields
        set_there = one.options | getattr(one, "grid", {})
        for name, value in options.items():
            # A rank is set only where it is None by default: that of a LoRA attack is the attacker's choice.
            optional = name in fields and (name != "rank" or fields[name].default is None)
            if optional and name not in set_there:
                values[f"{place}.{name}"] = value
    return with_values(config, values, check=plugins.check)


def check_preset(config: StudyConfig) -> None:
    """Compare the computed memory of the study's trainings with that of the preset's GPU.

    Raises:
        ConfigError: a line for each training that does not fit.
    """
    if config.model.preset is None:
        return
    most = GIGABYTES[config.model.preset] * 10**9
    mistakes = [
        f"model.preset: {config.model.preset} does not hold {each}; leave it out, train an adapter (lora, or "
        "gift with a rank), or take a larger GPU"
        for each in needed(config)
        if each.total > most
    ]
    if mistakes:
        raise ConfigError(*mistakes)
