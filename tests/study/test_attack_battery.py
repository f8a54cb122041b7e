"""Batteries: what becomes of their entries in a study, and the mistakes that one can make with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_study

from gift_ray import plugins
from gift_ray.config.plugin_choice import AttackConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.battery import FOLDER, described, with_battery

OWN = {
    "name": "dreambooth", "learning_rate": 1e-4, "max_train_steps": 40, "train_batch_size": 4,
    "num_evaluations": 3,
}  # fmt: skip
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))


def study(battery: str, **confirm: Any) -> StudyConfig:
    return tiny_study(attacks=[OWN], confirm={"battery": battery, "seeds": [9], **confirm})


def confirmed(config: StudyConfig) -> tuple[AttackConfig, ...]:
    assert config.confirm is not None
    return config.confirm.attacks


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_battery_fits_a_study_and_names_its_attacks_apart(name: str) -> None:
    config = with_battery(study(name))
    attacks = confirmed(config)
    titles = [attack.title for attack in attacks]
    assert len(set(titles)) == len(titles) > 20
    for attack in attacks:
        plugin = plugins.build("attacks", attack.name, attack.options)
        assert plugin.evaluation_steps()[-1] == plugin.max_train_steps
        assert plugin.train_batch_size == 4
    lines = described(config)
    assert lines[0] == f"battery {name}: confirming takes {len(attacks)} attacks"
    assert all(any(f"  {title}: " in line for line in lines) for title in titles)


def test_the_battery_of_november_2026_spans_three_decades_around_the_studys_own_rate() -> None:
    attacks = confirmed(with_battery(study("2026-11")))
    plain = [a.options["learning_rate"] for a in attacks if a.title.startswith("dreambooth x")]
    assert min(plain) == pytest.approx(3e-6)
    assert max(plain) == pytest.approx(3e-3)
    assert 1e-4 in plain


def test_rates_steps_and_shares_are_of_the_studys_own_attack(tmp_path: Path) -> None:
    mine = written(tmp_path, """
attacks:
  - {label: first, attack: dreambooth, rates: [0.5, 2], steps: 1.5, benign: true,
     shares: {benign_steps: 0.5, lr_warmup_steps: 0.001}, options: {lr_scheduler: cosine}}
""")  # fmt: skip
    slow, fast = confirmed(with_battery(study(mine)))
    assert (slow.title, fast.title) == ("first x0.5", "first x2")
    assert slow.options == {
        "learning_rate": 5e-5, "max_train_steps": 60, "train_batch_size": 4, "num_evaluations": 3,
        "benign_steps": 30, "lr_warmup_steps": 1, "lr_scheduler": "cosine",
        "benign_source": study(mine).prior.source.model_dump(mode="json"),
    }  # fmt: skip
    assert fast.options["learning_rate"] == 2e-4


def test_an_attack_that_the_study_has_not_departs_from_its_default_as_the_first_one_does(
    tmp_path: Path,
) -> None:
    mine = written(tmp_path, "attacks: [{label: adapter, attack: lora, options: {rank: 8}}]")
    (adapter,) = confirmed(with_battery(study(mine)))
    # The study's DreamBooth takes 20 times the default rate 5e-6, LoRA's default is 1e-4.
    assert adapter.options["learning_rate"] == pytest.approx(2e-3)
    assert adapter.options["max_train_steps"] == 40
    assert adapter.title == "adapter"


def test_it_comes_behind_the_studys_own_and_brings_none_of_them_twice(tmp_path: Path) -> None:
    mine = written(tmp_path, "attacks: [{label: d, attack: dreambooth, rates: [1, 2]}]")
    attacks = confirmed(with_battery(study(mine, attacks=[OWN])))
    assert [attack.title for attack in attacks] == ["dreambooth", "d x2"]


def test_the_rare_token_is_the_studys(tmp_path: Path) -> None:
    mine = written(tmp_path, "attacks: [{label: t, attack: dreambooth, rare_token: true}]")
    cat = {**tiny_study().model_dump(mode="json")["concepts"]["malicious"][0]}
    cat["instance_prompt"] = "a ohwx cat"
    with pytest.raises(
        ConfigError, match=r"rare_token: 'sks' is in no instance_prompt .*'a ohwx cat'"
    ):
        with_battery(study(mine).model_copy(update={"concepts": concepts(cat)}))
    told = study(mine, rare_token="ohwx").model_copy(update={"concepts": concepts(cat)})
    (attack,) = confirmed(with_battery(told))
    assert attack.options["caption"] == "ohwx"


def concepts(malicious: dict[str, Any]) -> Any:
    return tiny_study(concepts={"malicious": [malicious]}).concepts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("attacks: []", "at least 1 item"),
        ("attacks: [{label: a, attack: dreambooth, rate: 3}]", "did you mean 'rates'"),
        ("attacks: [{label: a, attack: dreambath}]", "did you mean 'dreambooth'"),
        ("attacks: [{label: a, attack: lora, options: {rnak: 3}}]", "did you mean 'rank'"),
        ("attacks: [", "not valid YAML"),
        ("just words", "mine.yaml"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_battery_is_one_line_that_names_it(
    text: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        with_battery(study(written(tmp_path, text)))
    assert len(caught.value.mistakes) == 1
    assert said in str(caught.value)


def test_an_unknown_battery_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="available: 2026-11"):
        with_battery(study("2031-02"))


def test_a_confirmation_attacks_with_something() -> None:
    with pytest.raises(ValueError, match="needs attacks, or a battery"):
        tiny_study(confirm={"seeds": [9]})


def test_a_study_without_a_battery_is_left_as_it_is() -> None:
    config = tiny_study()
    assert with_battery(config) is config
    assert described(config) == []
