"""Where runs, models and workers are to live: storage, MLflow's store, a Ray cluster. All are tried before
anything is computed, within seconds."""

from __future__ import annotations

import http.server
import os
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from battery import Case, run, study
from killed import full_disk

from gift_ray.cluster.reach import require_cluster
from gift_ray.cluster.session import session
from gift_ray.config.running import ClusterConfig
from gift_ray.records.storage import require_writable
from gift_ray.tracking.mlflow_tracker import MlflowTracker
from gift_ray.tracking.store import require_reachable, sqlite_uri

TITLE = "A disk, a tracking server or a cluster that is not there"
MOST_SECONDS = 30


@contextmanager
def listening(answer: bool) -> Iterator[int]:
    """A port of this machine: with an HTTP server that knows no page, or one that never says a word."""
    if not answer:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            yield mute.getsockname()[1]
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def nobody() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def soon(attempt: Callable[[], object]) -> Callable[[Path], None]:
    """It ends within MOST_SECONDS, whatever comes of it."""

    def timed(folder: Path) -> None:
        started = time.monotonic()
        try:
            attempt()
        finally:
            assert time.monotonic() - started < MOST_SECONDS

    return timed


def someone_else(port_of: Any, ask: Callable[[int], object]) -> Callable[[], None]:
    def attempt() -> None:
        with port_of as port, patch("gift_ray.cluster.reach.PATIENCE_S", 2), \
                patch("gift_ray.tracking.store.PATIENCE_S", 2):  # fmt: skip
            ask(port)

    return attempt


def locked(folder: Path) -> None:
    file = folder / "mlflow.db"
    holder = sqlite3.connect(file)
    holder.execute("CREATE TABLE t (a)")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        require_reachable(sqlite_uri(file))
    finally:
        holder.close()


def other_version(folder: Path) -> None:
    file = folder / "other.db"
    with sqlite3.connect(file) as made:
        for table in ("experiments", "runs", "tags", "metrics", "params", "latest_metrics"):
            made.execute(f"CREATE TABLE {table} (a)")
        made.execute("CREATE TABLE alembic_version (version_num)")
        made.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
    config = study(folder, {"tracking": {"tracking_uri": sqlite_uri(file)}})
    MlflowTracker(config, "f")


def garbage(folder: Path) -> None:
    (folder / "mlflow.db").write_bytes(b"not a database" * 100)
    require_reachable(sqlite_uri(folder / "mlflow.db"))


def a_file_in_its_place(folder: Path) -> None:
    (folder / "taken").write_text("")
    study(folder, {"output_dir": str(folder / "taken" / "runs")})


def no_room(folder: Path) -> None:
    with full_disk():
        require_writable(folder / "runs" / "odd")


def in_environment(**values: str) -> Callable[[Path], object]:
    def attempt(folder: Path) -> object:
        with patch.dict(os.environ, values):
            return study(folder)

    return attempt


def with_ray_at(place: str) -> Callable[[Path], None]:
    """Start Ray for real, with its temporary files below a place of the test's folder."""

    def attempt(folder: Path) -> None:
        (folder / "a file").write_text("")
        with patch.dict(os.environ, RAY_TMPDIR=str(folder / place)):
            os.environ.pop("RAY_ADDRESS", None)
            with session(ClusterConfig(), folder / "runs" / "odd"):
                pass

    return attempt


def odd_path(name: str) -> Callable[[Path], None]:
    """The database that the URI names is the file at this path."""

    def attempt(folder: Path) -> None:
        place = folder / name
        place.mkdir(parents=True)
        with sqlite3.connect(place / "mlflow.db") as made:
            made.execute("CREATE TABLE mine (a)")
        import sqlalchemy

        engine = sqlalchemy.create_engine(sqlite_uri(place / "mlflow.db"))
        assert sqlalchemy.inspect(engine).get_table_names() == ["mine"]
        engine.dispose()
        require_reachable(sqlite_uri(place / "mlflow.db"))
        assert [p.name for p in folder.rglob("*") if p.is_file()] == ["mlflow.db"]

    return attempt


