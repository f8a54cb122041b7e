"""Chains of defenses: what each member is given, where a killed one continues, how it is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from killed import Killed, KilledJournal
from test_schema import STUDY
from tiny import same_weights, weights
from torch import Tensor

from gift_ray import plugins
from gift_ray.config.read_config import with_values
from gift_ray.config.schema import StudyConfig
from gift_ray.defenses.chain import Chain
from gift_ray.defenses.gift import Gift
from gift_ray.defenses.post_immunization import PostImmunization
from gift_ray.errors import ConfigError
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import Defense
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds

SEEDS = Seeds(11)
RATES = {"alpha_inner": 1e-3, "alpha_outer": 1e-3}
GIFT = {"name": "gift", "max_train_steps": 6, **RATES}
PI = {"name": "post_immunization", "max_train_steps": 3, "learning_rate": 1e-3, "num_images": 2,
      "num_inference_steps": 2}  # fmt: skip
IMMA = {"name": "imma", "max_train_steps": 6, "inner_attack": "lora"}

CHAIN = Chain(defenses=(GIFT, IMMA, PI))


def trained(
    defense: Defense, model: StableDiffusion, d_m: Examples, safe: Examples, report: LocalJournal,
    seeds: Seeds = SEEDS,
) -> StableDiffusion:  # fmt: skip
    return defense.immunize(model, [d_m], safe, seeds=seeds, report=report)


def built(member: dict[str, Any]) -> Defense:
    return plugins.build(
        "defenses", member["name"], {k: v for k, v in member.items() if k != "name"}
    )


def test_members_follow_each_other(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    first = trained(built(GIFT), tiny_model, malicious, safe, journal)
    one = trained(Chain(defenses=(GIFT,)), tiny_model, malicious, safe, journal)
    assert same_weights(weights(one), weights(first))

    seeds = Seeds(SEEDS.generator("member", 1).initial_seed())
    second = trained(built(PI), first, malicious, safe, journal, seeds)
    both = trained(Chain(defenses=(GIFT, PI)), tiny_model, malicious, safe, journal)
    assert same_weights(weights(both), weights(second))
    assert not same_weights(weights(both), weights(one))


Run = tuple[dict[str, Tensor], list[dict[str, float]]]


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:  # fmt: skip
    """Weights and log of the chain below, three steps each member."""
    report = LocalJournal(tmp_path_factory.mktemp("chain") / "straight.safetensors", every=10**6)
    return weights(trained(CHAIN, tiny_model, malicious, safe, report)), report.rows


@pytest.mark.parametrize("kill_at", [2, 4, 6, 8])
def test_a_killed_chain_continues_inside_its_member_bit_for_bit(
    kill_at: int, undisturbed: Run, tiny_model: StableDiffusion, malicious: Examples,
    safe: Examples, killed_journal: KilledJournal,
) -> None:  # fmt: skip
    """Inside every member, and at a boundary."""
    expected, rows = undisturbed
    killed_journal.every = kill_at // 2
    with pytest.raises(Killed):
        trained(CHAIN, tiny_model, malicious, safe, killed_journal)
    again = LocalJournal(killed_journal.path, every=10**6)
    assert same_weights(weights(trained(CHAIN, tiny_model, malicious, safe, again)), expected)
    assert again.rows == rows
    assert len(again.rows) == 9


def test_post_immunization_trains_on_what_the_given_model_draws(
    tiny_model: StableDiffusion, malicious: Examples, safe: Examples, journal: LocalJournal
) -> None:
    options = {k: v for k, v in PI.items() if k != "name"}
    images = tiny_model.generate(
        ["a barn"] * 2, seeds=SEEDS, num_inference_steps=2, guidance_scale=7.5, batch_size=1
    )
    drawn = tiny_model.encode(images, ["a barn"] * 2, ["x", "y"])
    by_prompt = PostImmunization(**options, prompt="a barn")
    by_data = PostImmunization(**options, prompt=None)
    found = weights(trained(by_prompt, tiny_model, malicious, safe, journal))
    assert same_weights(found, weights(trained(by_data, tiny_model, malicious, drawn, journal)))
    assert not same_weights(found, weights(trained(by_data, tiny_model, malicious, safe, journal)))


def test_the_identity_holds_every_member_whole() -> None:
    identity = Chain(defenses=(GIFT, {"name": "esd"})).identity()
    assert identity["name"] == "chain"
    assert identity["defenses"] == [built(GIFT).identity(), built({"name": "esd"}).identity()]
    assert identity["defenses"][0]["beta"] == Gift().beta
    assert Chain(defenses=({"name": "esd"}, GIFT)).identity() != identity


def study(*defenses: Any) -> StudyConfig:
    raw = copy.deepcopy(STUDY) | {"defense": {"name": "chain", "defenses": list(defenses)}}
    return StudyConfig.model_validate(raw, context={"check": plugins.check})


def test_a_members_option_is_set_by_its_dotted_path() -> None:
    config = study({"name": "esd"}, {"name": "gift", "beta": 0.1})
    changed = with_values(config, {"defense.defenses.1.beta": 0.7}, check=plugins.check)
    assert changed.defense.options["defenses"] == [{"name": "esd"}, {"name": "gift", "beta": 0.7}]
    assert config.defense.options["defenses"][1]["beta"] == 0.1
    assert with_values(config, {}, check=plugins.check) == config


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("1.betta", 1, "defense.defenses.1.betta: unknown key; did you mean 'beta'?"),
        ("1.beta", -1, "defense.defenses.1.beta: -1 is not allowed: "),
        ("1.max_weight", 0, "defense.defenses.1: beta and max_weight are both 0"),
        ("0.name", "esdd", "defense.defenses.0.name: 'esdd' is not one of the defenses; did you"),
        ("1", {"beta": 1}, "defense.defenses.1.name: is missing; add it"),
        ("1", {"name": "chain", "defenses": [{"name": "gift", "betta": 1}]},
         "defense.defenses.1.defenses.0.betta: unknown key; did you mean 'beta'?"),
    ],
)  # fmt: skip
def test_a_members_mistake_is_one_line_at_its_place(path: str, value: Any, line: str) -> None:
    config = study({"name": "esd"}, {"name": "gift", "beta": 0})
    with pytest.raises(ConfigError) as error:
        with_values(config, {f"defense.defenses.{path}": value}, check=plugins.check)
    (found,) = error.value.mistakes
    assert found.startswith(line)


def test_an_empty_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        study()
