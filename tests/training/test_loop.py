"""The training loop: checkpoints, failures with a reason, fp16's loss scale, and learning-rate schedules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import nn

from gift_ray.errors import UnitFailed
from gift_ray.study.journal import LocalJournal
from gift_ray.training.devices import Scalar
from gift_ray.training.loop import READ_EVERY, Level, LossScale, train, training
from gift_ray.training.schedules import schedule


def level_of(*, fp16: bool = False) -> Level:
    parameter = nn.Parameter(torch.ones(3))
    return Level({"w": parameter}, optimizer="adamw", learning_rate=0.1, fp16=fp16)


def descending(level: Level, spoilt: tuple[int, ...] = ()):
    """A step that descends |w|^2; at the spoilt indices its gradients overflow."""

    def step(index: int) -> dict[str, Scalar]:
        loss = level.parameters["w"].square().sum()
        factor = float("inf") if index in spoilt else 1.0
        norm = level.step([g * factor for g in level.gradients(loss)])
        return {"loss": loss.detach(), "grad_norm": norm, "cosine": norm - norm}

    return step


def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = level_of()
    journal = LocalJournal(tmp_path / "whole", every=10**6)
    train(descending(whole), 5, {"level": whole}, journal, advice="")

    first, second = level_of(), level_of()
    stopped = LocalJournal(tmp_path / "state", every=1)
    shown = (0, 1, 4, 5)
    begun = training(descending(first), 3, {"level": first}, stopped, advice="", shown=shown)
    assert list(begun) == [0, 1]
    again = LocalJournal(tmp_path / "state", every=1)
    resumed = training(descending(second), 5, {"level": second}, again, advice="", shown=shown)
    assert list(resumed) == [4, 5]
    assert torch.equal(second.parameters["w"], whole.parameters["w"])
    assert again.rows == journal.rows
    assert [row["step"] for row in journal.rows] == [1, 2, 3, 4, 5]


def test_an_overflow_of_fp16_skips_a_step_and_ends_nothing(tmp_path: Path) -> None:
    level = level_of(fp16=True)
    journal = LocalJournal(tmp_path / "state", every=10**6)
    train(descending(level, spoilt=(0, 1)), 4, {"level": level}, journal, advice="")
    assert level.loss_scale is not None
    assert level.loss_scale.scale == 2.0**14
    moved = [row["loss"] for row in journal.rows]
    assert moved[0] == moved[1] == moved[2] == 3.0 > moved[3]


def test_what_is_not_finite_without_fp16_is_a_failure_with_a_reason(tmp_path: Path) -> None:
    level = level_of()
    journal = LocalJournal(tmp_path / "state", every=10**6)
    with pytest.raises(UnitFailed, match=r"^step 2: grad_norm, cosine not finite; lower it$"):
        train(descending(level, spoilt=(1,)), 4, {"level": level}, journal, advice="lower it")


def test_values_that_are_not_finite_reach_neither_a_checkpoint_nor_the_caller(
    tmp_path: Path,
) -> None:
    """A step's values are read later, but before anything is made of them."""
    for every, shown in ((3, ()), (10**6, (3,)), (10**6, ())):
        level = level_of()
        journal = LocalJournal(tmp_path / f"{every}-{len(shown)}", every=every)
        seen = []
        with pytest.raises(UnitFailed, match=r"^step 2: grad_norm, cosine not finite"):
            seen += training(
                descending(level, spoilt=(1,)), READ_EVERY * 2, {"level": level}, journal, advice="",
                shown=shown,
            )  # fmt: skip
        assert seen == []
        assert not journal.path.exists()
        assert [row["step"] for row in journal.rows] == [1]


def test_values_are_read_and_logged_together(tmp_path: Path) -> None:
    level = level_of()
    journal = LocalJournal(tmp_path / "state", every=10**6)
    logged = []
    descend = descending(level)

    def step(index: int) -> dict[str, Scalar]:
        logged.append(len(journal.rows))
        return {**descend(index), "images_seen": index}

    train(step, READ_EVERY + 2, {"level": level}, journal, advice="")
    assert logged == [0] * READ_EVERY + [READ_EVERY] * 2
    assert [row["images_seen"] for row in journal.rows] == list(range(READ_EVERY + 2))
    assert all(type(row["loss"]) is float for row in journal.rows)
    assert journal.rows[0]["loss"] == 3.0 > journal.rows[1]["loss"] > journal.rows[-1]["loss"]


def test_the_loss_scale_moves_as_that_of_torch_does() -> None:
    ours = LossScale()
    growth = LossScale.INTERVAL
    scale, good = torch.tensor([2.0**16]), torch.tensor([0], dtype=torch.int32)
    overflows = {0, 1, 10, growth + 500}
    for index in range(2 * growth + 600):
        bad = index in overflows
        ours.accepts(torch.tensor(float("inf") if bad else 1.0))
        # What torch.amp.GradScaler.update calls.
        torch._amp_update_scale_(scale, good, torch.tensor([float(bad)]), 2.0, 0.5, growth)
        assert ours.scale == scale.item(), index
    assert ours.scale == 2.0**14


def test_scaled_gradients_come_back_unscaled() -> None:
    plain, scaled = level_of(), level_of(fp16=True)
    one, other = (
        level.gradients(level.parameters["w"].square().sum())[0] for level in (plain, scaled)
    )
    assert torch.equal(one, other)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine"])
def test_schedules_are_those_of_diffusers(name: str, warmup: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12)
    for index in range(12):
        rate = optimizer.param_groups[0]["lr"]
        assert schedule(name, index, warmup=warmup, steps=12) == pytest.approx(rate, abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_level_steps_at_the_rate_it_is_told() -> None:
    parameter = nn.Parameter(torch.ones(1))
    level = Level({"w": parameter}, optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
    for rate, expected in ((1.0, 0.9), (0.0, 0.9), (10.0, -0.1)):
        level.step([torch.ones(1)], rate)
        assert parameter.item() == pytest.approx(expected)
