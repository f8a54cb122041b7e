"""The board, to which workers tell what they do."""

from __future__ import annotations

import subprocess
import sys


def test_the_process_of_a_board_does_without_torch() -> None:
    """Every driver has such a process: with torch it would take seconds to start and 200 MB more."""
    heavy = "{'torch', 'pydantic', 'mlflow', 'diffusers'} & set(sys.modules)"
    program = f"import sys, gift_ray.cluster.board; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
