"""The model registry: a model that passed the gate, registered once, with what proves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from gift_ray.models import folder_hash
from gift_ray.tracking.tracker import Tracker

MANIFEST = "gift_ray.manifest"
OBJECTIVE = "gift_ray.objective"
PROTOCOL = "gift_ray.protocol"
REQUIREMENTS = ["mlflow>=3.13,<3.18", "torch>=2.13,<2.15", "diffusers>=0.42,<0.43",
                "transformers>=5.23,<6", "safetensors>=0.8,<1"]  # fmt: skip


@dataclass(frozen=True)
class Registered:
    """A version in the registry; `is_new` tells whether this call made it."""

    name: str
    version: str
    uri: str
    champion: bool
    is_new: bool


def register(
    tracker: Tracker,
    name: str,
    folder: Path,
    objective: float,
    protocol: str,
    tags: Mapping[str, str],
) -> Registered:
    """Register a diffusers folder under `name`, once for the same content and protocol.

    The alias `candidate` moves to it; `champion` too when its objective beats the present champion's
    under the same protocol, or when there is none.
    """
    manifest = f"{folder_hash(folder)[:32]}-{protocol[:16]}"
    client = tracker.client
    version = _version_of(tracker, name, manifest)
    is_new = version is None
    if version is None:
        version = _log_and_register(tracker, name, folder)
        marks = {MANIFEST: manifest, OBJECTIVE: repr(objective), PROTOCOL: protocol, **tags}
        for key, value in marks.items():
            client.set_model_version_tag(name, version.version, key, value)
        client.set_registered_model_alias(name, "candidate", version.version)
    if _beats_champion(tracker, name, version, objective, protocol):
        client.set_registered_model_alias(name, "champion", version.version)
    champion = _champion(tracker, name)
    is_champion = champion is not None and str(champion.version) == str(version.version)
    return Registered(
        name, str(version.version), f"models:/{name}/{version.version}", is_champion, is_new
    )


def _version_of(tracker: Tracker, name: str, manifest: str) -> ModelVersion | None:
    found = tracker.client.search_model_versions(f"name = '{name}'")
    return next((v for v in found if v.tags.get(MANIFEST) == manifest), None)


def _log_and_register(tracker: Tracker, name: str, folder: Path) -> ModelVersion:
    mlflow.set_tracking_uri(tracker.uri)
    with mlflow.start_run(run_id=tracker.run_id):
        model = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).parent / "served_model.py"),
            artifacts={"pipeline": str(folder)},
            pip_requirements=REQUIREMENTS,
        )
    # start_run ended the parent; it goes on until the study is written.
    tracker.client.update_run(tracker.run_id, status="RUNNING")
    return mlflow.register_model(model.model_uri, name)


def _champion(tracker: Tracker, name: str) -> ModelVersion | None:
    try:
        return tracker.client.get_model_version_by_alias(name, "champion")
    except MlflowException:
        return None


def _beats_champion(
    tracker: Tracker, name: str, version: ModelVersion, objective: float, protocol: str
) -> bool:
    champion = _champion(tracker, name)
    if champion is None:
        return True
    # Scores under different protocols can't be compared: the champion then stays.
    same = champion.tags.get(PROTOCOL) == protocol
    return same and objective > float(champion.tags.get(OBJECTIVE, "inf"))
