"""A kind of step as anyone would add one: it notes each time that it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from gift_ray.errors import UnitFailed
from gift_ray.study.journal import Journal
from gift_ray.study.step import Inputs, Step


@dataclass(frozen=True, kw_only=True)
class Count(Step):
    """Appends a line to the file `notes`, and leaves the sum of what its inputs left and of `number`.

    `failure` makes it fail for its own reason, `bug` for one of ours.
    """

    kind: ClassVar[str] = "count"
    version: ClassVar[int] = 1

    notes: Path
    number: int = 1
    seconds: float = 0.0
    failure: str = ""
    bug: str = ""

    def identity(self) -> dict[str, Any]:
        return {"number": self.number, "failure": self.failure, "bug": self.bug}

    def run(self, inputs: Inputs, out: Path, journal: Journal) -> dict[str, Any]:
        with self.notes.open("a") as file:
            file.write(f"{self.label}\n")
        time.sleep(self.seconds)
        if self.bug:
            raise RuntimeError(self.bug)
        if self.failure:
            raise UnitFailed(self.failure)
        total = self.number + sum(int((p / "total").read_text()) for p in inputs.values())
        (out / "total").write_text(str(total))
        return {"total": total}
