"""The settings of where a study runs and where it is tracked. None of them changes a result."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, Field, model_validator

from gift_ray.config.part import Part, Positive


def _object_store(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(
            "is not an object store: give s3://bucket/folder, or leave it out and give output_dir a folder "
            "that all nodes mount"
        )
    if "@" in parts.netloc:
        raise ValueError(
            "holds a key, which every log would show; give it to the nodes' environment, as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


class ClusterConfig(Part):
    """The resources that each unit asks of the cluster, and how it is run.

    These settings are no part of a step's identity, since they do not change its result.
    """

    cpus_per_unit: float = Field(1, gt=0)
    gpus_per_unit: float = Field(0, ge=0)
    under_train: tuple[Literal["immunize", "attack"], ...] = ("immunize", "attack")
    workers_per_immunization: Positive = Field(
        1,
        description="workers that train one model together, each on a share of every batch and with the "
        "resources of a unit; they run under Ray Train",
    )
    max_failures: int = Field(2, ge=0)
    checkpoint_every: Positive = Field(100, description="training steps between checkpoints")
    storage_path: Annotated[str, AfterValidator(_object_store)] | None = Field(
        None,
        description="object store for finished steps, if the nodes share no disk: s3://bucket/folder",
    )

    @model_validator(mode="after")
    def _workers_are_under_train(self) -> ClusterConfig:
        if self.workers_per_immunization > 1 and "immunize" not in self.under_train:
            raise ValueError(
                f"workers_per_immunization is {self.workers_per_immunization}, and only Ray Train runs "
                "several: add immunize to cluster.under_train"
            )
        return self


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password or "password" in parse_qs(parts.query):
        raise ValueError(
            "holds a password, which every record and log would show; give it to MLflow alone, in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a database: as PGPASSWORD)"
        )
    return uri


class TrackingConfig(Part):
    """Where runs and released models are kept besides the study's folder: in `mlflow`, or nowhere (`none`).

    Without a `tracking_uri` MLflow keeps them in an SQLite file inside the study's folder.
    """

    tracker: Literal["mlflow", "none"] = "mlflow"
    tracking_uri: Annotated[str, AfterValidator(_without_password)] | None = None
    experiment_name: str | None = Field(None, description="of MLflow; None: the study's name")
    registered_model_name: str | None = Field(
        None, description="of the released models; None: gift-ray-<study>"
    )
