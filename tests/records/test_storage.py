"""Steps in an object store, on a real S3 server: whole or not at all, whoever else writes."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from filled import write_step
from pyarrow import fs
from s3 import start_s3

from gift_ray.config.running import ClusterConfig
from gift_ray.errors import ClusterFailed
from gift_ray.records.record import is_done, read_record
from gift_ray.records.storage import DONE, ObjectStore, Storage, storage_of


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with start_s3() as started:
        yield started


@pytest.fixture
def nodes(url: str, tmp_path: Path) -> tuple[ObjectStore, ObjectStore]:
    """Two nodes that share the store alone, in a folder of this test's own."""
    own = url.replace("/runs?", f"/{tmp_path.name}?")
    return ObjectStore(own, tmp_path / "one" / "study"), ObjectStore(
        own, tmp_path / "two" / "study"
    )


def finish(store: Storage, text: str = "scores") -> Path:
    """A step of two files, done on this node."""

    def work(out: Path) -> dict[str, str]:
        (out / "D_M").mkdir()
        (out / "D_M" / "00.txt").write_text(text)
        (out / "scores.txt").write_text(text * 1000)
        return {"text": text}

    folder = store.study_dir / "steps" / "evaluate-0123"
    write_step(folder, {"kind": "evaluate"}, work)
    return folder


def test_the_configuration_says_which() -> None:
    assert type(storage_of(ClusterConfig(), Path("/study"))) is Storage
    assert type(storage_of(ClusterConfig(storage_path="s3://a/b"), Path("/study"))) is ObjectStore


def test_what_one_node_finished_the_other_reads(nodes) -> None:
    one, two = nodes
    folder = finish(one)
    there = two.study_dir / "steps" / folder.name
    assert not two.fetch_step(there)
    assert not there.exists()
    one.send_step(folder)
    assert two.fetch_step(there)
    assert read_record(there) == read_record(folder)
    assert (there / "D_M" / "00.txt").read_text() == "scores"
    assert list(there.parent.iterdir()) == [there], "something private is left"


def test_a_step_that_was_half_sent_is_not_finished(nodes) -> None:
    one, two = nodes
    folder = finish(one)
    one.send_step(folder)
    # As a sender that is killed leaves it: all of its files but the one that is written last.
    one.filesystem.delete_file(one.path(f"steps/{folder.name}/{DONE}"))
    assert not two.fetch_step(two.study_dir / "steps" / folder.name)
    one.send_step(folder)
    assert two.fetch_step(two.study_dir / "steps" / folder.name)


def test_two_nodes_that_finish_the_same_step_do_not_mix_their_files(nodes, tmp_path) -> None:
    one, two = nodes
    first, second = finish(one, "one"), finish(two, "two")
    one.send_step(first)
    two.send_step(second)
    third = ObjectStore(one.url, tmp_path / "three" / "study")
    read = third.study_dir / "steps" / first.name
    assert third.fetch_step(read)
    assert read_record(read).result == {"text": "one"}
    # Both looked before either had said that it is done: the last one to say so counts, whole.
    late = ObjectStore(one.url, tmp_path / "late" / "study")
    folder = finish(late, "late")
    late._done = lambda step: None  # type: ignore[method-assign]
    late.send_step(folder)
    fourth = ObjectStore(one.url, tmp_path / "four" / "study")
    assert fourth.fetch_step(fourth.study_dir / "steps" / first.name)
    assert read_record(fourth.study_dir / "steps" / first.name).result == {"text": "late"}


def test_a_damaged_object_is_refused_by_name(nodes) -> None:
    one, two = nodes
    folder = finish(one)
    one.send_step(folder)
    (scores,) = [
        info.path
        for info in one.filesystem.get_file_info(fs.FileSelector(one.path("steps"), recursive=True))
        if info.base_name == "scores.txt"
    ]
    with one.filesystem.open_output_stream(scores) as file:
        file.write(b"else")
    there = two.study_dir / "steps" / folder.name
    with pytest.raises(ClusterFailed, match=f"steps/{folder.name} is damaged; delete it"):
        two.fetch_step(there)
    assert not there.exists()


def test_files_are_replaced_and_forgotten(nodes) -> None:
    one, two = nodes
    name = Path("checkpoints") / "immunize-1.safetensors"
    two.fetch(two.study_dir / name)
    assert not (two.study_dir / name).exists()
    (one.study_dir / "checkpoints").mkdir(parents=True)
    for text in ("step 10", "step 20"):
        (one.study_dir / name).write_text(text)
        one.send(one.study_dir / name)
        two.fetch(two.study_dir / name)
        assert (two.study_dir / name).read_text() == text
    two.delete(two.study_dir / name)
    assert not (two.study_dir / name).exists()
    one.fetch(one.study_dir / name)
    assert (one.study_dir / name).read_text() == "step 20", "nothing is stored: what is here stays"


def test_folders_are_fetched_and_forgotten_whole(nodes) -> None:
    one, two = nodes
    (one.study_dir / "search").mkdir(parents=True)
    for number in range(3):
        path = one.study_dir / "search" / f"{number}.json"
        path.write_text(str(number))
        one.send(path)
    two.fetch(two.study_dir / "search")
    assert sorted(p.name for p in (two.study_dir / "search").iterdir()) == [
        "0.json", "1.json", "2.json",
    ]  # fmt: skip
    one.delete(one.study_dir / "search")
    two.delete(two.study_dir / "search")
    two.fetch(two.study_dir / "search")
    assert not (two.study_dir / "search").exists()


def test_it_travels_and_finds_its_node(nodes, tmp_path, monkeypatch) -> None:
    one, _ = nodes
    finish(one)
    assert one.filesystem is not None
    monkeypatch.setenv("GIFT_RAY_HOME", str(tmp_path / "elsewhere"))
    travelled = pickle.loads(pickle.dumps(one)).on_node()
    assert travelled.study_dir == tmp_path / "elsewhere" / "cache" / "study"
    one.send_step(one.study_dir / "steps" / "evaluate-0123")
    assert travelled.fetch_step(travelled.study_dir / "steps" / "evaluate-0123")
    shared = Storage(tmp_path)
    assert shared.on_node() is shared


@pytest.mark.parametrize(
    "bad", ["s3://no-such-bucket/runs?", "s3://gift/runs?endpoint_override=127.0.0.1:9&"]
)
def test_a_store_that_does_not_answer_is_one_line(url, tmp_path, bad: str) -> None:
    query = url.partition("?")[2] if "no-such" in bad else "scheme=http"
    store = ObjectStore(bad + query, tmp_path / "study")
    folder = finish(store)
    with pytest.raises(
        ClusterFailed, match=r"^cluster.storage_path: s3://.*run again to continue$"
    ):
        store.send_step(folder)
    assert is_done(folder), "what was computed stays"
