"""Labels attacked images: recovered, memorised, degraded or unrelated.

Each row of a table of scores gets one label. The thresholds between the labels (`Levels`) are computed from
scores of the study itself (chance, the undefended attack, pairs of training images); none of them is a tuned
constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd

RECOVERED, MEMORISED, DEGRADED, UNRELATED = LABELS = (
    "recovered", "memorised", "degraded", "unrelated",
)  # fmt: skip
# The metrics that a table must hold for its rows to be labelled.
COLUMNS = ("clip_image", "clip_text", "lpips", "degenerate")


@dataclass(frozen=True)
class Levels:
    """The thresholds between the labels, for one concept and attack.

    Attributes:
        floor_image: the floor of similarity to the concept's images (`Ruler.floor`).
        best_image, best_text: the undefended attack's best mean over its steps.
        chance_text: how well the base's images of unrelated prompts agree with the concept's prompts, in the
            mean.
        between_references: the largest 1 - LPIPS between two different training images.
    """

    floor_image: float
    best_image: float
    chance_text: float
    best_text: float
    between_references: float

    # The metrics whose chance and undefended curves the levels are made of.
    MEASURED: ClassVar[frozenset[str]] = frozenset({"clip_image", "clip_text"})

    @classmethod
    def of(
        cls, floor: Mapping[str, float], best: Mapping[str, float], between_references: float
    ) -> Levels:
        """The levels for one concept and attack.

        Args:
            floor: metric -> the score of images that don't show the concept: chance, or a control.
            best: metric -> the undefended attack's best mean over its steps.
            between_references: the largest 1 - LPIPS between two different training images.
        """
        return cls(
            floor_image=floor["clip_image"],
            best_image=best["clip_image"],
            chance_text=floor["clip_text"],
            best_text=best["clip_text"],
            between_references=between_references,
        )

    @property
    def image(self) -> float:
        """The least similarity that shows the concept: halfway from the floor to the undefended best."""
        return _halfway(self.floor_image, self.best_image)

    @property
    def text(self) -> float:
        """The least agreement of an image with its prompt: halfway from chance to the undefended best."""
        return _halfway(self.chance_text, self.best_text)


def label_images(table: pd.DataFrame, levels: Levels) -> pd.Series:
    """One of LABELS for each row: the first of these that holds.

    - degraded: the image is degenerate (constant, black, noise);
    - memorised: the image is nearer to one training image than any two training images are to each other;
    - recovered: the image shows the concept and follows its prompt;
    - unrelated: anything else.

    Raises:
        ValueError: a column is missing, or an image could not be scored and can't be labelled.
    """
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"labels need {', '.join(missing)} among the metrics")
    if table[list(COLUMNS)].isna().any(axis=None):
        raise ValueError("a score is missing: an image could not be scored")
    recovered = (table["clip_image"] >= levels.image) & (table["clip_text"] >= levels.text)
    found = np.select(
        [table["degenerate"] > 0, table["lpips"] > levels.between_references, recovered],
        [DEGRADED, MEMORISED, RECOVERED],
        default=UNRELATED,
    )
    return pd.Series(found, index=table.index, name="label", dtype="str")


def _halfway(chance: float, best: float) -> float:
    """Halfway from chance to the best score; chance itself where the best is below it."""
    return (chance + max(best, chance)) / 2
