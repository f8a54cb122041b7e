"""The model registry: registers a model that passed the gate, once, with its scores and hashes.

MLflow has no lock and no tag that is unique, and several drivers may write at the same time. Each driver
therefore creates its version first and then lists all versions. By the same rule (the lowest number of one
content stands) all drivers come to the same result, whichever of them lists last.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from gift_ray.errors import ConfigError
from gift_ray.records.manifest import verify
from gift_ray.tracking.store import answering, require_reachable
from gift_ray.tracking.tracker import Registered

if TYPE_CHECKING:
    from gift_ray.tracking.mlflow_tracker import MlflowTracker

logger = logging.getLogger(__name__)

MANIFEST = "gift_ray.manifest"
OBJECTIVE = "gift_ray.objective"
PROTOCOL = "gift_ray.protocol"
# Marks a version that was compared with the champion; from then on only a person moves the alias to it.
SETTLED = "gift_ray.settled"
MISSING = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
# The tags of a version that its row in a listing shows.
TOLD = ("concepts", "defense", "verdict", "recovery_high", "retention_low", "objective")
REQUIREMENTS = ["mlflow>=3.13,<3.18", "torch>=2.13,<2.15", "diffusers>=0.42,<0.43",
                "transformers>=5.23,<6", "safetensors>=0.8,<1"]  # fmt: skip
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("string")]),
    outputs=Schema([ColSpec("string")]),
    params=ParamSchema([
        ParamSpec("seed", "long", 0),
        ParamSpec("num_inference_steps", "long", 25),
        ParamSpec("guidance_scale", "double", 4.0),
    ]),
)  # fmt: skip


def register(
    tracker: MlflowTracker,
    name: str,
    folder: Path,
    objective: float,
    protocol: str,
    tags: Mapping[str, str],
) -> Registered:
    """Register a released folder under `name`, once for the same manifest.

    The alias `candidate` moves to it; `champion` too when its objective beats the present champion's
    under the same protocol, or when there is none.

    Raises:
        ModelError: the folder differs from its manifest.
        ClusterFailed: the registry failed.
    """
    with answering(tracker.uri):
        return _register(tracker, name, folder, objective, protocol, tags)


def _register(
    tracker: MlflowTracker,
    name: str,
    folder: Path,
    objective: float,
    protocol: str,
    tags: Mapping[str, str],
) -> Registered:
    logger.info("Registering %s as %r.", folder, name)
    client, manifest = tracker.client, verify(folder)
    settled = {str(v.version) for v in _versions(client, name) if SETTLED in v.tags}
    made = ""
    if not _of_manifest(client, name, manifest):
        marks = {MANIFEST: manifest, OBJECTIVE: repr(objective), PROTOCOL: protocol}
        made = _log_and_register(tracker, name, folder, manifest, {**tags, **marks})
    version = str(_only_version(client, name, manifest).version)
    if version == made:
        _set_alias(client, name, "candidate", version)
    if version not in settled:
        _promote(client, name, protocol, settled)
        client.set_model_version_tag(name, version, SETTLED, "true")
    champion = _champion(client, name)
    is_champion = champion is not None and str(champion.version) == version
    return Registered(name, version, f"models:/{name}/{version}", is_champion, version == made)


def registered(uri: str) -> list[dict[str, str]]:
    """Every registered version, the newest of each model first: a row for people.

    Raises:
        ConfigError: the server does not answer.
    """
    require_reachable(uri)
    with answering(uri, ConfigError):
        return _rows(MlflowClient(uri))


def _rows(client: MlflowClient) -> list[dict[str, str]]:
    rows = []
    for model in client.search_registered_models():
        for version in sorted(_versions(client, model.name), key=lambda v: -int(v.version)):
            names = [
                alias
                for alias, number in model.aliases.items()
                if str(number) == str(version.version)
            ]
            told = {name: version.tags.get(name, "") for name in TOLD}
            rows.append(
                {"model": model.name, "version": str(version.version), "aliases": ", ".join(names),
                 **told, "protocol": version.tags.get(PROTOCOL, "")[:8], "run": str(version.run_id)}
            )  # fmt: skip
    return rows


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name = '{name}'"))


def _of_manifest(client: MlflowClient, name: str, manifest: str) -> list[ModelVersion]:
    """All versions of one content, the oldest first."""
    same = [v for v in _versions(client, name) if v.tags.get(MANIFEST) == manifest]
    return sorted(same, key=lambda v: int(v.version))


def _only_version(client: MlflowClient, name: str, manifest: str) -> ModelVersion:
    """The oldest version of one content; younger ones, of drivers that raced, are deleted.

    A version is created together with its tags, with a number above all others. The second driver therefore
    sees the version of the first, and both agree on which one stands.
    """
    first, *others = _of_manifest(client, name, manifest)
    for other in others:
        # Another driver may have deleted it meanwhile.
        with _may_be_missing():
            client.delete_model_version(name, other.version)
    return first


def _promote(client: MlflowClient, name: str, protocol: str, settled: set[str]) -> None:
    """Move `champion` to the best version among those not yet settled when this driver looked.

    Looks again after each move, since another driver may have moved it from a better one meanwhile.
    """
    while True:
        champion = _champion(client, name)
        rivals = [
            v
            for v in _versions(client, name)
            if str(v.version) not in settled and v.tags.get(PROTOCOL) == protocol
        ]
        best = max(rivals, key=lambda v: (float(v.tags[OBJECTIVE]), -int(v.version)))
        if champion is not None and not _beats(best, champion):
            return
        _set_alias(client, name, "champion", best.version)


def _set_alias(client: MlflowClient, name: str, alias: str, version: str) -> None:
    """Point an alias to a version.

    If two drivers create the same alias at the same time, MLflow's database refuses the second one's row. The
    alias exists then, and a second call moves it.
    """
    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if "UNIQUE" not in str(error).upper():
            raise
        client.set_registered_model_alias(name, alias, version)


def _beats(version: ModelVersion, champion: ModelVersion) -> bool:
    # Scores under different protocols can't be compared: the champion then stays.
    same = champion.tags.get(PROTOCOL) == version.tags[PROTOCOL]
    return same and float(version.tags[OBJECTIVE]) > float(champion.tags[OBJECTIVE])


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    with _may_be_missing():
        return client.get_model_version_by_alias(name, "champion")
    return None


@contextmanager
def _may_be_missing() -> Iterator[None]:
    """Within the block it is no error if something does not exist; a server that fails still is one."""
    try:
        yield
    except MlflowException as error:
        # MLflow answers INVALID_PARAMETER_VALUE for an alias that does not exist.
        if error.error_code not in MISSING:
            raise


def _log_and_register(
    tracker: MlflowTracker, name: str, folder: Path, manifest: str, tags: dict[str, str]
) -> str:
    """Upload the folder and make a version of it; returns its number."""
    mlflow.set_tracking_uri(tracker.uri)
    with warnings.catch_warnings(), mlflow.start_run(run_id=tracker.run_id):
        # MLflow asks for an input example, but the signature already says as much.
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        model = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "served_model.py"),
            artifacts={"pipeline": str(folder)},
            model_config={"manifest": manifest},
            signature=SIGNATURE,
            pip_requirements=REQUIREMENTS,
        )
    # start_run ended the parent run, which stays open until the study is written.
    tracker.client.update_run(tracker.run_id, status="RUNNING")
    return str(mlflow.register_model(model.model_uri, name, tags=tags).version)
