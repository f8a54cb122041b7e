"""The store in which MLflow keeps runs and models: how its address is written, and whether it answers.

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

# MLflow's own clients retry for minutes (nearly two for a database) before they report that nothing answers.
PATIENCE_S = 15.0
# The codes with which MLflow answers a call that is wrong in itself. That is a bug of ours, and keeps its
# traceback.
OURS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST"}


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, whatever letters are in its path."""
    return sqlalchemy.URL.create("sqlite", database=str(path.absolute())).render_as_string()


def shown(uri: str) -> str:
    """A URI without the user name and password in it."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def require_reachable(uri: str) -> None:
    """Check that a store answers and can be written.

    Raises:
        ConfigError: it did not answer within PATIENCE_S seconds, or with an error.
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
    """Connect to a database, and check that an SQLite file can be written; a folder needs no check."""
    if "://" not in uri or uri.startswith("file:") or uri.startswith("databricks"):
        return
    url = sqlalchemy.make_url(uri)
    if url.get_backend_name() == "sqlite" and url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "sqlite":
                # Take the lock that a writer takes, and give it back: this fails if the file can't be
                # written.
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                connection.exec_driver_sql("PRAGMA user_version = 0")
                connection.rollback()
    finally:
        engine.dispose()


@contextmanager
def answering(uri: str, failure: type[GiftError] = ClusterFailed) -> Iterator[None]:
    """Within the block a failure of the store becomes an error of the kind `failure`, with one line.

    Raises:
        GiftError: the store is locked, full, unreachable, or of another version of MLflow.
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
