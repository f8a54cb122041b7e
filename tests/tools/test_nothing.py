"""Pictures of nothing, on which the classifier learns its last class."""

from __future__ import annotations

import torch

from builtin_world.nothing import blends, blots, nothings, plains, shuffled


def drawings(n: int) -> torch.Tensor:
    return 2 * torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(3)) - 1


def test_as_many_as_asked_for_in_range_and_the_same_for_one_seed() -> None:
    x = drawings(12)
    made = nothings(x, None, torch.Generator().manual_seed(0))
    assert made.shape == x.shape
    assert made.isfinite().all()
    assert made.abs().max() <= 1
    assert torch.equal(made, nothings(x, None, torch.Generator().manual_seed(0)))
    assert not torch.equal(made, nothings(x, None, torch.Generator().manual_seed(1)))


def test_every_kind_gives_another_picture_than_the_drawing() -> None:
    x = drawings(6)
    for kind in (plains, blots, shuffled, blends):
        made = kind(x, torch.Generator().manual_seed(0))
        assert made.shape == x.shape
        assert ((made - x).abs().mean((1, 2, 3)) > 0.1).all(), kind.__name__


def test_shuffled_pictures_keep_their_pixels() -> None:
    x = drawings(3)
    made = shuffled(x, torch.Generator().manual_seed(0))
    assert torch.equal(made.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
