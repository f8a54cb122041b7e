"""The mathematics of training, against diffusers and plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from tiny import make_examples
from torch import nn

from gift_ray.records.record import load_state, save_state
from gift_ray.training.diffusion import (
    Seeds,
    add_noise,
    balanced_batch,
    capture,
    concatenate,
    per_sample_mse,
    prediction_target,
)
from gift_ray.training.loop import Level

SCHEDULER = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
TIMESTEPS = torch.tensor([0, 500, 999])


def draw(*names: str) -> list[torch.Tensor]:
    return [torch.randn((3, 4, 8, 8), generator=Seeds(7).generator(name)) for name in names]


def test_noising_is_the_forward_process_of_diffusers() -> None:
    latents, noise = draw("latents", "noise")
    ours = add_noise(latents, noise, TIMESTEPS, SCHEDULER.alphas_cumprod)
    torch.testing.assert_close(ours, SCHEDULER.add_noise(latents, noise, TIMESTEPS))


def test_targets_are_noise_velocity_or_sample() -> None:
    latents, noise = draw("latents", "noise")
    expected = {
        "epsilon": noise,
        "v_prediction": SCHEDULER.get_velocity(latents, noise, TIMESTEPS),
        "sample": latents,
    }
    for kind, target in expected.items():
        ours = prediction_target(kind, latents, noise, TIMESTEPS, SCHEDULER.alphas_cumprod)
        torch.testing.assert_close(ours, target)


def test_errors_are_one_per_sample_and_never_in_half_precision() -> None:
    left, right = draw("left", "right")
    expected = torch.stack([nn.functional.mse_loss(a, b) for a, b in zip(left, right, strict=True)])
    torch.testing.assert_close(per_sample_mse(left, right), expected)
    assert per_sample_mse(left.bfloat16(), right.bfloat16()).dtype == torch.float32
    assert per_sample_mse(left.double(), right).dtype == torch.float64


def module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss_of(model: nn.Module, step: int) -> torch.Tensor:
    inputs = torch.randn((16, 4), generator=Seeds(3).generator("inputs", step))
    return 30 * model(inputs).square().mean()


def level_of(model: nn.Module, optimizer: str, clip: float | None) -> Level:
    return Level(
        dict(model.named_parameters()), optimizer=optimizer, learning_rate=1e-2,
        weight_decay=0.1, max_grad_norm=clip,
    )  # fmt: skip


@pytest.mark.parametrize("clip", [None, 1.0, 1e9])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_level_steps_like_plain_torch(optimizer: str, clip: float | None) -> None:
    ours, theirs = module(0), module(0)
    level = level_of(ours, optimizer, clip)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    plain = kind(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(5):
        norm = level.step(level.gradients(loss_of(ours, step)))
        loss_of(theirs, step).backward()
        reference = nn.utils.clip_grad_norm_(theirs.parameters(), clip or float("inf"))
        assert norm == pytest.approx(float(reference), rel=1e-4)
        plain.step()
        plain.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_restored_level_continues_bit_for_bit(optimizer: str, tmp_path: Path) -> None:
    straight, resumed = module(0), module(0)
    for model, interrupted in ((straight, False), (resumed, True)):
        level = level_of(model, optimizer, 1.0)
        for step in range(6):
            level.step(level.gradients(loss_of(model, step)))
            if interrupted and step == 2:
                save_state(tmp_path / "level.safetensors", level.state())
                level = level_of(model, optimizer, 1.0)
                level.load_state(load_state(tmp_path / "level.safetensors"))
    for one, other in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter was selected"):
        Level({}, optimizer="sgd", learning_rate=1.0)


def test_a_level_leaves_parameters_outside_its_group_alone() -> None:
    model = module(0)
    before = model[2].weight.clone()
    level = Level(
        {"0.weight": model[0].weight}, optimizer="sgd", learning_rate=1.0, max_grad_norm=None
    )
    level.step(level.gradients(loss_of(model, 0)))
    assert torch.equal(model[2].weight, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_streams_are_named_and_independent() -> None:
    names = [("a", 0), ("a", 1), ("b", 0)]
    draws = [torch.rand(8, generator=Seeds(0).generator(*name)) for name in names]
    draws.append(torch.rand(8, generator=Seeds(1).generator("a", 0)))
    assert len({tuple(d.tolist()) for d in draws}) == len(draws)
    again = Seeds(0)
    torch.rand(100, generator=again.generator("b", 0))
    assert torch.equal(torch.rand(8, generator=again.generator("a", 0)), draws[0])


def test_capture_collects_outputs_and_leaves_no_hook() -> None:
    model = module(0)
    with capture({"tanh": model[1]}) as seen:
        output = model(torch.zeros(2, 4))
    torch.testing.assert_close(model[2](seen["tanh"]), output)
    with pytest.raises(RuntimeError), capture({"tanh": model[1]}):
        model(torch.zeros(2, 5))
    assert all(not m._forward_hooks for m in model.modules())


def test_capture_takes_the_hidden_states_of_a_tuple() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
            return x + 1, "skips"

    pair = Pair()
    with capture({"pair": pair}) as seen:
        pair(torch.zeros(1))
    assert torch.equal(seen["pair"], torch.ones(1))


def test_batches_are_deterministic_and_without_replacement() -> None:
    examples = make_examples(5, seed=0)
    one, other = (examples.batch(5, Seeds(0).generator("batch")) for _ in range(2))
    assert one.keys == other.keys
    assert torch.equal(one.latents, other.latents)
    assert sorted(one.keys) == sorted(examples.keys)
    twice = examples.batch(12, Seeds(0).generator("batch")).keys
    assert sorted(twice[:5]) == sorted(twice[5:10]) == sorted(examples.keys)
    index = [examples.keys.index(key) for key in one.keys]
    assert torch.equal(one.conditioning.tokens, examples.conditioning.tokens[index])


def test_batches_sample_the_posterior_of_their_images() -> None:
    examples = make_examples(1, seed=0)
    drawn = torch.cat([examples.batch(64, Seeds(s).generator("b")).latents for s in range(8)])
    torch.testing.assert_close(drawn.mean(0), examples.latents_mean[0], atol=3e-3, rtol=0)
    assert float(drawn.std(0).mean()) == pytest.approx(0.01, rel=0.05)


def test_concatenated_sets_keep_every_example() -> None:
    left, right = make_examples(2, seed=0), make_examples(3, seed=1)
    both = concatenate([left, right])
    assert both.keys == left.keys + right.keys
    assert torch.equal(both.latents_mean[2:], right.latents_mean)


def test_a_balanced_batch_takes_concepts_in_turn_whatever_their_size() -> None:
    sets = [make_examples(count, seed) for seed, count in enumerate((2, 30, 5))]
    seen = [0, 0, 0]
    for index in range(60):
        batch, rows = balanced_batch(sets, 7, Seeds(3).generator("batch", index))
        assert sorted(i for part in rows for i in part) == list(range(7))
        counts = [sum(key.startswith(f"{n}-") for key in batch.keys) for n in range(3)]
        assert sorted(counts) == [2, 2, 3]
        assert [len(part) for part in rows] == counts
        for part in rows:
            assert len({batch.keys[i].partition("-")[0] for i in part}) == 1
        seen = [a + b for a, b in zip(seen, counts, strict=True)]
    # The turn begins anywhere: none is favoured.
    assert all(abs(count - 140) < 20 for count in seen)


def test_a_balanced_batch_may_be_smaller_than_the_number_of_concepts() -> None:
    sets = [make_examples(2, seed) for seed in range(5)]
    first = {balanced_batch(sets, 1, Seeds(0).generator("b", i))[0].keys[0][0] for i in range(60)}
    assert first == set("01234")
    batch, rows = balanced_batch(sets, 2, Seeds(0).generator("b"))
    assert len(batch) == 2
    assert rows == [[0], [1]]


def test_a_balanced_batch_of_one_concept_is_its_own() -> None:
    (one,) = sets = [make_examples(4, 0)]
    batch, rows = balanced_batch(sets, 6, Seeds(0).generator("b"))
    expected = one.batch(6, Seeds(0).generator("b"))
    assert batch.keys == expected.keys
    assert torch.equal(batch.latents, expected.latents)
    assert rows == [[0, 1, 2, 3, 4, 5]]
