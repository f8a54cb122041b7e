"""The console command: the same jobs as the scripts, completed by the shell, and quick to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gift_ray.cli.command import COMMANDS, main

ROOT = Path(__file__).parents[2]
GIFT_RAY = Path(sys.executable).with_name("gift-ray")


def completions(line: str, folder: Path) -> set[str]:
    """What the shell is offered after `line`, as argcomplete's shell function asks for it."""
    answer = folder / "answer"
    environment = {
        **os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_SHELL": "zsh",
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "63",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
    }  # fmt: skip
    subprocess.run([GIFT_RAY], env=environment, cwd=ROOT, timeout=120, check=True)
    return {text.partition(":")[0].strip() for text in answer.read_text().split("\n")}


def test_commands_studies_and_overrides_are_completed(tmp_path: Path) -> None:
    assert set(COMMANDS) <= completions("gift-ray ", tmp_path)
    assert "configs/demo.yaml" in completions("gift-ray sweep configs/de", tmp_path)
    offered = completions("gift-ray sweep configs/demo.yaml gate.min_r", tmp_path)
    assert offered == {"gate.min_resistance=", "gate.min_retention="}


def test_nothing_heavy_is_loaded_before_a_command_runs() -> None:
    code = (
        "import sys; from gift_ray.cli.command import _parser, _overrides; _parser(); list(_overrides()); "
        "print(sorted({'torch', 'ray', 'mlflow', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert " ".join(COMMANDS[name].split()) in " ".join(capsys.readouterr().out.split())


def test_an_unknown_command_is_met_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["swep"])
    assert ended.value.code == 2
    assert "sweep" in capsys.readouterr().err


def test_no_registry_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["models"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --tracking-uri: nothing is tracked")
