"""Adds a new word to a text encoder, as textual inversion does (Gal et al. 2022).

The word has rows of its own in the token embedding. These are learnt, while all other rows stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gift_ray.errors import ModelError


@dataclass(frozen=True)
class Placeholder:
    """The rows of one new word in the embedding tables of a model's text encoders.

    Attributes:
        parameters: the word's rows in each text encoder, by name.
        tables: the embedding table [V, D] of each text encoder.
        first: the index of the word's first row in each table.
    """

    parameters: dict[str, nn.Parameter]
    tables: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    first: tuple[int, ...]

    def is_in(self, captions: Sequence[str]) -> bool:
        """Whether one of the captions holds the word."""
        tokenizer, first = self.tokenizers[0], self.first[0]
        return any(first in tokenizer(caption).input_ids for caption in captions)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Within the block gradients reach the word's rows in all text encoders."""
        with ExitStack() as stack:
            rows = self.parameters.values()
            for table, learnt, first in zip(self.tables, rows, self.first, strict=True):
                stack.enter_context(differentiable(table, learnt, first))
            yield


@contextmanager
def differentiable(table: nn.Module, rows: nn.Parameter, first: int) -> Iterator[None]:
    """Within the block gradients reach some rows of a frozen embedding table, from the row `first` on."""

    def look_up(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        place = inputs[0] - first
        learnt = (place >= 0) & (place < len(rows))
        found = nn.functional.embedding(place.clamp(0, len(rows) - 1), rows)
        return torch.where(learnt[..., None], found, output)

    handle = table.register_forward_hook(look_up)
    try:
        yield
    finally:
        handle.remove()


def add_word(
    tokenizer: Any, text_encoder: Any, placeholder_token: str, initializer_token: str,
    num_vectors: int,
) -> tuple[Any, Any, range]:  # fmt: skip
    """Copies of a tokenizer and its text encoder that know a new word, and the word's rows in the embedding.

    A word with several vectors stands for the tokens `token token_1 ...`, as in diffusers' pipelines.

    Raises:
        ModelError: the tokenizer already has a token of this name, whose row other words use as well.
    """
    from transformers import AddedToken

    tokenizer, text_encoder = copy.deepcopy((tokenizer, text_encoder))
    names = [placeholder_token, *(f"{placeholder_token}_{i}" for i in range(1, num_vectors))]
    if taken := sorted(tokenizer.get_vocab().keys() & set(names)):
        raise ModelError(
            f"attacks.placeholder_token: {taken[0]!r} is in the tokenizer already; choose a word "
            "that is not"
        )
    # Only whole words count: "desks" does not hold the word "sks".
    tokenizer.add_tokens([AddedToken(name, single_word=True) for name in names])
    first = tokenizer.convert_tokens_to_ids(placeholder_token)
    rows = range(first, first + num_vectors)

    old = text_encoder.get_input_embeddings().weight
    pieces = tokenizer(initializer_token, add_special_tokens=False).input_ids
    beginning = old[pieces].mean(0)
    text_encoder.resize_token_embeddings(max(len(tokenizer), len(old)), mean_resizing=False)
    text_encoder.requires_grad_(False)
    text_encoder.get_input_embeddings().weight[rows.start : rows.stop] = beginning
    return tokenizer, text_encoder, rows


def placeholder_of(
    tokenizers: Sequence[Any], text_encoders: Sequence[Any], rows: Sequence[range]
) -> Placeholder:
    """The new word of some text encoders.

    Its parameters are views of the embedding tables, so that the model reads what an optimizer writes to
    them.
    """
    tables = tuple(encoder.get_input_embeddings() for encoder in text_encoders)
    names = ["rows", *(f"rows_{i}" for i in range(2, len(tables) + 1))]
    parameters = {
        name: nn.Parameter(table.weight.data[place.start : place.stop])
        for name, table, place in zip(names, tables, rows, strict=True)
    }
    return Placeholder(parameters, tables, tuple(tokenizers), tuple(p.start for p in rows))
