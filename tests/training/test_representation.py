"""RepNoise's distance against its formula in plain loops, and as the L_noise of GIFT."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.representation import MMD_POSITIONS, NoiseTarget, mmd, mmd_loss

SEEDS = Seeds(15)


def draw(*shape: int, purpose: str = "x") -> Tensor:
    return torch.randn(shape, generator=SEEDS.generator(purpose), dtype=torch.float64)


def by_loops(x: Tensor, y: Tensor) -> float:
    """mean k(x, x') - 2 mean k(x, y) + mean k(y, y'), each with the pairs of equals."""
    both = [*x, *y]
    squares = [float((a - b).square().sum()) for a, b in itertools.permutations(both, 2)]
    bandwidth = sum(squares) / len(squares) / 4

    def kernel(a: Tensor, b: Tensor) -> float:
        square = float((a - b).square().sum())
        return sum(math.exp(-square / (bandwidth * 2**i)) for i in range(5))

    def mean(left: Tensor, right: Tensor) -> float:
        return sum(kernel(a, b) for a in left for b in right) / (len(left) * len(right))

    return mean(x, x) - 2 * mean(x, y) + mean(y, y)


def test_the_discrepancy_is_what_is_written() -> None:
    x, y = draw(5, 3), 2 + draw(5, 3, purpose="y")
    assert float(mmd(x, y)) == pytest.approx(by_loops(x, y), rel=1e-9)
    assert float(mmd(x, x)) == pytest.approx(0, abs=1e-12)
    assert float(mmd(x, x[torch.tensor([3, 0, 4, 1, 2])])) == pytest.approx(0, abs=1e-12)


def test_no_gradient_flows_through_the_bandwidth() -> None:
    x, y = draw(4, 3).requires_grad_(), 1 + draw(4, 3, purpose="y")
    (gradient,) = torch.autograd.grad(mmd(x, y), x)
    squares = torch.cdist(torch.cat([x, y]).detach(), torch.cat([x, y]).detach()).square()
    bandwidth = float(squares.sum() / (8 * 7)) / 4

    def value(point: Tensor) -> Tensor:
        """The same with a fixed bandwidth."""
        d = torch.cat([point, y])
        d = (d[:, None] - d).square().sum(2)
        k = sum(torch.exp(-d / (bandwidth * 2**i)) for i in range(5))
        return k[:4, :4].mean() - 2 * k[:4, 4:].mean() + k[4:, 4:].mean()

    expected = torch.autograd.functional.jacobian(value, x.detach())
    torch.testing.assert_close(gradient, expected)


def test_the_positions_of_one_image_are_the_set() -> None:
    z, noise = draw(2, 3, 4), 1 + draw(2, 3, 4, purpose="y")
    found = mmd_loss(z, noise, SEEDS.generator("positions"))
    for i in range(2):
        assert float(found[i]) == pytest.approx(by_loops(z[i].T, noise[i].T), rel=1e-9)


def test_many_positions_are_thinned_alike_on_both_sides() -> None:
    z = draw(1, 2, 2 * MMD_POSITIONS)
    assert float(mmd_loss(z, z, SEEDS.generator("positions"))) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("kind", ["sample", "frozen"])
def test_it_is_small_where_activations_are_noise_already(
    kind: str, tiny_model: StableDiffusion, malicious: Examples
) -> None:
    target = NoiseTarget.of(kind, "blocks", tiny_model, malicious, SEEDS, "mmd")
    name, mean = next(iter(target.mean.items()))
    shape = (2, len(mean), 8, 8)
    noise = torch.randn(shape, generator=SEEDS.generator("z"))
    flat = mean[:, None, None] + target.std[name][:, None, None] * noise
    lines = flat.cumsum(3)  # positions that are no independent draws of one distribution
    losses = [
        float(target.losses({name: z}, malicious.keys, SEEDS, 0, [0, 1])[name])
        for z in (flat, 5 + lines)
    ]
    assert losses[1] > 2 * losses[0]


def test_each_kind_of_noise_is_met_position_by_position(
    tiny_model: StableDiffusion, malicious: Examples
) -> None:
    for kind in ("sample", "frozen"):
        target = NoiseTarget.of(kind, "attn2", tiny_model, malicious, SEEDS, "mmd")
        name, mean = next(iter(target.mean.items()))
        z = torch.randn((1, 6, len(mean)), generator=SEEDS.generator("z"))  # positions, channels
        if kind == "sample":
            draws = torch.randn((3, 6 * len(mean)), generator=SEEDS.generator(f"noise/{name}", 7))
            now, noise = z[0], z.mean() + z.std(correction=0) * draws[1].view(6, -1)
        else:
            stream = SEEDS.generator(f"frozen/{name}/{malicious.keys[1]}")
            now = (z[0] - mean) / target.std[name]
            noise = torch.randn((len(mean), 6), generator=stream).T
        found = target.losses({name: z}, malicious.keys, SEEDS, 7, [1])[name]
        assert float(found) == pytest.approx(by_loops(now, noise), rel=1e-4), kind
