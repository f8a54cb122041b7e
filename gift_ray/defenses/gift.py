"""GIFT (Abdalla et al., arXiv 2507.13598), Algorithm 1: alternate, persistently, an inner step of
prior preservation over the whole denoiser (alpha_inner, D_S) and an outer step of immunization over the
cross-attention parameters psi (alpha_outer, D_M). The defaults are our best; `gift_paper` is the
paper's letter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gift_ray.errors import UnitFailed
from gift_ray.models.backbone import Backbone, NoiseLayers, ParameterGroup
from gift_ray.plugins import Defense
from gift_ray.training import parallel
from gift_ray.training.diffusion import (
    Batch,
    Examples,
    Seeds,
    balanced_batch,
    capture,
    concatenate,
    dot,
    full,
    per_sample_mse,
)
from gift_ray.training.loop import Level, OptimizerName, Report, train

# Below this share of the base's standard deviation, activations have lost their scale, not only the
# concept: the model is destroyed, and no score of it would mean anything.
COLLAPSED_STD_RATIO = 1e-3


class Gift(Defense):
    """Representation noising and loss maximization against D_M, prior preservation on D_S."""

    version: ClassVar[int] = 1

    alpha_inner: float = Field(
        5e-6, gt=0, description="learning rate of the inner level, whole denoiser"
    )
    alpha_outer: float = Field(2e-5, gt=0, description="learning rate of the outer level, psi")
    beta: float = Field(0.1, ge=0, description="weight of L_noise in Eq. 8")
    max_weight: float = Field(1.0, ge=0, description="weight of L_max in Eq. 8; 0: noise only")
    max_train_steps: int = Field(1000, gt=0, description="inner and outer steps together")
    inner_steps: int = Field(1, gt=0, description="inner steps of each round")
    outer_steps: int = Field(1, gt=0, description="outer steps of each round")
    train_batch_size: int = Field(1, gt=0)
    parameter_group: ParameterGroup = "cross_attention"
    max_loss: Literal["negative", "hinge", "log"] = "hinge"
    margin: float = Field(
        1.0, gt=0, description="of the hinge: predicting nothing gives an MSE of 1"
    )
    noise_target: Literal["sample", "frozen"] = "frozen"
    noise_layers: NoiseLayers = "blocks"
    coordination: Literal["alternate", "joint", "project"] = "alternate"
    # Of several concepts only. Left out of the identity at their defaults: models against one concept
    # are what they were before these options were there.
    concept_sampling: Literal["balanced", "proportional"] = Field(
        "balanced", exclude_if=lambda value: value == "balanced",
        description="concepts in turn, or by their number of images",
    )  # fmt: skip
    concept_projection: bool = Field(
        False, exclude_if=lambda value: not value,
        description="remove what in one concept's outer gradient opposes another's",
    )  # fmt: skip
    optimizer: OptimizerName = "adamw"
    max_grad_norm: float | None = Field(1.0, gt=0)

    @model_validator(mode="after")
    def _something_immunizes(self) -> Gift:
        if self.beta == self.max_weight == 0:
            raise ValueError("beta and max_weight are both 0: nothing would immunize; raise one")
        return self

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        base, model = model, model.clone()
        inner = self._level(model, "all", self.alpha_inner)
        outer = self._level(model, self.parameter_group, self.alpha_outer)
        d_m = malicious if self.concept_sampling == "balanced" else [concatenate(malicious)]
        noise = NoiseTarget.of(self, base, concatenate(malicious), seeds)

        rounds = math.ceil(self.max_train_steps / (self.inner_steps + self.outer_steps))
        per_round = 2 if self.coordination == "joint" else self.inner_steps + self.outer_steps
        one_round = self._joint_round if self.coordination == "joint" else self._alternating_round

        def round_(index: int) -> dict[str, float]:
            values = one_round(model, d_m, safe, inner, outer, noise, seeds, index)
            if values.get("std_ratio", 1.0) < COLLAPSED_STD_RATIO:
                raise UnitFailed(
                    f"step {index + 1}: activations collapsed (std ratio {values['std_ratio']:.1e})"
                )
            return values | {"images_seen": (index + 1) * per_round * self.train_batch_size}

        advice = "lower alpha_outer or beta"
        train(round_, rounds, {"inner": inner, "outer": outer}, report, advice=advice)
        return model

    def _level(self, model: Backbone, group: ParameterGroup, rate: float) -> Level:
        return Level(
            model.parameters(group),
            optimizer=self.optimizer,
            learning_rate=rate,
            max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )

    def _alternating_round(
        self, model: Backbone, d_m: Sequence[Examples], d_s: Examples, inner: Level,
        outer: Level, noise: NoiseTarget, seeds: Seeds, index: int,
    ) -> dict[str, float]:  # fmt: skip
        """Algorithm 1, lines 2-13: theta' = theta - alpha_P grad L_P, psi'' = psi' - alpha_I grad L_I
        (Eq. 2). With `project`, what in the outer gradient opposes the last inner one is removed."""
        values: dict[str, float] = {}
        names = list(inner.parameters)
        psi = [names.index(name) for name in outer.parameters]
        for k in range(self.inner_steps):
            at = index * self.inner_steps + k
            gradients, parts = self._prior_gradients(model, d_s, inner, seeds, at)
            prior_on_psi = [gradients[i].clone() for i in psi]
            values |= parts | {"grad_norm_inner": inner.step(gradients)}
        for k in range(self.outer_steps):
            at = index * self.outer_steps + k
            gradients, parts = self._immunize_gradients(model, d_m, outer, noise, seeds, at)
            values |= parts | {"cosine": _cosine(gradients, prior_on_psi)}
            if self.coordination == "project":
                gradients = project(gradients, prior_on_psi)
            values["grad_norm_outer"] = outer.step(gradients)
        return values

    def _joint_round(
        self, model: Backbone, d_m: Sequence[Examples], d_s: Examples, inner: Level,
        outer: Level, noise: NoiseTarget, seeds: Seeds, index: int,
    ) -> dict[str, float]:  # fmt: skip
        """Both gradients at the same weights, one summed update: Eq. 4 without its last term."""
        inner_gradients, prior = self._prior_gradients(model, d_s, inner, seeds, index)
        outer_gradients, parts = self._immunize_gradients(model, d_m, outer, noise, seeds, index)
        names = list(inner.parameters)
        on_psi = [inner_gradients[names.index(name)] for name in outer.parameters]
        cosine = _cosine(outer_gradients, on_psi)
        return parts | prior | {
            "cosine": cosine,
            "grad_norm_inner": inner.step(inner_gradients),
            "grad_norm_outer": outer.step(outer_gradients),
        }  # fmt: skip

    def _prior_gradients(
        self, model: Backbone, d_s: Examples, inner: Level, seeds: Seeds, index: int
    ) -> tuple[list[Tensor], dict[str, float]]:
        """Gradients of Eq. 9 on a batch of D_S, and its value."""
        generator = seeds.generator("inner", index)
        batch = d_s.batch(self.train_batch_size, generator)
        noise, timesteps = model.draw(self.train_batch_size, generator)

        def loss_of(rows: list[int]) -> tuple[Tensor, dict[str, float]]:
            loss = prior_loss(model, batch.take(rows), timesteps[rows], noise[rows])
            return loss, {"L_prior": loss.item()}

        return _gradients_of(inner, loss_of, range(len(batch)), len(batch))

    def _immunize_gradients(
        self, model: Backbone, d_m: Sequence[Examples], outer: Level, target: NoiseTarget,
        seeds: Seeds, index: int,
    ) -> tuple[list[Tensor], dict[str, float]]:  # fmt: skip
        """Gradients of Eq. 8 on a batch of D_M, and its parts for the log."""
        generator = seeds.generator("outer", index)
        batch, concepts = balanced_batch(d_m, self.train_batch_size, generator)
        noise, timesteps = model.draw(len(batch), generator)

        def loss_of(rows: list[int]) -> tuple[Tensor, dict[str, float]]:
            mine, t, eps = batch.take(rows), timesteps[rows], noise[rows]
            with capture(model.layers(self.noise_layers)) as activations:
                mse = model.denoising_loss(mine.latents, mine.conditioning, t, eps)
            l_max = max_loss(mse, self.max_loss, self.margin).mean()
            layers = target.losses(activations, batch.keys, seeds, index, rows)
            l_noise = torch.stack(list(layers.values())).sum()
            values = {
                "L_max": l_max.item(),
                "L_noise": l_noise.item(),
                "mse_malicious": mse.mean().item(),
            }
            values |= {f"L_noise/{name}": value.item() for name, value in layers.items()}
            values |= target.diagnostics(activations, mine, t, eps)
            return self.max_weight * l_max + self.beta * l_noise, values

        if not self.concept_projection:
            return _gradients_of(outer, loss_of, range(len(batch)), len(batch))
        # One concept at a time: its share of the batch's gradient, and of the means that are logged.
        each = [_gradients_of(outer, loss_of, rows, len(batch)) for rows in concepts]
        order = torch.randperm(len(each), generator=generator).tolist()
        gradients = without_conflicts([gradients for gradients, _ in each], order)
        shares = [len(rows) / len(batch) for rows in concepts]
        values = {
            name: sum(w * parts[name] for w, (_, parts) in zip(shares, each, strict=True))
            for name in each[0][1]
        }
        return gradients, values


@dataclass(frozen=True)
class NoiseTarget:
    """The eps_m^(j) of Eq. 7: what the activations of D_M are pulled to.

    `sample`: fresh noise with the mean and variance of the current activation, as the paper writes.
    `frozen`: noise with the base's per-channel mean and deviation, fixed for each image and layer,
    the error divided by the base's variance. In expectation the first's gradient only shrinks an
    activation; in a real unet, whose layers share weights, both shrink and both take away what
    the activation says, the first more of it (docs/LOG.md).
    """

    kind: str
    base: Backbone
    which: NoiseLayers
    mean: dict[str, Tensor]
    std: dict[str, Tensor]

    @classmethod
    def of(cls, defense: Gift, base: Backbone, d_m: Examples, seeds: Seeds) -> NoiseTarget:
        """Measure the base's statistics per channel over all of D_M, a few timesteps each."""
        totals: dict[str, list[Tensor]] = {}
        for index in range(4):
            generator = seeds.generator("noise-statistics", index)
            batch = d_m.batch(min(len(d_m), 16), generator)
            noise, timesteps = base.draw(len(batch.keys), generator)
            for name, z in _activations(
                base, defense.noise_layers, batch, timesteps, noise
            ).items():
                totals.setdefault(name, []).append(full(_channels_first(z)))
        stacked = {name: torch.cat(parts) for name, parts in totals.items()}
        mean = {name: z.mean((0, 2)) for name, z in stacked.items()}
        std = {name: z.std((0, 2)).clamp_min(1e-6) for name, z in stacked.items()}
        return cls(defense.noise_target, base, defense.noise_layers, mean, std)

    def losses(
        self, activations: dict[str, Tensor], keys: tuple[str, ...], seeds: Seeds, index: int,
        rows: Sequence[int],
    ) -> dict[str, Tensor]:  # fmt: skip
        """The terms of Eq. 7, one scalar for each layer j: means over `rows`, whose activations these
        are, of the batch with `keys`."""
        if self.kind == "sample":
            return {
                name: noise_loss(z, seeds.generator(f"noise/{name}", index), rows, len(keys)).mean()
                for name, z in activations.items()
            }
        mine = tuple(keys[i] for i in rows)
        return {
            name: self._frozen_loss(name, _channels_first(z), mine, seeds).mean()
            for name, z in activations.items()
        }

    def _frozen_loss(self, name: str, z: Tensor, keys: tuple[str, ...], seeds: Seeds) -> Tensor:
        """MSE to the image's own fixed noise, in units of the base's deviation: [B, C, P] -> [B]."""
        fixed = [
            torch.randn(z.shape[1:], generator=seeds.generator(f"frozen/{name}/{k}")) for k in keys
        ]
        scale, shift = self.std[name][:, None], self.mean[name][:, None]
        return per_sample_mse((full(z) - shift) / scale, torch.stack(fixed).to(z.device))

    def diagnostics(
        self, activations: dict[str, Tensor], batch: Batch, timesteps: Tensor, noise: Tensor
    ) -> dict[str, float]:
        """Means over layers of std(z) / std(base z) and of the correlation of z to the base's z."""
        reference = _activations(self.base, self.which, batch, timesteps, noise)
        ratios, correlations = [], []
        for name, z in activations.items():
            now, then = full(z.detach()).flatten(), full(reference[name]).flatten()
            ratios.append(float(now.std() / then.std().clamp_min(1e-12)))
            correlations.append(float(torch.corrcoef(torch.stack([now, then]))[0, 1]))
        return {
            "std_ratio": sum(ratios) / len(ratios),
            "correlation": sum(correlations) / len(correlations),
        }


