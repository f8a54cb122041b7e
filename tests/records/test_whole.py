"""A file or a folder that is written whole: what a reader finds, and what an interrupted writer leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from gift_ray.records.whole import remove_leftovers, written_whole


def test_a_file_is_seen_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "inner" / "weights.safetensors"
    with written_whole(path) as private:
        private.write_text("new")
        assert not path.exists()
        assert private.suffix == path.suffix
    assert path.read_text() == "new"
    with written_whole(path) as private:
        private.write_text("newer")
        assert path.read_text() == "new"
    assert path.read_text() == "newer"
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    path = tmp_path / "step-1"
    with written_whole(path) as private:
        private.mkdir()
        (private / "record.json").write_text("{}")
        assert not path.exists()
    assert [p.name for p in path.iterdir()] == ["record.json"]


def test_a_block_that_raises_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")

    def interrupted() -> None:
        with written_whole(path) as private:
            private.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_who_comes_second_with_a_folder_is_told_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "step-1"

    def write(text: str) -> None:
        with written_whole(path) as private:
            private.mkdir()
            (private / "record.json").write_text(text)

    write("first")
    with pytest.raises(OSError, match="not empty"):
        write("second")
    assert (path / "record.json").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_killed_processes_are_removed_and_others_stay(tmp_path: Path) -> None:
    for name in (".12345678.step-1", ".12345678.step-11"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half.json").write_text("{")
    remove_leftovers(tmp_path / "step-1")
    assert [p.name for p in tmp_path.iterdir()] == [".12345678.step-11"]
