"""D_S drawn by the base itself from a list of words.

An immunized model first loses what no image of D_S shows, so the list should name as many different things as
the model can draw.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from gift_ray.data.drawn import DrawnSource
from gift_ray.models.builtin import BUNDLE

Words = tuple[Annotated[str, Field(min_length=1)], ...]
# Which nouns the built-in model was trained on; written with the model.
BUILTIN_NOUNS = BUNDLE / "nouns.json"


class Vocabulary(DrawnSource):
    """Draws `images_per_word` images of each word; the caption is the template with the word in it.

    `exclude` should hold the words of the malicious concepts, since D_S must not teach what D_M takes away,
    and words by which retention outside of D_S is to be measured.
    """

    version: ClassVar[int] = 1

    words: Literal["builtin"] | Annotated[Words, Field(min_length=1)] = Field(
        description="builtin: the nouns that the built-in model was trained to draw"
    )
    template: str = Field(
        "a photo of {a}",
        description="of the caption: {a} is the word with its article, {word} without",
    )
    exclude: Words = Field((), description="words that are left out")
    near: Words = Field((), description="words near the concept, drawn near_weight times as often")
    near_weight: int = Field(5, gt=0)
    images_per_word: int = Field(1, gt=0)

    @model_validator(mode="after")
    def _words_are_there(self) -> Vocabulary:
        if "{a}" not in self.template and "{word}" not in self.template:
            raise ValueError(
                f"template {self.template!r} has no place for the word; write {{a}} or {{word}} into it"
            )
        words = self._all_words()
        _require_known("exclude", self.exclude, words)
        _require_known("near", self.near, [word for word in words if word not in self.exclude])
        if not self.chosen_words():
            raise ValueError("exclude leaves no word; shorten it")
        return self

    def chosen_words(self) -> list[str]:
        """The words that are drawn, each once."""
        return [word for word in self._all_words() if word not in self.exclude]

    def drawn_prompts(self) -> list[str]:
        return [
            self.template.replace("{a}", with_article(word)).replace("{word}", word)
            for word in self.chosen_words()
            for _ in range(self.images_per_word * (self.near_weight if word in self.near else 1))
        ]

    def content(self) -> Any:
        # The built-in model's words may change with the model.
        return self.chosen_words() if self.words == "builtin" else None

    def _all_words(self) -> list[str]:
        return builtin_words() if self.words == "builtin" else list(dict.fromkeys(self.words))


def with_article(word: str) -> str:
    """The word with "a" or "an" before it, chosen by the word's first letter."""
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


def builtin_words() -> list[str]:
    """The nouns that the built-in model draws, in alphabetical order."""
    if not BUILTIN_NOUNS.exists():
        raise ValueError(
            "the installed built-in model has no list of its nouns; give words as a list"
        )
    nouns = json.loads(BUILTIN_NOUNS.read_text(encoding="utf-8"))["nouns"]
    return sorted(name for name, facts in nouns.items() if facts["drawn"])


def _require_known(option: str, given: Sequence[str], words: Sequence[str]) -> None:
    for word in given:
        if word not in words:
            near = difflib.get_close_matches(word, words, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(
                f"{option}: {word!r} is none of the words that would be drawn; {hint}take it out of {option}"
            )
