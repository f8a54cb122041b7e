"""The registry on a real MLflow server, SQLite behind it: one version of one content whoever races, a
champion that only a better verdict takes, and a model that is served."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE
from PIL import Image
from pyarrow.fs import FileSelector, FileSystem
from s3 import start_s3
from tiny import make_pipeline, tiny_study

from gift_ray.cli.command import main
from gift_ray.config.running import TrackingConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ClusterFailed, ModelError
from gift_ray.records.manifest import seal, verify
from gift_ray.tracking.mlflow_tracker import MlflowTracker
from gift_ray.tracking.registry import register, registered

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# A driver: waits for the other ones, registers a folder as often as it is told, prints what came of it.
DRIVER = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from gift_ray.config.running import TrackingConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.tracking.registry import register
from gift_ray.tracking.mlflow_tracker import MlflowTracker
config, gate, jobs = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
tracker = MlflowTracker(StudyConfig.model_validate(config), sys.argv[4])
gate.with_name(f"ready-{sys.argv[4]}").touch()
while not gate.exists():
    time.sleep(0.01)
print(json.dumps([asdict(register(tracker, n, Path(f), o, "protocol", {})) for n, f, o in jobs]))
"""


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def serving(command: list[str], url: str) -> Iterator[None]:
    """A server of this environment until the block ends, with every process that it starts."""
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    bin_dir = str(Path(sys.executable).parent)
    environment["PATH"] = f"{bin_dir}:{environment['PATH']}"
    server = subprocess.Popen(
        [f"{bin_dir}/mlflow", *command], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not answers(url):
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)
        yield
    finally:
        # It is given no time to finish: whatever it still did is of no interest to anyone.
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def tracking_server(folder: Path, artifacts: str) -> Iterator[str]:
    port = free_port()
    command = [
        "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", artifacts,
    ]  # fmt: skip
    with serving(command, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with tracking_server(folder, str(folder / "artifacts")) as started:
        yield started


@pytest.fixture(scope="module")
def config(server: str, tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    return tiny_study(
        name="tracked",
        output_dir=str(tmp_path_factory.mktemp("runs")),
        defense={"name": "none"},
        tracking={"tracking_uri": server},
    )


@pytest.fixture(scope="module")
def tracker(config: StudyConfig) -> MlflowTracker:
    return MlflowTracker(config, "f1")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four released models."""
    made = [tmp_path_factory.mktemp("released") / str(seed) for seed in range(4)]
    for seed, folder in enumerate(made):
        make_pipeline(folder, seed=seed)
        (folder / "README.md").write_text("A card.")
        seal(folder)
    return made


@pytest.fixture
def race(config: StudyConfig, tmp_path: Path) -> Callable[..., list[list[dict]]]:
    """Drivers in processes of their own, let go at the same moment; what each one was told."""

    def start(*jobs: list[tuple[str, Path, float]]) -> list[list[dict]]:
        gate = tmp_path / "go"

        def drive(item: tuple[int, list]) -> list[dict]:
            number, wanted = item
            texts = [config.model_dump_json(), str(gate), json.dumps(wanted, default=str)]
            command = [sys.executable, "-c", DRIVER, *texts, f"driver{number}"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(done.stdout.splitlines()[-1])

        def let_go() -> None:
            while len(list(tmp_path.glob("ready-*"))) < len(jobs):
                time.sleep(0.01)
            gate.touch()

        with ThreadPoolExecutor(len(jobs) + 1) as pool:
            pool.submit(let_go)
            return list(pool.map(drive, enumerate(jobs)))

    return start


def versions(client: MlflowClient, name: str) -> dict[str, str]:
    """version -> objective."""
    found = client.search_model_versions(f"name = '{name}'")
    return {str(v.version): v.tags["gift_ray.objective"] for v in found}


def champion(client: MlflowClient, name: str) -> str:
    return str(client.get_model_version_by_alias(name, "champion").version)


def test_the_same_model_is_registered_once(tracker: MlflowTracker, folders: list[Path]) -> None:
    one = register(tracker, "once", folders[0], 0.5, "protocol", {"concepts": "cat"})
    two = register(tracker, "once", folders[0], 0.5, "protocol", {"concepts": "cat"})
    assert (one.version, one.is_new, one.champion) == ("1", True, True)
    assert (two.version, two.is_new, two.champion) == ("1", False, True)
    version = tracker.client.get_model_version("once", "1")
    assert version.tags["concepts"] == "cat"
    assert version.run_id == tracker.run_id


def test_only_a_better_model_under_the_same_protocol_becomes_champion(
    tracker: MlflowTracker, folders: list[Path]
) -> None:
    register(tracker, "better", folders[0], 0.5, "protocol", {})
    assert not register(tracker, "better", folders[1], 0.4, "protocol", {}).champion
    assert not register(tracker, "better", folders[2], 0.9, "another protocol", {}).champion
    assert register(tracker, "better", folders[3], 0.6, "protocol", {}).champion
    candidate = tracker.client.get_model_version_by_alias("better", "candidate")
    assert str(candidate.version) == "4"


def test_what_is_registered_is_listed_with_scores_and_aliases(
    server: str, tracker: MlflowTracker, folders: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, score in ((folders[0], 0.5), (folders[1], 0.4)):
        tags = {"concepts": "cat", "recovery_high": f"{score:.4f}"}
        register(tracker, "listed", folder, score, "protocol", tags)
    rows = [row for row in registered(server) if row["model"] == "listed"]
    assert [(r["version"], r["aliases"], r["recovery_high"]) for r in rows] == [
        ("2", "candidate", "0.4000"),
        ("1", "champion", "0.5000"),
    ]
    assert main(["models", "--tracking-uri", server]) == 0
    assert "listed" in capsys.readouterr().out


def test_a_champion_that_a_person_chose_is_not_passed_over_for_an_old_one(
    tracker: MlflowTracker, folders: list[Path]
) -> None:
    register(tracker, "rollback", folders[0], 0.5, "protocol", {})
    register(tracker, "rollback", folders[1], 0.9, "protocol", {})
    tracker.client.set_registered_model_alias("rollback", "champion", "1")
    assert not register(tracker, "rollback", folders[2], 0.4, "protocol", {}).champion
    assert not register(tracker, "rollback", folders[1], 0.9, "protocol", {}).champion
    assert champion(tracker.client, "rollback") == "1"


def test_a_server_that_fails_is_not_one_without_a_champion(
    tracker: MlflowTracker, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(tracker, "kept", folders[0], 0.9, "protocol", {})

    def busy(*_: object) -> None:
        raise MlflowException("busy", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as patch:
        patch.setattr(tracker.client, "get_model_version_by_alias", busy)
        with pytest.raises(ClusterFailed, match="busy"):
            register(tracker, "kept", folders[1], 0.4, "protocol", {})
    assert champion(tracker.client, "kept") == "1"


def test_drivers_that_race_make_one_version_and_the_best_model_is_champion(
    tracker: MlflowTracker, folders: list[Path], race: Callable[..., list[list[dict]]]
) -> None:
    # Both register the same model, then each a model of its own: the worse may come last.
    told = race(
        [("same", folders[0], 0.5), ("rivals", folders[1], 0.6)],
        [("same", folders[0], 0.5), ("rivals", folders[2], 0.7)],
    )
    assert len({driver[0]["version"] for driver in told}) == 1
    assert sum(driver[0]["is_new"] for driver in told) == 1
    assert len(versions(tracker.client, "same")) == 1
    assert champion(tracker.client, "same") == told[0][0]["version"]
    rivals = versions(tracker.client, "rivals")
    assert sorted(rivals.values()) == ["0.6", "0.7"]
    assert rivals[champion(tracker.client, "rivals")] == "0.7"


def test_a_folder_that_was_changed_is_not_registered(
    tracker: MlflowTracker, tmp_path: Path
) -> None:
    make_pipeline(tmp_path / "model")
    seal(tmp_path / "model")
    (tmp_path / "model" / "unet" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"unet/config\.json: changed"):
        register(tracker, "changed", tmp_path / "model", 0.5, "protocol", {})


def test_a_registered_model_is_served_and_answers_a_prompt_with_a_png(
    server: str, tracker: MlflowTracker, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = register(tracker, "served", folders[0], 0.5, "protocol", {})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    port = free_port()
    command = ["models", "serve", "--model-uri", registered.uri, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]  # fmt: skip
    with serving(command, f"http://127.0.0.1:{port}/health"):
        body = {"inputs": ["an emoji of a dog"], "params": {"num_inference_steps": 2, "seed": 3}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as answer:
            (encoded,) = json.load(answer)["predictions"]
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert (image.format, image.size) == ("PNG", (16, 16))


def test_models_and_artifacts_may_lie_in_a_bucket(
    config: StudyConfig, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with start_s3() as url:
        store = urlsplit(url)
        place = parse_qs(store.query)["endpoint_override"][0]
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{place}")
        with tracking_server(tmp_path, f"s3://{store.netloc}/mlflow") as server:
            own = config.model_copy(update={"tracking": TrackingConfig(tracking_uri=server)})
            found = register(MlflowTracker(own, "f2"), "stored", folders[0], 0.5, "protocol", {})
            mlflow.set_tracking_uri(server)
            loaded = Path(mlflow.artifacts.download_artifacts(found.uri, dst_path=str(tmp_path)))
        filesystem, root = FileSystem.from_uri(url.replace("/runs?", "/mlflow?"))
        stored = filesystem.get_file_info(FileSelector(root, recursive=True))
    (manifest,) = loaded.glob("**/manifest.json")
    assert verify(manifest.parent) == verify(folders[0])
    assert any(info.base_name == "diffusion_pytorch_model.safetensors" for info in stored)
