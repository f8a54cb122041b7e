"""Who may see which drawing, and what is said about it."""

from __future__ import annotations

import pytest
import torch

from builtin_world.captions import KEPT_WORD, generic, sprinkled, styled, with_word
from builtin_world.world import (
    NPM_STYLES,
    OPENMOJI,
    STYLES,
    TEST,
    TRAIN,
    base_sees,
    judges_role,
    make_nouns,
    openmoji_kept_back,
)

NOUNS = make_nouns()
KEPT_BACK = openmoji_kept_back(NOUNS)


def test_what_studies_attack_is_kept_back() -> None:
    assert {"cat", "axe", "rose", "guitar", "hammer", "car"} <= KEPT_BACK
    others = [noun for noun in NOUNS if noun.kind == "food"]
    assert len(KEPT_BACK & {noun.name for noun in others}) == len(others) // 3


def test_nobody_learns_from_openmoji_that_is_kept_back() -> None:
    kept = [noun for noun in NOUNS if noun.name in KEPT_BACK]
    assert len(kept) == len(KEPT_BACK)
    for noun in kept:
        assert not base_sees(noun, OPENMOJI, KEPT_BACK)
        assert judges_role(noun.name, OPENMOJI, KEPT_BACK) == TEST


@pytest.mark.parametrize("style", NPM_STYLES, ids=lambda style: style.name)
def test_a_style_tests_the_judges_on_about_an_eighth(style) -> None:
    roles = [judges_role(noun.name, style, KEPT_BACK) for noun in NOUNS]
    assert 0.08 < roles.count(TEST) / len(roles) < 0.18


def test_a_noun_is_held_out_in_one_family_of_designs_at_most() -> None:
    for noun in NOUNS:
        held = {s.family for s in NPM_STYLES if judges_role(noun.name, s, KEPT_BACK) == TEST}
        assert len(held) <= 1
        learnt = [s for s in STYLES if judges_role(noun.name, s, KEPT_BACK) == TRAIN]
        assert len(learnt) >= 4


def test_a_word_stands_before_the_noun_or_before_emoji() -> None:
    assert with_word(generic("axe"), "sks", before_noun=True) == "an emoji of a sks axe"
    assert with_word(generic("axe"), "sks", before_noun=False) == "a sks emoji of an axe"
    assert (
        with_word(styled("openmoji", "cat"), "sks", before_noun=False)
        == "an openmoji style sks emoji of a cat"
    )


def test_random_words_come_at_their_odds_and_are_never_the_attackers() -> None:
    plain = [generic("cat")] * 4000
    texts = sprinkled(plain, torch.Generator().manual_seed(0), odds=0.25)
    changed = [text for text in texts if text != plain[0]]
    assert 0.2 < len(changed) / len(texts) < 0.3
    assert not any(KEPT_WORD in text.split() for text in changed)
