"""The training loop that attacks and defenses share.

A `Level` is an optimizer over a group of parameters. `training` and `train` call a step again and again, log
and check its values, save checkpoints, and continue where an earlier run was stopped.

A step only queues work for the device: reading a value would wait until all of it is done, and leave the
device idle until more is queued. So the values of a step stay where they were computed, and are read together
once in a while.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gift_ray.errors import UnitFailed
from gift_ray.logs import Pace
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import global_norm
from gift_ray.training.optimizers import OptimizerName, make_optimizer

logger = logging.getLogger(__name__)

# The beginnings of the names under which a step logs values of its gradients. Under fp16 these may overflow
# now and then without harm, since the level skips such a step and lowers its loss scale.
OF_GRADIENTS = ("grad_norm", "cosine")
# Steps between two readings of their values. A training that went wrong ends so many steps later at most.
READ_EVERY = 16


class Report(Protocol):
    """The interface by which a long step logs its values, and saves and loads checkpoints."""

    def log(self, step: int, **values: float) -> None:
        """Log the values of one training step."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` steps."""

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write the complete state after `step` steps. It is given only when a checkpoint is due."""

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

    def step(self, gradients: list[Tensor], rate: float = 1.0) -> Tensor:
        """Clip the gradients and update the parameters; returns the norm of the gradients before clipping.

        Under fp16 an overflow skips the update, which has to wait for the norm. Otherwise nothing waits.

        Args:
            gradients: holds the clipped ones afterwards.
            rate: the factor of the learning rate.
        """
        values = list(self.parameters.values())
        norm = global_norm(gradients)
        if self.loss_scale and not self.loss_scale.accepts(norm):
            return norm
        if self.max_grad_norm is not None:
            factor = (self.max_grad_norm / (norm.double() + 1e-6)).clamp(max=1.0)
            for place, gradient in enumerate(gradients):
                # The list lets go of each: a second set of gradients would cost as much as the model.
                gradients[place] = gradient * factor
        for parameter, gradient in zip(values, gradients, strict=True):
            parameter.grad = gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

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
    step: Callable[[int], Mapping[str, Scalar]], steps: int, levels: Mapping[str, Level], report: Report,
    *, advice: str, shown: Collection[int] = (),
) -> Iterator[int]:  # fmt: skip
    """Call `step(index)` for each index below `steps`, beginning where the last checkpoint was saved.

    Every random draw of a step must depend on its index alone, so that no state of a generator has to be
    kept. Yields the number of steps that are done where it is among `shown`: 0 at a new beginning, and others
    before a checkpoint is saved there, so that results which the caller keeps at this point become part of
    it. Values of all steps until then have been found finite.

    Args:
        step: does one step with `levels` and returns the values to log, numbers or scalar tensors.
        levels: the optimizers by name. A parameter that is in several levels has the same name in each.
        advice: the end of the error message, such as "lower learning_rate".
        shown: the numbers of steps after which the caller looks at the model.

    Raises:
        UnitFailed: a logged value is not finite. It names the step, although later ones may have been done.
    """
    weights = {n: p for level in levels.values() for n, p in level.parameters.items()}
    done = _restore(report.load(), weights, levels)
    if done:
        logger.info("Training continues from its checkpoint after step %d of %d.", done, steps)
    elif 0 in shown:
        yield 0
    pace = Pace(logger, "{done} of {total} training steps are done.", steps)
    unread = Unread(report, levels, advice)
    for count in range(done + 1, steps + 1):
        unread.add(count, step(count - 1))
        pace.tell(count)
        if count in shown:
            unread.read()
            yield count
        if report.due(count):
            unread.read()
            states = {name: level.state() for name, level in levels.items()}
            report.save(count, {"done": count, "weights": dict(weights), "levels": states})
    unread.read()


def train(
    step: Callable[[int], Mapping[str, Scalar]], steps: int, levels: Mapping[str, Level], report: Report,
    *, advice: str,
) -> None:  # fmt: skip
    """Run `training` to its end."""
    deque(training(step, steps, levels, report, advice=advice), maxlen=0)


@dataclass
class Unread:
    """The values of the last steps, still on the device, until they are read, checked and logged."""

    report: Report
    levels: Mapping[str, Level]
    advice: str
    rows: list[tuple[int, dict[str, Scalar]]] = field(default_factory=list)

    def add(self, step: int, values: Mapping[str, Scalar]) -> None:
        """Add the values of a step; those of `READ_EVERY` steps are read."""
        self.rows.append((step, dict(values)))
        if len(self.rows) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Read all values that are left, in one copy, and log them step by step.

        Raises:
            UnitFailed: one is not finite.
        """
        rows, self.rows = self.rows, []
        tensors = [v for _, row in rows for v in row.values() if isinstance(v, Tensor)]
        numbers = iter(torch.stack([number(t) for t in tensors]).tolist() if tensors else ())
        for step, row in rows:
            values = {n: next(numbers) if isinstance(v, Tensor) else v for n, v in row.items()}
            _require_finite(values, self.levels, f"step {step}", self.advice)
            self.report.log(step, **values)


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
