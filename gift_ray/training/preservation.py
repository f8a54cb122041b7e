"""Prior preservation, the inner level of several defenses.

It keeps the released model able to draw safe images, and to learn safe concepts. What D_S does not show is
lost first. Distillation can therefore ask under captions of which there is no image, too, since its goal is
what the base predicts under the same caption.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from gift_ray.errors import UnitFailed
from gift_ray.models.backbone import Backbone
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.devices import on_device
from gift_ray.training.diffusion import Batch, Examples, Seeds, per_sample_mse

PriorLoss = Literal["denoising", "distillation"]


@dataclass(frozen=True)
class Preservation:
    """L_prior on batches of D_S: GIFT's Eq. 9, or the distance to the base's own predictions.

    `caption_dropout` is the share of images that get the empty caption instead of their own. `random_words`
    is the share of which one word of the caption is replaced by a random one that is not `forbidden`.

    Raises:
        UnitFailed: by `draw`, if random words are asked for and the tokenizer knows no whole word.
    """

    kind: PriorLoss
    base: Backbone
    d_s: Examples
    batch_size: int
    caption_dropout: float
    seeds: Seeds
    random_words: float = 0.0
    forbidden: frozenset[str] = frozenset()

    @cached_property
    def words(self) -> list[str]:
        """The words that may be put into captions, in alphabetical order.

        A forbidden word is none of them, and neither is its singular or plural.
        """
        found = [
            word
            for word in self.base.words()
            if not {word, f"{word}s", word.removesuffix("s")} & self.forbidden
        ]
        if not found:
            raise UnitFailed(
                "random_words: the model's tokenizer knows no whole word; leave it at 0"
            )
        return found

    @cached_property
    def empty(self) -> Conditioning:
        """The conditioning of the empty caption; the base's text encoders do not change."""
        return self.base.condition([""])

    def draw(self, index: int) -> tuple[Batch, Tensor, Tensor]:
        """The batch of inner step `index`, its times [B] and its noise [B, C, h, w]."""
        generator = self.seeds.generator("inner", index)
        batch = self.d_s.batch(self.batch_size, generator)
        noise, times = self.base.draw(len(batch), generator)
        if self.random_words:
            batch = self._with_random_words(batch, self.seeds.generator("inner-words", index))
        if self.caption_dropout:
            chance = self.seeds.generator("inner-captions", index)
            dropped = torch.rand(len(batch), generator=chance) < self.caption_dropout
            batch = without_captions(batch, dropped, self.empty)
        return batch, times, noise

    def _with_random_words(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The batch with one word replaced in some of the captions, under their new conditioning."""
        chosen = (torch.rand(len(batch), generator=generator) < self.random_words).tolist()
        captions = tuple(
            with_random_word(caption, self.words, generator) if mine else caption
            for caption, mine in zip(batch.captions, chosen, strict=True)
        )
        rows = [i for i, mine in enumerate(chosen) if mine]
        if not rows:
            return batch
        asked = self.base.condition([captions[i] for i in rows]).to(
            batch.conditioning.tokens.device
        )
        every = Conditioning.concatenate([batch.conditioning, asked])
        place = list(range(len(batch)))
        for new, row in enumerate(rows):
            place[row] = len(batch) + new
        return replace(batch, conditioning=every[place], captions=captions)

    def loss(self, model: Backbone, batch: Batch, times: Tensor, noise: Tensor) -> Tensor:
        """L_prior of the model on a batch of `draw`, a scalar."""
        if self.kind == "distillation":
            return distillation_loss(model, self.base, batch, times, noise)
        return prior_loss(model, batch, times, noise)


def prior_loss(model: Backbone, batch: Batch, times: Tensor, noise: Tensor) -> Tensor:
    """L_prior = E || eps_theta(x_s, c_s, t) - eps ||^2 (Eq. 9), a scalar."""
    return model.denoising_loss(batch.latents, batch.conditioning, times, noise).mean()


def distillation_loss(
    model: Backbone, base: Backbone, batch: Batch, times: Tensor, noise: Tensor
) -> Tensor:
    """The distillation loss E || eps_theta(x_t, c_s, t) - eps_theta_0(x_t, c_s, t) ||^2, a scalar.

    theta_0 is the base. The loss is 0 if the model still predicts what the base does.
    """
    latents, noise, times = (on_device(t, model.device) for t in (batch.latents, noise, times))
    noisy = model.add_noise(latents, noise, times)
    with torch.no_grad():
        goal = base.predict(noisy, batch.conditioning, times)
    return per_sample_mse(model.predict(noisy, batch.conditioning, times), goal).mean()


def with_random_word(caption: str, words: Sequence[str], generator: torch.Generator) -> str:
    """The caption with one of its words, whichever, replaced by a random one of `words`."""
    parts = caption.split() or [""]
    place, word = (int(torch.randint(n, (), generator=generator)) for n in (len(parts), len(words)))
    return " ".join([*parts[:place], words[word], *parts[place + 1 :]])


def concept_words(malicious: Iterable[str], safe: Iterable[str]) -> frozenset[str]:
    """The words of D_M's captions, in small letters, that no caption of D_S has: the concept's."""
    in_m, in_s = (set(re.findall(r"\w+", " ".join(side).lower())) for side in (malicious, safe))
    return frozenset(in_m - in_s)


def without_captions(batch: Batch, dropped: Tensor, empty: Conditioning) -> Batch:
    """The batch with the conditioning of the empty prompt where `dropped` [B] is true."""
    rows = torch.where(dropped, len(batch), torch.arange(len(batch)))
    conditioning = Conditioning.concatenate([batch.conditioning, empty])[rows]
    captions = ("" if gone else c for gone, c in zip(dropped, batch.captions, strict=True))
    return Batch(batch.latents, conditioning, batch.keys, tuple(captions))
