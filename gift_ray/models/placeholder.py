"""A new word of a text encoder: rows of its token embedding that are learnt while all others stay as they
are (textual inversion, Gal et al. 2022)."""

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
    """The rows of one word, one set for each text encoder, by name; and the embedding table [V, D] and
    the first row of each."""

    parameters: dict[str, nn.Parameter]
    tables: tuple[nn.Module, ...]
    tokenizers: tuple[Any, ...]
    first: tuple[int, ...]

    def is_in(self, captions: Sequence[str]) -> bool:
        """Whether the word stands in one of some captions."""
        tokenizer, first = self.tokenizers[0], self.first[0]
        return any(first in tokenizer(caption).input_ids for caption in captions)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """Let gradients reach the rows, in all text encoders."""
        with ExitStack() as stack:
            rows = self.parameters.values()
            for table, learnt, first in zip(self.tables, rows, self.first, strict=True):
                stack.enter_context(differentiable(table, learnt, first))
            yield


@contextmanager
def differentiable(table: nn.Module, rows: nn.Parameter, first: int) -> Iterator[None]:
    """Let gradients reach some rows of a frozen embedding table, those of ids `first` and up."""

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
    """Copies of a tokenizer and its text encoder that know a new word, and its rows of the embedding.

    With several vectors the word stands for `token token_1 ...`, as diffusers' pipelines have it.

    Raises:
        ModelError: the tokenizer knows the word already (its row serves other words too).
    """
    from transformers import AddedToken

    tokenizer, text_encoder = copy.deepcopy((tokenizer, text_encoder))
    names = [placeholder_token, *(f"{placeholder_token}_{i}" for i in range(1, num_vectors))]
    if taken := sorted(tokenizer.get_vocab().keys() & set(names)):
        raise ModelError(
            f"attacks.placeholder_token: {taken[0]!r} is in the tokenizer already; choose a word "
            "that is not"
        )
    # Whole words only: "desks" does not hold the word "sks".
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
    """The new word of some text encoders. Its parameters are views of the embedding tables: what an
    optimizer writes is what the model reads, here and later."""
    tables = tuple(encoder.get_input_embeddings() for encoder in text_encoders)
    names = ["rows", *(f"rows_{i}" for i in range(2, len(tables) + 1))]
    parameters = {
        name: nn.Parameter(table.weight.data[place.start : place.stop])
        for name, table, place in zip(names, tables, rows, strict=True)
    }
    return Placeholder(parameters, tables, tuple(tokenizers), tuple(p.start for p in rows))
