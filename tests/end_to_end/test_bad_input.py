"""A user's mistake: one line each, exit code 2, before a worker starts, nothing written."""

from __future__ import annotations

import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def picture(path: Path, seed: int) -> None:
    """A 32 px picture of its own."""
    generator = __import__("numpy").random.default_rng(seed)
    Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype="uint8")).resize((32, 32)).save(
        path
    )


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Run jobs/sweep.py in this process; returns its error lines after checking what must hold."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was about to be started")

    def job(*overrides: str) -> list[str]:
        output = tmp_path / "runs"
        arguments = [str(ROOT / "configs" / "demo.yaml"), f"output_dir={output}", *overrides]
        monkeypatch.setattr(sys, "argv", ["sweep.py", *arguments])
        monkeypatch.setattr("ray.init", start)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "jobs" / "sweep.py"), run_name="__main__")
        assert ended.value.code == 2
        assert not output.exists()
        lines = capsys.readouterr().err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines)
        return lines

    return job


def folder_concept(folder: Path) -> list[str]:
    """The second concept's images come from a folder, which both sides share."""
    source = f"{{name: folder, path: {folder}, caption: a thing}}"
    return [f"concepts.malicious.1.source={source}", "concepts.malicious.1.attack_source=null"]


def test_unknown_key_names_the_nearest(run):
    (line,) = run("defense.alpha_iner=1e-4")
    assert "alpha_iner" in line
    assert "alpha_inner" in line


def test_negative_rate(run):
    (line,) = run("attacks.0.learning_rate=-1e-4")
    assert "attacks.0.learning_rate" in line
    assert "-0.0001" in line


def test_missing_folder(run):
    (line,) = run(*folder_concept(Path("/no/such/folder")))
    assert "/no/such/folder" in line


def test_one_image(run, tmp_path):
    (tmp_path / "one").mkdir()
    picture(tmp_path / "one" / "a.png", 0)
    (line,) = run(*folder_concept(tmp_path / "one"))
    assert "'cat' has 1 image" in line


def test_corrupt_png(run, tmp_path):
    (tmp_path / "bad").mkdir()
    picture(tmp_path / "bad" / "a.png", 0)
    (tmp_path / "bad" / "b.png").write_bytes((tmp_path / "bad" / "a.png").read_bytes()[:60])
    (line,) = run(*folder_concept(tmp_path / "bad"))
    assert "b.png" in line


def test_same_image_on_both_sides(run, tmp_path):
    (tmp_path / "twice").mkdir()
    for i in range(3):
        picture(tmp_path / "twice" / f"{i}.png", i)
    shutil.copy(tmp_path / "twice" / "0.png", tmp_path / "twice" / "copy.png")
    (line,) = run(*folder_concept(tmp_path / "twice"))
    assert "0.png" in line
    assert "copy.png" in line


def test_hub_id_without_network(run):
    (line,) = run("model.pretrained_model_name_or_path=nobody/nothing")
    assert "nobody/nothing" in line


def test_all_mistakes_at_once(run):
    lines = run("defense.beta=-1", "seed=-1", "attacks.0.steps=3")
    assert len(lines) == 3