def prior_loss(model: Backbone, batch: Batch, timesteps: Tensor, noise: Tensor) -> Tensor:
    """L_prior = E || eps_theta(x_s, c_s, t) - eps ||^2 (Eq. 9), a scalar."""
    return model.denoising_loss(batch.latents, batch.conditioning, timesteps, noise).mean()


def max_loss(mse: Tensor, kind: str, margin: float) -> Tensor:
    """L_max from the per-sample denoising errors [B] -> [B].

    `negative` is Eq. 5, unbounded below; `hinge` max(0, margin - mse) stops at the margin; `log`
    -log(1 + mse) slows down.
    """
    if kind == "negative":
        return -mse
    if kind == "hinge":
        return torch.relu(margin - mse)
    return -torch.log1p(mse)


def noise_loss(z: Tensor, generator: torch.Generator, rows: Sequence[int], size: int) -> Tensor:
    """One term of Eq. 7 for each sample: MSE(z, eps), eps ~ N(mu_z, sigma_z^2), [B, ...] -> [B].

    The draws are those of a batch of `size`, of which z holds `rows`. mu_z and sigma_z^2 are the mean
    and variance over all elements of the sample's activation; no gradient flows through them (the
    paper does not say).
    """
    flat = z.flatten(1)
    mean = full(flat.detach()).mean(1, keepdim=True)
    std = full(flat.detach()).std(1, keepdim=True, correction=0)
    draws = torch.randn((size, flat.shape[1]), generator=generator)[rows]
    eps = mean + std * draws.to(z.device)
    return per_sample_mse(flat, eps)


