"""Where MLflow keeps runs and models: how its address is written, and whether it answers.

A store that is not reachable, locked, or of another version of MLflow is reported in one line, since the
user can change that.
"""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy
from alembic.util import CommandError
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from gift_ray.errors import ClusterFailed, ConfigError, GiftError

# MLflow's own clients would try for minutes, and for a database nearly for two, before they say no.
PATIENCE_S = 15.0
# What MLflow answers to a call that is wrong in itself: a bug of ours, which keeps its traceback.
OURS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, whatever letters are in its path."""
    return sqlalchemy.URL.create("sqlite", database=str(path.absolute())).render_as_string()


def shown(uri: str) -> str:
    """A URI without the user name and password in it."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def require_reachable(uri: str) -> None:
    """Ask a store once whether it is there and can be written.

    Raises:
        ConfigError: it did not say so within PATIENCE_S seconds.
    """
    failures: list[str] = []

    def ask() -> None:
        try:
            (_ask_server if uri.startswith("http") else _ask_database)(uri)
        except (OSError, ValueError, SQLAlchemyError, ImportError) as error:
            failures.append(_reason(error))

    # In a thread: a database's driver may wait for an answer as long as it likes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    if asking.is_alive():
        failures.append(f"no answer within {PATIENCE_S:.0f} s")
    if failures:
        raise ConfigError(
            f"tracking.tracking_uri: {shown(uri)} does not answer ({failures[0]}); start the server or "
            "repair it, or leave the field out for an SQLite file in the study's folder"
        )


def _ask_server(uri: str) -> None:
    with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=PATIENCE_S):
        return


def _ask_database(uri: str) -> None:
    """Whether a store is a folder of files, which has no server to ask."""
    if "://" not in uri or uri.startswith("file:") or uri.startswith("databricks"):
        return
    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "sqlite":
                # Takes the lock that a writer takes, and gives it back: a file that can't be written says so.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.exec_driver_sql("PRAGMA user_version = 0")
                connection.rollback()
    finally:
        engine.dispose()


@contextmanager
def answering(uri: str, failure: type[GiftError] = ClusterFailed) -> Iterator[None]:
    """Within the block a store that fails ends the job with a line.

    Raises:
        GiftError: of the kind `failure`: locked, full, unreachable, of another version of MLflow.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, CommandError, OSError) as error:
        if isinstance(error, MlflowException) and error.error_code in OURS:
            raise
        raise failure(
            f"tracking.tracking_uri: {shown(uri)}: {_reason(error)}; see to it, then run the same command "
            "again: what is finished stays"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
