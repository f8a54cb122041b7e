"""A container of named tensors: rows, concatenation, precision, and the way to disk and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gift_ray.training.conditioning import Conditioning


def conditioning(count: int) -> Conditioning:
    tokens = torch.arange(count * 6, dtype=torch.float32).reshape(count, 2, 3)
    others = {"pooled": tokens[:, 0], "mask": torch.ones(count, 2, dtype=torch.int64)}
    return Conditioning(tokens, others)


def test_rows_are_taken_from_every_tensor() -> None:
    three = conditioning(3)
    for rows in ([2, 0], torch.tensor([2, 0])):
        two = three[rows]
        assert len(two) == 2
        assert torch.equal(two.tokens[1], three.tokens[0])
        assert torch.equal(two.others["pooled"][0], three.others["pooled"][2])


def test_parts_concatenate_to_the_whole() -> None:
    three = conditioning(3)
    again = Conditioning.concatenate([three[[0]], three[[1, 2]]])
    assert all(torch.equal(again.tensors()[n], t) for n, t in three.tensors().items())


def test_precision_is_that_of_numbers_not_of_masks() -> None:
    double = conditioning(1).to(torch.float64)
    assert double.tokens.dtype == double.others["pooled"].dtype == torch.float64
    assert double.others["mask"].dtype == torch.int64


def test_one_row_repeats_and_several_do_not() -> None:
    repeated = conditioning(1).repeat(4)
    assert len(repeated) == len(repeated.others["mask"]) == 4
    with pytest.raises(AssertionError, match="not 2"):
        conditioning(2).repeat(4)


def test_the_way_to_disk_and_back(tmp_path: Path) -> None:
    save_file({"latents": torch.ones(1), **conditioning(2).tensors()}, tmp_path / "c.safetensors")
    again = Conditioning.from_tensors(load_file(tmp_path / "c.safetensors"))
    assert torch.equal(again.tokens, conditioning(2).tokens)
    assert again.others.keys() == {"pooled", "mask"}
