"""Look ahead: immunizes at the weights that simulated attackers reach. These are the attack plug-ins.

In each round one attacker of a pool takes some steps on a copy of the released model. The loss on D_M is
raised at the attacked weights, and its gradient there is applied to the released weights. This is first-order
MAML (Finn et al. 2017) with a pool of attackers, as in TAR (Tamirisa et al., ICLR 2025). Prior preservation
on D_S is that of `gift`.

The defense holds about as far from the released weights as its attackers go: those who train longer, or in
ways that the pool lacks, get through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.config.plugin_choice import AttackConfig
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone, ParameterGroup
from gift_ray.plugins import Defense, build, resolve
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import Examples, Seeds, concatenate
from gift_ray.training.finetuning import Attacker, FineTuning
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.maximization import MaxLoss, max_loss
from gift_ray.training.optimizers import OptimizerName, state_bytes
from gift_ray.training.path import on_the_way
from gift_ray.training.preservation import Preservation, PriorLoss
from gift_ray.training.schedules import falling


class LookAhead(Defense):
    """Trains in rounds: `inner_steps` of prior preservation, `attack_steps` of one attacker, one outer step.

    By default an attacker begins each of its rounds at the released weights. A `persistent` one keeps what it
    has learnt (its change of the weights, or its adapter, and the state of its optimizer) from round to
    round, while the released weights change; each needs the memory of a model for the whole training. With
    `path` the round of an attacker begins at a random share of the way to the base.
    """

    version: ClassVar[int] = 1

    attackers: tuple[AttackConfig, ...] = Field(
        (AttackConfig(name="dreambooth"), AttackConfig(name="lora")), min_length=1,
        description="attacks with their options, in turn; all train on batches of train_batch_size",
    )  # fmt: skip
    attack_steps: int = Field(4, gt=0, description="of an attacker in each of its rounds")
    persistent: bool = Field(False, description="attackers go on from round to round")
    path: float = Field(
        0.0, ge=0, le=0.95, description="attackers begin up to this share of the way to the base"
    )
    alpha_inner: float = Field(
        5e-6, gt=0, description="learning rate of the inner level, whole denoiser"
    )
    alpha_outer: float = Field(2e-5, gt=0, description="learning rate of the outer level")
    max_train_steps: int = Field(
        1000, gt=0, description="inner, attack and outer steps together, each a batch"
    )
    inner_steps: int = Field(1, gt=0, description="inner steps of each round")
    train_batch_size: int = Field(1, gt=0)
    parameter_group: ParameterGroup = Field("all", description="what the outer level trains")
    max_loss: MaxLoss = "hinge"
    margin: float = Field(
        1.0, gt=0, description="of the hinge: predicting nothing gives an MSE of 1"
    )
    prior_loss: PriorLoss = "denoising"
    caption_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of D_S that the inner level sees without its caption"
    )
    decay: float = Field(
        0.0, ge=0, le=1,
        description="share of the rounds, the last, over which both rates fall to 0",
    )  # fmt: skip
    optimizer: OptimizerName = "adamw"
    max_grad_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _attackers_train_the_denoiser(self) -> LookAhead:
        for each in (member for one in self.attackers for member in one.members()):
            if "train_batch_size" in each.options:
                raise ValueError(
                    f"attackers: {each.title} sets train_batch_size, which is the defense's own; remove it"
                )
            trains_words = each.name == "textual_inversion" or each.options.get(
                "train_text_encoder"
            )
            if trains_words or not issubclass(resolve("attacks", each.name), FineTuning):
                raise ValueError(
                    f"attackers: {each.title} trains something else than the denoiser; take dreambooth, "
                    "full_finetune or lora"
                )
        return self

    def pool(self) -> list[FineTuning]:
        """The attacks of the pool; each setting of a grid is an attack of its own."""
        batch = {"train_batch_size": self.train_batch_size}
        return [
            build("attacks", each.name, each.options | batch)
            for one in self.attackers
            for each in one.members()
        ]

    def require(self, base: Architecture) -> None:
        for attack in self.pool():
            attack.require(base)

    def footprint(self, base: Architecture) -> Footprint:
        """Both levels, and the largest of the attackers, or all of them where they stay."""
        levels = Footprint.of(self.optimizer, base.sizes("all"), weights=base.weights) + Footprint(
            optimizer=state_bytes(self.optimizer, base.sizes(self.parameter_group))
        )
        attackers = [attack.footprint(base) for attack in self.pool()]
        # An adapter sits on a copy here, since the model's own weights are in training.
        attackers = [
            one if one.weights >= base.weights else one + Footprint(weights=base.weights)
            for one in attackers
        ]
        if self.persistent:
            return sum(attackers, levels)
        return levels + max(attackers, key=lambda attacker: attacker.total)

    def identity(self) -> dict[str, Any]:
        # The identities of the attacks hold their versions and all of their options, including defaults.
        return super().identity() | {"attackers": [attack.identity() for attack in self.pool()]}

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        d_m, released, pool = concatenate(malicious), model.clone(), self.pool()
        per_round = self.inner_steps + self.attack_steps + 1
        persistent = [
            _at_rest(attack, model, d_m, _seeds_of(seeds, i), f"attacker {i}")
            for i, attack in enumerate(pool if self.persistent else ())
        ]
        run = Rounds(
            options=self, base=model, model=released, d_m=d_m, pool=pool, persistent=persistent,
            preservation=Preservation(
                self.prior_loss, model, safe, self.train_batch_size, self.caption_dropout, seeds
            ),
            inner=self._level(released, "all", self.alpha_inner),
            outer=self._level(released, self.parameter_group, self.alpha_outer),
            count=math.ceil(self.max_train_steps / per_round), seeds=seeds,
        )  # fmt: skip

        def round_(index: int) -> dict[str, Scalar]:
            images = (index + 1) * per_round * self.train_batch_size
            return run.round(index) | {"images_seen": images}

        levels = {"inner": run.inner, "outer": run.outer}
        levels |= {f"attacker {i}": attacker.level for i, attacker in enumerate(persistent)}
        train(round_, run.count, levels, report, advice="lower alpha_outer")
        return released

    def _level(self, model: Backbone, group: ParameterGroup, rate: float) -> Level:
        return Level(
            model.parameters(group), optimizer=self.optimizer, learning_rate=rate,
            max_grad_norm=self.max_grad_norm, fp16=model.mixed_precision == "fp16",
        )  # fmt: skip


@dataclass(frozen=True)
class Rounds:
    """One training of a model that starts as `base`: the model, the attackers, and the two levels.

    Between their rounds the weights of `persistent` attackers hold only their change of the model's weights.
    """

    options: LookAhead
    base: Backbone
    model: Backbone
    d_m: Examples
    pool: Sequence[FineTuning]
    persistent: Sequence[Attacker]
    preservation: Preservation
    inner: Level
    outer: Level
    count: int
    seeds: Seeds

    def round(self, index: int) -> dict[str, Scalar]:
        """One round: preserve, attack, immunize. Returns the values to log."""
        options, rate = self.options, falling(index, self.count, self.options.decay)
        values: dict[str, Scalar] = {}
        for k in range(options.inner_steps):
            drawn = self.preservation.draw(index * options.inner_steps + k)
            loss = self.preservation.loss(self.model, *drawn)
            values["L_prior"] = number(loss)
            values["grad_norm_inner"] = self.inner.step(self.inner.gradients(loss), rate)
        share = float(torch.rand((), generator=self.seeds.generator("path", index)))
        with on_the_way(self.model, self.base, share * options.path), self._attacker(index) as one:
            gradients, found = self._attacked_gradients(one, index)
        return values | found | {"grad_norm_outer": self.outer.step(gradients, rate)}

    @contextmanager
    def _attacker(self, index: int) -> Iterator[Attacker]:
        """The attacker whose turn it is, at the weights that the model has now."""
        turn = index % len(self.pool)
        if not self.persistent:
            seeds = _seeds_of(self.seeds, index)
            yield self.pool[turn].attacker(self.model, self.d_m, seeds)
            return
        attacker = self.persistent[turn]
        _add(attacker, self.model, 1)
        try:
            yield attacker
        finally:
            _add(attacker, self.model, -1)

    def _attacked_gradients(
        self, attacker: Attacker, index: int
    ) -> tuple[list[Tensor], dict[str, Scalar]]:
        """The gradients of mean L_max on D_M at the attacked weights, after the attacker's steps."""
        options = self.options
        # The schedule of a persistent attacker continues from its earlier turns, one in len(pool) rounds.
        earlier = index // len(self.pool) * options.attack_steps if self.persistent else 0
        values: dict[str, Scalar] = {}
        for k in range(options.attack_steps):
            generator = self.seeds.generator("attack", index * options.attack_steps + k)
            values["L_attack"] = attacker.step(earlier + k, generator)["loss"]

        attacked = attacker.trainee.model
        at = attacked.parameters(options.parameter_group)
        for parameter in at.values():
            parameter.requires_grad_(True)
        generator = self.seeds.generator("outer", index)
        batch = attacker.concept.batch(options.train_batch_size, generator)
        noise, times = attacked.draw(len(batch), generator)
        mse = attacked.denoising_loss(batch.latents, batch.conditioning, times, noise)
        loss = max_loss(mse, options.max_loss, options.margin).mean()
        values |= {"L_max": number(loss), "mse_malicious": number(mse.mean())}
        return self.outer.gradients(loss, at=at), values


def _at_rest(
    attack: FineTuning, model: Backbone, d_m: Examples, seeds: Seeds, name: str
) -> Attacker:
    """A persistent attacker before its first step, with the model's weights subtracted from its own.

    Its parameters have names of their own, since a checkpoint holds those of all attackers.
    """
    # It gets a copy of its own: at rest its weights are its change alone.
    first = attack.attacker(model.clone(), d_m, seeds)
    parameters = {f"{name}: {n}": p for n, p in first.trainee.parameters.items()}
    trainee = replace(first.trainee, parameters=parameters)
    attacker = attack.attack_on(trainee, first.concept, first.benign)
    _add(attacker, model, -1)
    return attacker


@torch.no_grad()
def _add(attacker: Attacker, model: Backbone, sign: int) -> None:
    """Add the model's weights to the attacker's own, or subtract them (`sign`). An adapter is left alone."""
    own: Mapping[str, Tensor] = attacker.trainee.model.parameters("all")
    for name, weight in model.parameters("all").items():
        own[name].add_(weight, alpha=sign)


def _seeds_of(seeds: Seeds, index: int) -> Seeds:
    """The random streams of one attacker that is built."""
    return Seeds(seeds.generator("attacker", index).initial_seed())