def project(gradients: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
    """Remove from `gradients` the component that opposes `other` (PCGrad, Yu et al. 2020, Alg. 1)."""
    conflict = dot(gradients, other)
    # Not finite: one of them overflowed under fp16, and its level skips its step.
    if conflict >= 0 or not conflict.isfinite():
        return list(gradients)
    factor = conflict / dot(other, other).clamp_min(1e-20)
    return [g - factor * o for g, o in zip(gradients, other, strict=True)]


def without_conflicts(gradients: Sequence[Sequence[Tensor]], order: Sequence[int]) -> list[Tensor]:
    """The sum of several gradients, from each of which what opposes the others is removed first, one
    after the other in `order` (PCGrad, Yu et al. 2020, Alg. 1)."""
    projected = []
    for i, gradient in enumerate(gradients):
        left = list(gradient)
        for j in order:
            if j != i:
                left = project(left, gradients[j])
        projected.append(left)
    return [torch.stack(parts).sum(0) for parts in zip(*projected, strict=True)]


def _gradients_of(
    level: Level, loss_of: Callable[[list[int]], tuple[Tensor, dict[str, float]]],
    rows: Sequence[int], size: int,
) -> tuple[list[Tensor], dict[str, float]]:  # fmt: skip
    """What some rows add to the gradients of a loss that is a mean over a batch of `size`, and the means
    of its parts over the rows; each worker computes its share of them."""
    mine = parallel.share(rows)
    if mine:
        loss, values = loss_of(mine)
        gradients = level.gradients(loss * (len(mine) / size))
    else:
        gradients, values = [torch.zeros_like(p) for p in level.parameters.values()], {}
    return parallel.add_up(gradients), parallel.mean_of(values, len(mine))


@torch.no_grad()
def _activations(
    model: Backbone, which: NoiseLayers, batch: Batch, timesteps: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    with capture(model.layers(which)) as activations:
        model.denoising_loss(batch.latents, batch.conditioning, timesteps, noise)
    return activations


def _channels_first(z: Tensor) -> Tensor:
    """[B, C, h, w] or attention's [B, P, C] -> [B, C, P]."""
    return z.flatten(2) if z.dim() == 4 else z.transpose(1, 2)


def _cosine(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    norms = (dot(left, left) * dot(right, right)).sqrt().clamp_min(1e-20)
    return float(dot(left, right) / norms)
