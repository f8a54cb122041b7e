"""Imports run downward only, and each heavy library has one home. Read from the source text."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = {"sources", "defenses", "attacks", "metrics"}
# From the bottom up; peers on one floor don't know each other. A name is a folder of gift_ray, or a file
# that stands on another floor than its folder does.
FLOORS = (
    {"errors", "logs", "models/builtin", "__init__"},
    {"config", "training"},
    {"records"},
    {"models"},
    {"plugins"},
    {
        "training/finetuning",
        "training/path",
        "training/preservation",
        "training/representation",
        "models/checkpoints",
        "data",
    },
    PLUGINS,
    {"study"},
    {"verdict"},
    {"search"},
    {"records/release", "records/exports", "report", "tracking", "cluster"},
    {"cli"},
    {"scripts"},
)
FLOOR = {name: height for height, names in enumerate(FLOORS) for name in names}
# Heavy library -> the only places that may import it. The served model runs where gift_ray is not
# installed; the built-in model is made with diffusers' own classes.
HOMES = {
    "ray": {"gift_ray/cluster"},
    "mlflow": {"gift_ray/tracking"},
    "diffusers": {"gift_ray/models", "gift_ray/tracking/served_model.py", "tools"},
    "peft": {"gift_ray/models"},
    "nudenet": {"gift_ray/metrics/nudenet.py"},
    "bitsandbytes": {"gift_ray/training/optimizers.py"},
}  # fmt: skip
FILES = sorted(
    [*ROOT.glob("gift_ray/**/*.py"), *ROOT.glob("jobs/**/*.py"), *ROOT.glob("tools/**/*.py")]
)


def imports(file: Path) -> set[str]:
    """Dotted names of everything a file imports, `from a import b` as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports from the top"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(file: Path) -> str:
    """The name in FLOORS under which a file stands: its own, else its folder's."""
    path = file.relative_to(ROOT)
    if path.parts[0] in ("jobs", "tools"):
        return "scripts"
    return floor_of(path.with_suffix("").parts[1:])


def floor_of(parts: Sequence[str]) -> str:
    """The name in FLOORS of a module below gift_ray, given as its path's parts."""
    return max(
        (name for n in (1, 2) if (name := "/".join(parts[:n])) in FLOOR), key=len, default=parts[0]
    )


def own(names: set[str]) -> set[str]:
    """The parts of the house among imported names."""
    return {floor_of(name.split(".")[1:]) for name in names if name.startswith("gift_ray.")}


def test_every_part_of_the_house_has_a_floor() -> None:
    assert len(FILES) > 20
    assert {part(file) for file in FILES} <= FLOOR.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_downward_only(file: Path) -> None:
    here = part(file)
    for other in own(imports(file)) & FLOOR.keys():
        assert other == here or FLOOR[other] < FLOOR[here], f"{here} must not import {other}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_heavy_libraries_stay_at_home(file: Path) -> None:
    path = file.relative_to(ROOT).as_posix()
    for library in {name.partition(".")[0] for name in imports(file)} & HOMES.keys():
        assert any(path == home or path.startswith(f"{home}/") for home in HOMES[library]), library


def test_plugins_of_one_kind_do_not_know_those_of_another() -> None:
    for file in FILES:
        if part(file) in PLUGINS:
            assert own(imports(file)) & PLUGINS <= {part(file)}, file


def test_no_two_modules_or_classes_of_the_package_share_a_name() -> None:
    named: dict[str, list[str]] = {}
    for file in ROOT.glob("gift_ray/**/*.py"):
        path = file.relative_to(ROOT).as_posix()
        if file.stem != "__init__":
            named.setdefault(f"module {file.stem}", []).append(path)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                named.setdefault(f"class {node.name}", []).append(path)
    assert len(named) > 200
    assert {name: paths for name, paths in named.items() if len(paths) > 1} == {}