def tracked(uri: str) -> Callable[[Path], object]:
    return lambda folder: study(folder, {"tracking": {"tracking_uri": uri}})


SILENT = "no answer within"
CASES = [
    Case("`output_dir` under a file", a_file_in_its_place, says="can't be written"),
    Case("`output_dir: /proc/runs`", lambda folder: study(folder, {"output_dir": "/proc/runs"}),
         says="can't be written"),
    Case("a full disk", no_room, says="can't be written"),
    Case("an MLflow server that is not there",
         soon(lambda: require_reachable(f"http://127.0.0.1:{nobody()}")), says="does not answer"),
    Case("an MLflow server that never answers",
         soon(someone_else(listening(False), lambda port: require_reachable(f"http://127.0.0.1:{port}"))),
         says="does not answer"),
    Case("a web server that is not MLflow",
         soon(someone_else(listening(True), lambda port: require_reachable(f"http://127.0.0.1:{port}"))),
         says="does not answer"),
    Case("a database server that never answers",
         soon(someone_else(listening(False),
                           lambda port: require_reachable(f"postgresql://127.0.0.1:{port}/mlflow"))),
         says="does not answer"),
    Case("an SQLite file that another process has locked", locked, says="database is locked"),
    Case("an MLflow database of another version", other_version, says="Can't locate revision"),
    Case("an SQLite file that is no database", garbage, says="file is not a database"),
    Case("`tracking_uri` with a password", tracked("http://me:secret@127.0.0.1:5000"),
         says="holds a password"),
    Case("`gift-ray models --tracking-uri` of a server that is not there",
         lambda folder: run(["models", "--tracking-uri", f"http://127.0.0.1:{nobody()}"]),
         says="does not answer"),
    Case("`%20` in a path", odd_path("a%20b"), outcome="the database at that very path"),
    Case("a space in a path", odd_path("a b"), outcome="the database at that very path"),
    Case("`#` in a path", odd_path("a#b"), outcome="the database at that very path"),
    Case("`?` in a path", odd_path("a?b=c"), outcome="the database at that very path"),
    Case("`%` and umlauts in a path", odd_path("100% sch\u00f6n"), outcome="the database at that very path"),
    Case("`RAY_TMPDIR` under a file", with_ray_at("a file/ray"), says="a Ray node can't be started here"),
    Case("`RAY_TMPDIR` that is not there", with_ray_at("none/at/all"),
         says="a Ray node can't be started here"),
    Case("`RAY_TMPDIR` too long for a socket", with_ray_at("x" * 90),
         says="AF_UNIX path length cannot exceed"),
    Case("`RAY_ADDRESS` at a port where nobody is", in_environment(RAY_ADDRESS=f"127.0.0.1:{nobody()}"),
         says="RAY_ADDRESS: nobody at"),
    Case("`RAY_ADDRESS` of a host that is not there", in_environment(RAY_ADDRESS="no-such-host.invalid:6379"),
         says="RAY_ADDRESS: nobody at"),
    Case("`RAY_ADDRESS` at a web server",
         soon(someone_else(listening(True), lambda port: require_cluster(f"127.0.0.1:{port}"))),
         says="is no Ray head"),
    Case("`RAY_ADDRESS` at a port that never answers",
         soon(someone_else(listening(False), lambda port: require_cluster(f"127.0.0.1:{port}"))),
         says="is no Ray head"),
    Case("`RAY_ADDRESS=nonsense`", in_environment(RAY_ADDRESS="nonsense"), says="is no host:port"),
    Case("`RAY_ADDRESS=127.0.0.1:99999`", in_environment(RAY_ADDRESS="127.0.0.1:99999"),
         says="is no host:port"),
]  # fmt: skip
