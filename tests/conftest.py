"""Fixtures that every test may use: a tiny random Stable Diffusion, and sets of examples for it."""

from __future__ import annotations

import os

# Read when the libraries are imported, so set before anything of ours is.
os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    MLFLOW_DISABLE_TELEMETRY="true",
)

from pathlib import Path

import pytest
import torch
from killed import KilledJournal
from tiny import make_examples, make_pipeline

from gift_ray.config.schema import ModelConfig
from gift_ray.models.families import base_model
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of a random model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_pipeline(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_folder: Path) -> ModelConfig:
    return ModelConfig(pretrained_model_name_or_path=str(tiny_folder))


@pytest.fixture(scope="session")
def tiny_model(tiny_config: ModelConfig) -> StableDiffusion:
    """Shared by all tests: nobody may change it, and the contracts check that nobody does."""
    return base_model(tiny_config)


@pytest.fixture(scope="session")
def malicious() -> Examples:
    """D_M or D_A: three images."""
    return make_examples(3, seed=1)


@pytest.fixture(scope="session")
def safe() -> Examples:
    """D_S: four images."""
    return make_examples(4, seed=2)


@pytest.fixture
def journal(tmp_path: Path) -> LocalJournal:
    """A report that is never asked to store anything."""
    return LocalJournal(tmp_path / "journal.safetensors", every=10**6)


@pytest.fixture
def killed_journal(tmp_path: Path) -> KilledJournal:
    return KilledJournal(tmp_path / "killed.safetensors", every=1)
