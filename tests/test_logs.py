"""The log: every process has a file in the study's folder, and `--verbose` shows it too."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from gift_ray import logs

LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ gift_ray\.part: (.*)"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package's logger as it was before."""
    monkeypatch.delenv(logs.VERBOSE, raising=False)
    logger = logging.getLogger("gift_ray")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in logger.handlers:
        if handler not in before[0]:
            handler.close()
    logger.handlers[:], logger.level, logger.propagate = before
    os.environ.pop(logs.VERBOSE, None)


def messages(path: Path) -> list[str]:
    return [re.fullmatch(LINE, line)[1] for line in path.read_text().splitlines()]  # type: ignore[index]


def test_a_process_appends_to_its_file_in_the_study(tmp_path: Path) -> None:
    for text in ("One begins.", "Two begins."):
        path = logs.to_study(tmp_path)
        logging.getLogger("gift_ray.part").info(text)
    assert path == tmp_path / "logs" / "driver.log"
    assert messages(path) == ["One begins.", "Two begins."]


def test_a_process_logs_to_one_study_at_a_time(tmp_path: Path) -> None:
    first, second = (logs.of_worker(tmp_path / name) for name in ("a", "b"))
    logging.getLogger("gift_ray.part").info("It begins.")
    assert not first.exists()
    assert messages(second) == ["It begins."]
    assert str(os.getpid()) in second.name


def test_a_study_without_messages_has_no_empty_file(tmp_path: Path) -> None:
    assert not logs.to_study(tmp_path).exists()


def test_verbose_reaches_standard_error_and_the_processes_that_are_started(tmp_path: Path) -> None:
    code = (
        "import logging, sys; from pathlib import Path; from gift_ray import logs;"
        "logs.of_worker(Path(sys.argv[1])); logging.getLogger('gift_ray.part').info('It begins.')"
    )
    told = []
    for start in (lambda: None, logs.to_stderr):
        start()
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
        )
        told.append(done.stderr)
    assert told[0] == ""
    assert re.fullmatch(LINE, told[1].strip())
    assert len(list((tmp_path / "logs").glob("worker-*.log"))) == 2


def test_a_loop_tells_its_beginning_its_end_and_not_each_round(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.0, 1.0, 29.0, 31.0, 31.0, 32.0])
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    logger = logging.getLogger("a loop")
    with caplog.at_level(logging.INFO, "a loop"):
        pace = logs.Pace(logger, "Step {done} of {total} is done.", 9)
        for done in (1, 2, 3, 4, 5):
            pace.tell(done)
    assert [r.getMessage() for r in caplog.records] == [
        "Step 1 of 9 is done.", "Step 4 of 9 is done.",
    ]  # fmt: skip
