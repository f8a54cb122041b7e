"""`gift-ray init` in a terminal, where it asks. (Its arguments are tried by tests/hostile/kind_init.py.)"""

from __future__ import annotations

import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from gift_ray.cli.judge_first import power
from gift_ray.study.load import load_study

PATIENCE_S = 240


class Terminal:
    """A command in a terminal of its own, which a user reads and types into."""

    def __init__(self, arguments: list[str]) -> None:
        self.read = ""
        self.process, self.screen = pty.fork()
        if self.process == 0:
            # A shell's background jobs, these tests among them, may ignore the interrupt; a user's terminal
            # does not.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(sys.executable, [sys.executable, "-m", "gift_ray.cli.command", *arguments])

    def wait_for(self, text: str) -> None:
        """Read until the screen shows this, after what was waited for before."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.read:
            assert time.monotonic() < deadline, self.read
            assert self._read_more(), self.read
        self.read = self.read.partition(text)[2]

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self.screen, text.encode())

    def press_until_the_end(self, key: str) -> None:
        """Press this key, and again whenever ten seconds bring no answer, until the command has ended.

        Python looks at an interrupt only when its wait for a key is broken: one that comes after the question
        is shown and before that wait has begun is seen at the next key.
        """
        deadline = time.monotonic() + PATIENCE_S
        self.type(key)
        while True:
            assert time.monotonic() < deadline, self.read
            if not select.select([self.screen], [], [], 10)[0]:
                self.type(key)
            elif not self._read_more():
                return

    def exit_code(self) -> int:
        """Wait for the end."""
        while self._read_more():
            pass
        _, status = os.waitpid(self.process, 0)
        return os.waitstatus_to_exitcode(status)

    def _read_more(self) -> bool:
        """False at the end of the command's output."""
        if not select.select([self.screen], [], [], PATIENCE_S)[0]:
            return False
        try:
            found = os.read(self.screen, 4096)
        except OSError:
            # Linux' answer when the other side of a terminal is closed.
            return False
        self.read += found.decode(errors="replace")
        return bool(found)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    opened = Terminal(list(arguments))
    try:
        yield opened
    finally:
        os.close(opened.screen)


@pytest.mark.timeout(600)
def test_wrong_answers_are_asked_for_again(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    (tmp_path / "one").mkdir()
    Image.effect_noise((64, 64), 90).save(tmp_path / "one" / "only.png")
    with terminal("init", "--to", str(path)) as user:
        user.wait_for("the model")
        user.type("./no-such-model\n")
        user.wait_for("'./no-such-model' is not a folder")
        user.wait_for("the model")
        user.type("\n")
        user.wait_for("what it is to resist")
        user.type("\n")
        user.wait_for("give a folder of images, or words")
        user.type("./no/such/folder\n")
        user.wait_for("is no folder")
        user.type(f"{tmp_path / 'one'}\n")
        user.wait_for("at least 2 are needed")
        user.type("kitchen knife, cat\n")
        user.wait_for("what must stay learnable")
        user.type("car\n")
        assert user.exit_code() == 0, user.read
        assert "gift-ray check" in user.read
    config = load_study(path, [])
    assert [c.name for c in config.concepts.malicious] == ["kitchen knife", "cat"]
    assert [c.name for c in config.concepts.safe] == ["car"]
    assert config.model.pretrained_model_name_or_path == "builtin"
    # What it writes can show what its gate asks for.
    assert "this study has enough" in "\n".join(power(config))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("keys", ["\x03", "\x04"], ids=["Ctrl-C", "Ctrl-D"])
def test_an_interrupt_ends_the_questions_with_130(keys: str, tmp_path: Path) -> None:
    with terminal("init", "--to", str(tmp_path / "my.yaml")) as user:
        user.wait_for("the model")
        user.press_until_the_end(keys)
        assert user.exit_code() == 130, user.read
    assert not (tmp_path / "my.yaml").exists()


@pytest.mark.timeout(600)
def test_nothing_is_asked_where_the_file_is_there_already(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("mine")
    with terminal("init", "--to", str(tmp_path / "my.yaml")) as user:
        assert user.exit_code() == 2, user.read
        assert "is there already" in user.read
    assert (tmp_path / "my.yaml").read_text() == "mine"
