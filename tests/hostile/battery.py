"""The battery of hostile and odd inputs. Each kind has a file `kind_*.py` in this folder, which holds
`TITLE`, the kind in words, and `CASES`, its inputs; each input is a row of docs/INPUTS.md.

    python tests/hostile/battery.py     # writes docs/INPUTS.md anew
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest.mock import patch

import yaml

from gift_ray.cli.command import main
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError
from gift_ray.study.load import load_study

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "INPUTS.md"
HEAD = """# What becomes of hostile and odd inputs

Every row is tried by `pytest tests/hostile`, and this file is written by `python tests/hostile/battery.py`.
A refused input ends a command with exit code 2 and one line for each mistake; what stands here is the part of
the line that the test looks for. Mistakes of the study and of images are told before a worker starts and
before anything is written. What only the weights of a base or of a checkpoint say (tensors, other parts, a
picture that is NaN) is told by the first step that loads them, before anything is trained.
"""
# A small study on the built-in model, valid as it is.
STUDY: dict[str, Any] = {
    "name": "odd",
    "concepts": {
        "malicious": [
            {
                "name": "cat",
                "source": {"name": "openmoji", "match": r"\bCAT\b", "caption": "an emoji of a cat"},
                "instance_prompt": "a sks emoji of a cat",
                "validation_prompts": ["a sks emoji of a cat"],
                "neighbors": ["an emoji of a tiger", "an emoji of a fox"],
            }
        ],
        "safe": [
            {
                "name": "car",
                "source": {
                    "name": "openmoji",
                    "match": "^(AUTOMOBILE|TAXI|POLICE CAR|MINIBUS|AMBULANCE|DELIVERY TRUCK)$",
                    "caption": "an emoji of a car",
                },
                "validation_prompts": ["an emoji of a car"],
            }
        ],
    },
    "prior": {"source": {"name": "openmoji", "match": r"\bDOG\b", "caption": "an emoji of a dog"}},
    "defense": {"name": "gift", "max_train_steps": 4},
    "attacks": [{"name": "dreambooth", "max_train_steps": 4}],
    "evaluation": {
        "metrics": [{"name": "clip_text"}, {"name": "clip_image"}, {"name": "dino"}],
        "safe_prompts": ["an emoji of a house", "an emoji of a pizza"],
        "num_images_per_prompt": 2,
        "num_inference_steps": 2,
    },
}


@dataclass(frozen=True)
class Case:
    """One input.

    `given` says in words what it is; `attempt` does with it, in an empty folder, what a user would do.
    An input with `says` is refused: `attempt` raises a GiftError of `mistakes` lines, and one of them
    holds these words. One with `outcome` has the right result, which `attempt` checks itself.
    """

    given: str
    attempt: Callable[[Path], object]
    says: str = ""
    outcome: str = ""
    mistakes: int = 1

    def __post_init__(self) -> None:
        assert bool(self.says) != bool(self.outcome), f"{self.given}: says, or outcome"


class _Started(BaseException):
    """Everything was found to be right: a worker would start now."""


def study(
    folder: Path,
    changes: Mapping[str, Any] = MappingProxyType({}),
    *overrides: str,
    command: str = "immunize",
) -> StudyConfig:
    """Run a command on STUDY up to the moment when it would start a worker; returns the study as read.

    Args:
        changes: dotted paths of STUDY and the values to set there.
        overrides: given on the command line.

    Raises:
        ConfigError: the command refused it: the lines that it printed.
    """
    raw = copy.deepcopy(STUDY) | {"output_dir": str(folder / "runs")}
    for path, value in changes.items():
        set_at(raw, path, value)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    with (
        patch("ray.init", side_effect=_Started),
        patch("gift_ray.cli.sweep.open_tracker", side_effect=_Started),
    ):
        run([command, str(file), *overrides])
    return load_study(file, list(overrides))


def run(arguments: list[str]) -> str:
    """Run the `gift-ray` command in this process; returns what it printed on standard output.

    Raises:
        ConfigError: it ended with exit code 2: the lines that it printed as errors.
    """
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            code = main(arguments)
        except _Started:
            return out.getvalue()
    lines = errors.getvalue().splitlines()
    if code == 0:
        return out.getvalue()
    assert code == 2, f"exit code {code}: {lines}"
    assert lines
    assert all(line.startswith("error: ") for line in lines), lines
    raise ConfigError(*(line.removeprefix("error: ") for line in lines))


def set_at(raw: Any, path: str, value: Any) -> None:
    """Set what stands at a dotted path of nested dicts and lists."""
    *parents, last = path.split(".")
    for key in parents:
        raw = raw[int(key)] if isinstance(raw, list) else raw.setdefault(key, {})
    if isinstance(raw, list):
        raw[int(last) :] = [value, *raw[int(last) + 1 :]]
    else:
        raw[last] = value


def kinds() -> Iterator[tuple[str, list[Case]]]:
    """(title, cases) of each kind, in the order of the files' names."""
    for file in sorted(HERE.glob("kind_*.py")):
        module = importlib.import_module(file.stem)
        yield module.TITLE, list(module.CASES)


def table() -> str:
    """All kinds as Markdown."""
    parts = [HEAD]
    for title, cases in kinds():
        rows = [f"| {_cell(case.given)} | {_outcome(case)} |" for case in cases]
        parts.append("\n".join([f"## {title}\n", "| input | outcome |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def _outcome(case: Case) -> str:
    return f"refused: {_cell(case.says)}" if case.says else _cell(case.outcome)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    # pytest finds the tests' helpers by its own settings.
    sys.path.append(str(HERE.parent))
    TABLE.write_text(table(), encoding="utf-8")
