"""What every tracker promises: what is told twice is kept once, and a job that failed may be told again."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_study

from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.errors import ModelError
from gift_ray.records.manifest import seal
from gift_ray.tracking.tracker import Tracker, open_tracker

pytestmark = pytest.mark.timeout(600)
CURVES = {"dreambooth/cat/dino": {0: 0.1, 10: 0.5}}


@pytest.fixture(scope="module", params=["none", "mlflow"])
def config(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory,
    tiny_config: ModelConfig,
) -> StudyConfig:  # fmt: skip
    return tiny_study(
        output_dir=str(tmp_path_factory.mktemp("runs")),
        model=tiny_config.model_dump(),
        tracking={"tracker": request.param},
    )


def told(tracker: Tracker) -> str:
    """A whole study, as a job tells it."""
    tracker.undefended(CURVES, [])
    place = tracker.trial("t1", {"defense.beta": 0.3}, {"objective": 0.5}, CURVES, {"reason": ""})
    tracker.summary({"best/cat/objective": 0.5}, {"gate": "1 of 1 passed"}, [])
    return place


def test_a_study_that_continues_tells_the_same_again(config: StudyConfig) -> None:
    places = []
    for _ in range(2):
        with open_tracker(config, "f1") as tracker:
            places.append(told(tracker))
    assert places[0] == places[1]
    assert (places[0] == "") == (tracker.how_to_look() == "")


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_job_died_of_is_what_is_seen(
    config: StudyConfig, error: type[BaseException]
) -> None:
    with pytest.raises(error), open_tracker(config, "f1"):
        raise error
    with open_tracker(config, "f1") as tracker:
        told(tracker)


def test_a_released_folder_is_one_version_and_a_damaged_one_is_refused(
    config: StudyConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "released"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights")
    with open_tracker(config, "f1") as tracker:
        seal(folder)
        (folder / "weights.bin").write_bytes(b"others")
        with pytest.raises(ModelError):
            tracker.register("a-model", folder, 0.5, "protocol", {})
