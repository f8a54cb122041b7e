"""Each input of the battery ends in one line, or in the right result; docs/INPUTS.md tells of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from battery import TABLE, Case, kinds, table

from gift_ray.errors import GiftError

ALL = [(title, case) for title, cases in kinds() for case in cases]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{t}: {c.given}") for t, c in ALL])
def test_input(case: Case, tmp_path: Path) -> None:
    if not case.says:
        case.attempt(tmp_path)
        return
    with pytest.raises(GiftError) as refused:
        case.attempt(tmp_path)
    lines = refused.value.mistakes
    assert refused.value.exit_code == 2
    assert len(lines) == case.mistakes, "\n".join(lines)
    assert any(case.says in line for line in lines), "\n".join(lines)
    assert not (tmp_path / "runs").exists(), "something was written"


def test_the_inputs_of_a_kind_are_told_apart() -> None:
    rows = [(title, case.given) for title, case in ALL]
    assert len(rows) == len(set(rows))


def test_the_table_in_docs_is_this_battery() -> None:
    written = TABLE.read_text(encoding="utf-8")
    assert written == table(), "run: python tests/hostile/battery.py"
