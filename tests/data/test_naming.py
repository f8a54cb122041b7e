"""Whether a text names a thing: whole words, whatever their case, and names of several words."""

from __future__ import annotations

import pytest

from gift_ray.data.naming import is_named, names_any


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("cat", "an emoji of a cat", True),
        ("cat", "A CAT, sleeping", True),
        ("cat", "an emoji of a caterpillar", False),
        ("cat", "cats", False),
        ("ice cream", "an emoji of an ice cream", True),
        ("cream", "an emoji of an ice cream", True),
        ("t-shirt", "a t-shirt.", True),
        ("猫", "猫 の 絵", True),
        ("c++", "c++ code", True),
    ],
)
def test_a_name_counts_as_whole_words(name: str, text: str, expected: bool) -> None:
    assert is_named(name, text) is expected


def test_one_of_several_names_is_enough_and_no_name_is_none() -> None:
    assert names_any(["dog", "wolf"], "a drawing of a wolf")
    assert not names_any(["dog", "wolf"], "a drawing of a fox")
    assert not names_any([], "a drawing of a fox")
