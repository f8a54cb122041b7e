"""By which recognition prompts are judged: the one that reads the base's own images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from gift_ray.config.schema import EvaluationConfig
from gift_ray.verdict.retention import prompt_measure


@dataclass(frozen=True)
class Drawn:
    """A finished step that measured the base's images."""

    scores: dict[str, list[float]] = field(hash=False)

    def folder(self, study_dir: Path) -> Path:
        pd.DataFrame(self.scores).to_parquet(study_dir / "scores.parquet")
        return study_dir


def yardstick(folder: Path, prompts: list[str], scores: dict[str, list[float]]) -> Any:
    evaluation = EvaluationConfig.model_validate({
        "metrics": [
            {"name": "recognition"},
            {"name": "recognition", "label": "resnet", "classifier": "builtin"},
            {"name": "clip_text"},
        ],
        "safe_prompts": prompts,
    })  # fmt: skip
    config = SimpleNamespace(evaluation=evaluation, concepts=SimpleNamespace(malicious=()))
    undefended = SimpleNamespace(samples={"safe": Drawn(scores)})
    return SimpleNamespace(
        config=config, plan=SimpleNamespace(undefended=undefended), study_dir=folder
    )


@pytest.mark.parametrize(
    ("clip", "resnet", "expected"), [(0.5, 1.0, "resnet"), (1.0, 0.5, "recognition")]
)
def test_the_one_that_reads_the_base_is_taken_whatever_its_place(
    clip: float, resnet: float, expected: str, tmp_path: Path
) -> None:
    scores = {"recognition": [clip, 1.0], "resnet": [resnet, 1.0], "clip_text": [0.2, 0.3]}
    asked = ["an emoji of a fox", "an emoji of a bus"]
    assert prompt_measure(yardstick(tmp_path, asked, scores), "safe") == expected


def test_without_a_noun_that_a_judge_knows_clips_agreement_is_left(tmp_path: Path) -> None:
    scores = {"recognition": [1.0, 1.0], "resnet": [1.0, 1.0], "clip_text": [0.2, 0.3]}
    asked = ["an emoji of a fox", "zzzz"]
    assert prompt_measure(yardstick(tmp_path, asked, scores), "safe") == "clip_text"
