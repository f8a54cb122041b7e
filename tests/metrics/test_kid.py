"""The set distance against the sums that define it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gift_ray.metrics import kid
from gift_ray.metrics.kid import Kid, squared_mmd
from gift_ray.plugins import MetricContext
from gift_ray.training.diffusion import Seeds

CONTEXT = MetricContext((), (), {"clip": "stub"})


def embeddings(n: int, seed: int, shift: float = 0.0, size: int = 6) -> Tensor:
    """Unit-length directions around one, moved along another."""
    draw = torch.randn((n, size), generator=Seeds(seed).generator("test"), dtype=torch.float64)
    draw[:, 0] += 2
    draw[:, 1] += shift
    return torch.nn.functional.normalize(draw, dim=-1)


def naive(x: np.ndarray, y: np.ndarray) -> float:
    """Gretton et al. 2012, Eq. 4, as it is written; KID's kernel on embeddings of length sqrt(D)."""
    m, d = x.shape
    x, y = x * np.sqrt(d), y * np.sqrt(d)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / d + 1) ** 3

    total = 0.0
    for i in range(m):
        for j in range(m):
            if i != j:
                total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return total / (m * (m - 1))


def test_squared_mmd_is_its_double_sum() -> None:
    x, y = embeddings(7, seed=1), embeddings(7, seed=2, shift=1)
    assert float(squared_mmd(x, y)) == pytest.approx(naive(x.numpy(), y.numpy()), rel=1e-12)


def test_it_is_zero_for_the_same_set_and_does_not_care_which_is_which() -> None:
    x, y = embeddings(9, seed=1), embeddings(9, seed=2, shift=1)
    assert float(squared_mmd(x, x)) == pytest.approx(0, abs=1e-12)
    assert float(squared_mmd(x, y)) == pytest.approx(float(squared_mmd(y, x)))


def test_two_halves_of_one_set_differ_by_nothing_on_average() -> None:
    values = [float(squared_mmd(*embeddings(40, seed=s).split(20))) for s in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0 < max(values), "an unbiased estimate of zero falls on both sides"


def test_it_grows_with_the_shift() -> None:
    values = [
        float(squared_mmd(embeddings(200, seed=1), embeddings(200, seed=2, shift=shift)))
        for shift in (0.0, 0.5, 1.0, 2.0)
    ]
    assert values == sorted(values)
    assert values[-1] > 0.1


class Stub:
    """Takes an image for its embedding: images here are 1 x D arrays of floats."""

    def images(self, images: list[Image.Image]) -> Tensor:
        return torch.tensor(np.stack([np.asarray(image)[0] for image in images]))


def compared(x: Tensor, y: Tensor, **options: int) -> tuple[float, float]:
    def as_images(rows: Tensor) -> list[Image.Image]:
        return [Image.fromarray(row.float().numpy()[None], mode="F") for row in rows]

    return Kid(**options).compare(as_images(x), as_images(y), CONTEXT)


@pytest.fixture(autouse=True)
def _stub_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kid, "clip_encoder", lambda name: Stub())


def test_subsets_average_to_the_value_of_the_whole_set() -> None:
    x, y = embeddings(30, seed=1), embeddings(30, seed=2, shift=1)
    whole = float(squared_mmd(x, y))
    value, error = compared(x, y, num_subsets=1000)
    assert value == pytest.approx(whole, abs=0.1 * error)
    small, _ = compared(x, y, num_subsets=1500, subset_size=4)
    assert small == pytest.approx(whole, abs=0.5 * error)


def test_the_error_is_that_of_another_draw_of_the_set() -> None:
    pairs = [(embeddings(40, seed=s), embeddings(40, seed=1000 + s, shift=1)) for s in range(60)]
    true = np.std([float(squared_mmd(x, y)) for x, y in pairs])
    told = np.mean([compared(x, y, num_subsets=40)[1] for x, y in pairs])
    assert told == pytest.approx(true, rel=0.3)
    # Small subsets overstate it (their MMD^2 has a larger share of the term in 1 / m^2).
    assert np.mean([compared(x, y, num_subsets=40, subset_size=8)[1] for x, y in pairs]) > told
