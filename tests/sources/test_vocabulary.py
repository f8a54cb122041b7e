"""The safe pool of words: what is drawn how often, and the mistakes of a list."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from gift_ray import plugins
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.sources import vocabulary
from gift_ray.sources.vocabulary import Vocabulary
from gift_ray.training.diffusion import Seeds

WORDS = ["cat", "owl", "axe", "dog"]


def test_each_word_is_drawn_alike_but_near_ones_more_and_excluded_ones_never(
    tiny_model: StableDiffusion,
) -> None:
    source = Vocabulary(
        words=WORDS, template="an emoji of {a}", exclude=["axe"], near=["dog"], near_weight=3,
        images_per_word=2, num_inference_steps=1,
    )  # fmt: skip
    found = source.images(tiny_model, Seeds(0))
    counts = Counter(item.caption for item in found)
    assert counts == {"an emoji of a cat": 2, "an emoji of an owl": 2, "an emoji of a dog": 6}
    assert len({item.image.tobytes() for item in found}) == len(found), "each by its own noise"


def test_a_word_can_stand_without_its_article() -> None:
    assert Vocabulary(words=["owl"], template="{word}s at night").drawn_prompts() == [
        "owls at night"
    ]


def test_thebuiltin_words_are_those_that_the_base_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "nouns.json"
    monkeypatch.setattr(vocabulary, "BUILTIN_NOUNS", file)
    assert plugins.check("sources", "vocabulary", {"words": "builtin"}), "no list, and no mistake"
    nouns = {"owl": {"drawn": True}, "bat": {"drawn": False}, "cat": {"drawn": True}}
    file.write_text(json.dumps({"nouns": nouns}))
    source = Vocabulary(words="builtin", exclude=["owl"])
    assert source.chosen_words() == ["cat"]
    nouns["dog"] = {"drawn": True}
    before = source.content()
    file.write_text(json.dumps({"nouns": nouns}))
    assert source.content() != before, "another list of nouns is another D_S"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"words": WORDS, "exclude": ["catt"]}, "did you mean 'cat'"),
        ({"words": WORDS, "exclude": ["cat"], "near": ["cat"]}, "near: 'cat' is none of the words"),
        ({"words": WORDS, "template": "a drawing"}, "no place for the word"),
        ({"words": WORDS, "exclude": WORDS}, "leaves no word"),
        ({"words": []}, "at least 1 item"),
        ({"words": ["cat", ""]}, "at least 1 character"),
        ({"words": "birds"}, "builtin"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_words_is_said_before_anything_is_drawn(options: dict, said: str) -> None:
    messages = [message for _, message in plugins.check("sources", "vocabulary", options)]
    assert any(said in message for message in messages), messages
