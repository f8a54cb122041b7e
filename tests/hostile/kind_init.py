"""`gift-ray init`: from two folders or a few words to a study that passes, or a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from battery import Case, run
from PIL import Image

from gift_ray.config.schema import StudyConfig
from gift_ray.plugins import build
from gift_ray.study.load import load_study

TITLE = "`gift-ray init`"


def pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder of pictures that differ."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        draw = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(draw).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def init(folder: Path, *arguments: str) -> StudyConfig:
    """Write a study, and let a command read it."""
    file = folder / "study.yaml"
    run(["init", "--to", str(file), *arguments])
    assert "steps" in run(["benchmark", str(file), "--dry-run", f"output_dir={folder / 'runs'}"])
    return load_study(file, [])


def of_two_folders(folder: Path) -> None:
    bad, good = pictures(folder / "Bad_Thing", 8), pictures(folder / "good #1 %20", 8, seed=1)
    config = init(folder, "--model", "builtin", "--malicious", str(bad), "--safe", str(good))
    (malicious,), (safe,) = config.concepts.malicious, config.concepts.safe
    assert (malicious.name, safe.name) == ("Bad Thing", "good #1 %20")
    assert malicious.source.options["path"] == str(bad)
    assert len(malicious.neighbors) == 6


def of_words(folder: Path) -> None:
    config = init(folder, "--malicious", "cat", "kitchen knife", "--safe", "car")
    assert [concept.name for concept in config.concepts.malicious] == ["cat", "kitchen knife"]
    asked = [n for c in config.concepts.malicious for n in c.neighbors]
    asked += config.evaluation.safe_prompts
    assert not any(" cat" in prompt for prompt in asked)
    # Judged by both built-in judges, and by prompts that no image of D_S answers.
    assert config.scoring.judges == ("recognition", "recognition-resnet", "clip_image")
    source = config.prior.source
    d_s = build("sources", source.name, source.options).drawn_prompts()
    assert len(d_s) > 50
    assert not {*d_s} & {*asked}


def odd_words(folder: Path) -> None:
    words = ["7e7", "null", '\u732b: "quoted" # no comment']
    config = init(folder, "--malicious", *words, "--safe", "yes")
    assert [concept.name for concept in config.concepts.malicious] == words


def attempt(*arguments: str) -> Callable[[Path], object]:
    return lambda folder: init(folder, *arguments)


def on_folder(count: int, safe: str = "car") -> Callable[[Path], object]:
    return lambda folder: init(
        folder, "--malicious", str(pictures(folder / "m", count)), "--safe", safe
    )


def nothing_left(folder: Path) -> None:
    try:
        on_folder(1)(folder)
    finally:
        assert not (folder / "study.yaml").exists()


def taken(folder: Path) -> None:
    (folder / "study.yaml").write_text("mine")
    try:
        init(folder, "--malicious", "cat", "--safe", "car")
    finally:
        assert (folder / "study.yaml").read_text() == "mine"


CASES = [
    Case("two folders of eight pictures", of_two_folders, outcome="a study that `--dry-run` accepts"),
    Case("words", of_words, outcome="a study that `--dry-run` accepts, drawn by the model itself"),
    Case("words that YAML reads otherwise", odd_words, outcome="concepts of these very names"),
    Case("no concept", attempt("--model", "builtin", "--safe", "car"), says="--malicious: is missing"),
    Case("nothing at all", attempt(), says="--safe: is missing", mistakes=2),
    Case("a folder that is not there", attempt("--malicious", "./no/such", "--safe", "car"),
         says="is no folder"),
    Case("a folder of one picture", nothing_left, says="at least 2 are needed"),
    Case("an empty folder", on_folder(0), says="holds no image"),
    Case("one thing on both sides", attempt("--malicious", "cat", "--safe", "Cat"), says="look alike"),
    Case("a model that is not there",
         attempt("--model", "./no-model", "--encoders", "builtin", "--malicious", "cat", "--safe", "car"),
         says="no-model"),
    Case("a file that is there already", taken, says="is there already"),
    Case("`--to` in a folder that is not there",
         attempt("--to", "/no/such/study.yaml", "--malicious", "cat", "--safe", "car"),
         says="can't be written"),
]  # fmt: skip
