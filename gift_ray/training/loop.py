"""The training loop that attacks and defenses share.

A `Level` is an optimizer over a group of parameters. `training` and `train` call a step again and again, log
and check its values, save checkpoints, and continue where an earlier run was stopped.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gift_ray.errors import UnitFailed
from gift_ray.logs import Pace
from gift_ray.training.diffusion import global_norm
from gift_ray.training.optimizers import OptimizerName, make_optimizer

logger = logging.getLogger(__name__)

# The beginnings of the names under which a step logs values of its gradients. Under fp16 these may overflow
# now and then without harm, since the level skips such a step and lowers its loss scale.
OF_GRADIENTS = ("grad_norm", "cosine")


class Report(Protocol):
    """The interface by which a long step logs its values, and saves and loads checkpoints."""

    def log(self, step: int, **values: float) -> None:
        """Log the values of one training step."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Offer the complete state after `step` steps. It is written when a checkpoint is due."""

    def load(self) -> dict[str, Any] | None:
        """The state to continue from, or None at the beginning."""


@dataclass
class LossScale:
    """The factor that keeps small fp16 gradients above zero, adapted as in torch.amp.GradScaler.

    It is halved when the gradients overflow, and doubled after `INTERVAL` steps without an overflow.
    """

    INTERVAL = 2000

    scale: float = 2.0**16
    good_steps: int = 0

    def accepts(self, norm: Tensor) -> bool:
        """Whether gradients of this norm are finite and may be applied; adapts the scale."""
        if not torch.isfinite(norm):
            self.scale, self.good_steps = self.scale / 2, 0
            return False
        self.good_steps += 1
        if self.good_steps == self.INTERVAL:
            self.scale, self.good_steps = self.scale * 2, 0
        return True


class Level:
    """One optimizer over one group of parameters: an inner or outer level, or an attacker.

    Args:
        parameters: the parameters by name, in fp32, since small steps would be lost in bf16.
        learning_rate: above 0; each step may scale it.
        max_grad_norm: the norm to which gradients are clipped; None turns clipping off.
        fp16: whether to scale the loss, as fp16 autocast needs.

    Raises:
        ValueError: the group is empty, so that nothing would be trained.
    """

    def __init__(
        self,
        parameters: dict[str, nn.Parameter],
        *,
        optimizer: OptimizerName,
        learning_rate: float,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = 1.0,
        fp16: bool = False,
    ) -> None:
        if not parameters:
            raise ValueError("no parameter was selected: nothing would be trained")
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.max_grad_norm = max_grad_norm
        values = [parameter.requires_grad_(True) for parameter in parameters.values()]
        self.optimizer = make_optimizer(optimizer, values, learning_rate, weight_decay)
        self.loss_scale = LossScale() if fp16 else None

    def gradients(self, loss: Tensor, at: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        """The gradients of a scalar loss by this level's parameters alone, without the loss scale.

        Args:
            at: tensors with respect to which the gradients are taken instead, by the names of the parameters.
                A first-order meta-gradient is taken at the weights of a simulated attacker, and applied to
                the released weights.
        """
        values = [(at or self.parameters)[name] for name in self.parameters]
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        scaled = torch.autograd.grad(
            loss if scale == 1.0 else loss * scale, values, allow_unused=True
        )
        return [
            torch.zeros_like(p) if g is None else g / scale if scale != 1.0 else g
            for p, g in zip(values, scaled, strict=True)
        ]

    def step(self, gradients: list[Tensor], rate: float = 1.0) -> float:
        """Clip the gradients and update the parameters; returns the norm of the gradients before clipping.

        Under fp16 an overflow skips the update.

        Args:
            gradients: holds the clipped ones afterwards.
            rate: the factor of the learning rate.
        """
        values = list(self.parameters.values())
        norm = global_norm(gradients)
        if self.loss_scale and not self.loss_scale.accepts(norm):
            return float(norm)
        factor = 1.0
        if self.max_grad_norm is not None:
            factor = min(1.0, self.max_grad_norm / (float(norm) + 1e-6))
        for place, parameter in enumerate(values):
            if factor != 1.0:
                # The list lets go of each: a second set of gradients would cost as much as the model.
                gradients[place] = gradients[place] * factor
            parameter.grad = gradients[place]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def state(self) -> dict[str, Any]:
        """The optimizer's tensors, keyed by parameter name, and fp16's scale, for a checkpoint."""
        state = self.optimizer.state
        tensors = {name: dict(state[p]) for name, p in self.parameters.items() if p in state}
        return {
            "optimizer": tensors,
            "loss_scale": vars(self.loss_scale) if self.loss_scale else {},
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        tensors = saved.get("optimizer", {})
        for name, parameter in self.parameters.items():
            if name in tensors:
                # A fused optimizer needs its state, including the step count, on the parameter's device.
                state = {
                    key: value.to(parameter.device) if isinstance(value, Tensor) else value
                    for key, value in tensors[name].items()
                }
                self.optimizer.state[parameter] = state
        if self.loss_scale:
            self.loss_scale = LossScale(**saved["loss_scale"])


def training(
    step: Callable[[int], dict[str, float]], steps: int, levels: Mapping[str, Level], report: Report,
    *, advice: str,
) -> Iterator[int]:  # fmt: skip
    """Call `step(index)` for each index below `steps`, beginning where the last checkpoint was saved.

    Every random draw of a step must depend on its index alone, so that no state of a generator has to be
    kept. Yields the number of steps that are done: 0 at a new beginning, then after each step and before its
    checkpoint is offered, so that results which the caller keeps at this point become part of the checkpoint.

    Args:
        step: does one step with `levels` and returns the values to log.
        levels: the optimizers by name. A parameter that is in several levels has the same name in each.
        advice: the end of the error message, such as "lower learning_rate".

    Raises:
        UnitFailed: a logged value is not finite.
    """
    weights = {n: p for level in levels.values() for n, p in level.parameters.items()}
    done = _restore(report.load(), weights, levels)
    if done == 0:
        yield 0
    else:
        logger.info("Training continues from its checkpoint after step %d of %d.", done, steps)
    pace = Pace(logger, "{done} of {total} training steps are done.", steps)
    for index in range(done, steps):
        values = step(index)
        _require_finite(values, levels, f"step {index + 1}", advice)
        report.log(index + 1, **values)
        pace.tell(index + 1)
        yield index + 1
        states = {name: level.state() for name, level in levels.items()}
        report.save(index + 1, {"done": index + 1, "weights": dict(weights), "levels": states})


def train(
    step: Callable[[int], dict[str, float]], steps: int, levels: Mapping[str, Level], report: Report,
    *, advice: str,
) -> None:  # fmt: skip
    """Run `training` to its end."""
    deque(training(step, steps, levels, report, advice=advice), maxlen=0)


@torch.no_grad()
def _restore(
    state: dict[str, Any] | None, weights: Mapping[str, Tensor], levels: Mapping[str, Level]
) -> int:
    """Restore a checkpoint, if there is one; returns the number of steps that are done."""
    if state is None:
        return 0
    for name, parameter in weights.items():
        parameter.copy_(state["weights"][name])
    for name, level in levels.items():
        level.load_state(state["levels"][name])
    return int(state["done"])


def _require_finite(
    values: Mapping[str, float], levels: Mapping[str, Level], when: str, advice: str
) -> None:
    """Fail with a reason when a logged value is not finite, so that such a training never gets a score."""
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if any(level.loss_scale for level in levels.values()):
        bad = [name for name in bad if not name.startswith(OF_GRADIENTS)]
    if bad:
        raise UnitFailed(f"{when}: {', '.join(bad)} not finite; {advice}")
