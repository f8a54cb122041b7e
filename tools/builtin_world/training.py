"""The training loop that all stages share: AdamW, averaged weights, checkpoints that survive a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def channels_last(model: M) -> M:
    """The model in the memory layout that convolutions on CPU like best."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Ema:
    """A moving average of weights that forgets step 0: decay min(cap, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, cap: float = 0.998):
        self.cap, self.n = cap, 0
        self.shadow = {k: v.clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.n += 1
        decay = min(self.cap, (1 + self.n) / (10 + self.n))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def save_atomic(what: dict, file: Path) -> None:
    """torch.save that a kill can't leave half-written."""
    torch.save(what, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def rate_at(step: int, steps: int, lr: float) -> float:
    """A warm-up of 200 steps at most, a flat stretch, and a linear fall over the last 40 %."""
    return lr * min(1.0, (step + 1) / min(200, steps / 5), 2.5 * (steps - step) / steps)


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[..., Tensor],
    steps: int,
    work: Path,
    lr: float,
    decay: float = 0.05,
) -> None:
    """Train for `steps` steps in all; goes on from WORK/name.pt if it is there.

    `loss_of(model, step)` gives the loss of one step.
    """
    file = work / f"{name}.pt"
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )
    ema, first = Ema(model), 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, ema.n, first = state["ema"], state["step"], state["step"]

    model.train()
    began = saved = time.time()
    shown = 0.0
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps, lr)
        loss = loss_of(model, step)
        loss.backward()
        nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

        shown = loss.item() if step == first else 0.97 * shown + 0.03 * loss.item()
        if step % 50 == 49 or step + 1 == steps:
            pace = (time.time() - began) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps} loss {shown:.4f} {pace:.3f} s/step", flush=True)
        if time.time() - saved > 60 or step + 1 == steps:
            state = {"model": model.state_dict(), "ema": ema.shadow, "step": step + 1}
            save_atomic(state | {"optimizer": optimizer.state_dict()}, file)
            saved = time.time()


def steps_done(work: Path, name: str) -> int:
    """How many steps the checkpoint WORK/name.pt has behind it; 0 without one."""
    file = work / f"{name}.pt"
    return torch.load(file, weights_only=True, mmap=True)["step"] if file.exists() else 0


def trained(model: M, work: Path, name: str) -> M:
    """The model with the averaged weights of WORK/name.pt, for use."""
    model.load_state_dict(torch.load(work / f"{name}.pt", weights_only=True)["ema"])
    return model.eval().requires_grad_(False)


def batches(chosen: Tensor, size: int, gen: torch.Generator) -> Iterator[Tensor]:
    """Batches of the given indices without end, each epoch in a new order."""
    size = min(size, len(chosen))
    while True:
        order = chosen[torch.randperm(len(chosen), generator=gen)]
        yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def seeded(seed: int, work: Path, name: str) -> torch.Generator:
    """A stage's generator; another after a resume, so that no draw is seen twice."""
    return torch.Generator().manual_seed(seed * 1_000_003 + steps_done(work, name))
