"""What the inner level is asked about: captions with random words, and never the concept's own."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import UnitFailed
from gift_ray.models.families import base_model
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.models.tokens import whole_words
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.preservation import Preservation, concept_words, with_random_word


@pytest.fixture(scope="module")
def model() -> StableDiffusion:
    """The built-in model, whose tokenizer knows words."""
    found = base_model(ModelConfig())
    assert isinstance(found, StableDiffusion)
    return found


@pytest.fixture(scope="module")
def d_s(model: StableDiffusion) -> Examples:
    images = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue", "white")]
    captions = [f"an emoji of a {noun}" for noun in ("lion", "bus", "pizza", "rose")]
    return model.encode(images, captions, captions)


def preservation(
    model: StableDiffusion, d_s: Examples, share: float, forbidden: frozenset[str] = frozenset()
) -> Preservation:
    return Preservation("distillation", model, d_s, 2, 0.0, Seeds(5), share, forbidden)


def test_whole_words_are_one_token_each_of_either_kind_of_tokenizer() -> None:
    clip = ["cat</w>", "catal", "ogue</w>", "an</w>", "2nd</w>", "Cat</w>", "!</w>"]
    assert whole_words(clip) == ["cat", "ogue"]
    assert whole_words(["\u0120cat", "cat", "\u0120an", "\u0120dog"]) == ["cat", "dog"]


def test_the_words_of_the_concept_are_those_that_the_safe_captions_lack() -> None:
    found = concept_words(
        ["an emoji of a Bow and arrow", "a t-shirt"], ["an emoji of a shirt", "a t"]
    )
    assert found == {"bow", "and", "arrow"}


def test_one_word_is_replaced_and_the_rest_is_as_it_was() -> None:
    generator = torch.Generator().manual_seed(0)
    before = "an emoji of a lion"
    made = [with_random_word(before, ["drum", "lamp"], generator).split() for _ in range(40)]
    for words in made:
        assert sum(a != b for a, b in zip(words, before.split(), strict=True)) == 1
    assert {i for words in made for i in range(5) if words[i] in ("drum", "lamp")} == set(range(5))
    assert with_random_word("", ["drum"], generator) == "drum"


def test_random_words_come_with_their_own_conditioning(
    model: StableDiffusion, d_s: Examples
) -> None:
    plain = preservation(model, d_s, 0.0)
    asked = preservation(model, d_s, 1.0)
    changed = 0
    for index in range(6):
        batch, times, noise = asked.draw(index)
        as_it_is, same_times, same_noise = plain.draw(index)
        assert torch.equal(batch.latents, as_it_is.latents)
        assert torch.equal(times, same_times)
        assert torch.equal(noise, same_noise)
        torch.testing.assert_close(
            batch.conditioning.tokens, model.condition(batch.captions).tokens
        )
        changed += sum(a != b for a, b in zip(batch.captions, as_it_is.captions, strict=True))
    assert changed >= 11, "a random word may be the word that it replaces, but hardly ever is"


def test_a_share_of_the_captions_is_changed(model: StableDiffusion, d_s: Examples) -> None:
    some, none = preservation(model, d_s, 0.5), preservation(model, d_s, 0.0)
    pairs = [
        (a, b)
        for index in range(60)
        for a, b in zip(some.draw(index)[0].captions, none.draw(index)[0].captions, strict=True)
    ]
    assert 0.3 < sum(a != b for a, b in pairs) / len(pairs) < 0.7


def test_forbidden_words_and_their_plurals_are_never_put_in(
    model: StableDiffusion, d_s: Examples
) -> None:
    words = preservation(model, d_s, 1.0).words
    assert len(words) > 20
    first, second = words[3], words[7]
    left = preservation(model, d_s, 1.0, frozenset({first, f"{second}s"})).words
    assert first not in left
    assert second not in left
    assert set(left) < set(words)


def test_a_tokenizer_without_words_is_told(tiny_model: StableDiffusion, safe: Examples) -> None:
    with pytest.raises(UnitFailed, match="random_words: the model's tokenizer knows no whole word"):
        preservation(tiny_model, safe, 1.0).draw(0)
