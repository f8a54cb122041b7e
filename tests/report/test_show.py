"""`gift-ray show` on studies that are finished, half done, or none."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from cards import attack, card, concept, sure
from studies import build

from gift_ray.cli.command import main


def shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["show", str(folder)]) == 0
    return capsys.readouterr().out


def test_a_finished_study_shows_its_trials_and_verdicts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, registered=False, malicious={"cat [red]": "object"})
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["chosen"][0] |= {
        "confirmed": {"objective": 0.25, "resistance": 0.1, "retention": 0.9},
        "selection_bias": {"objective": 0.31},
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    text = " ".join(shown(tmp_path, capsys).split())
    for word in ("abc_1", "abc_3", "cat [red]", "0.250", "+0.310", "gate.min_resistance"):
        assert word in text


def test_a_benchmark_beside_a_search_is_shown_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "benchmark"
    folder.mkdir()
    (folder / "standings.md").write_text("| arm | gift + imma |")
    assert "gift + imma" in shown(tmp_path, capsys)
    build(tmp_path, registered=False)
    text = shown(tmp_path, capsys)
    for word in ("gift + imma", "abc_3", "gate.min_resistance"):
        assert word in text


def test_a_study_that_still_runs_shows_what_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(tmp_path, ended=2, finished=False)
    text = shown(tmp_path, capsys)
    assert "abc_2" in text
    assert "not finished: 2 trials have ended" in text


def test_one_immunization_and_an_attack_on_a_checkpoint_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These commands search nothing, and leave no list of trials."""
    found = asdict(card({"cat": concept({"lora/dino": attack({0: 0.1, 9: 0.2})})},
                        {"safe prompts": sure(0.9)}))  # fmt: skip
    released = [{"scorecard": found, "folder": "runs/cat/models/one"}]
    (tmp_path / "immunize-joint.json").write_text(json.dumps({"released": released}))
    (tmp_path / "attack-abc.json").write_text(json.dumps({"model": "theirs", "scorecard": found}))
    text = " ".join(shown(tmp_path, capsys).split())
    assert "runs/cat/models/one" in text
    assert "theirs (report:" in text
    assert text.count("resists; lora/dino") == 2


def test_a_folder_that_is_no_study_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(tmp_path)]) == 2
    assert "nothing of a study is there" in capsys.readouterr().err
