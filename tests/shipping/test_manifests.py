"""What ships for clusters: valid for those who read it, closed to strangers, of one mind with the code."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

from gift_ray.cluster import ENVIRONMENT
from gift_ray.cluster.local import require_uploadable
from gift_ray.errors import ConfigError
from gift_ray.study.load import load_study

ROOT = Path(__file__).parents[2]
SCHEMA = yaml.safe_load((Path(__file__).parent / "rayjob.schema.yaml").read_text())


@pytest.fixture
def rayjob() -> dict[str, Any]:
    _, job = yaml.safe_load_all((ROOT / "configs/cluster/rayjob.yaml").read_text())
    return job


def test_the_rayjob_is_what_kuberay_takes(rayjob: dict[str, Any]) -> None:
    jsonschema.validate(rayjob, SCHEMA)
    rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 4
    with pytest.raises(jsonschema.ValidationError, match="replica"):
        jsonschema.validate(rayjob, SCHEMA)


def test_the_rayjob_asks_for_a_token_and_runs_this_ray(rayjob: dict[str, Any]) -> None:
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")


def test_every_pod_of_the_rayjob_mounts_what_the_job_writes_to(rayjob: dict[str, Any]) -> None:
    claim, _ = yaml.safe_load_all((ROOT / "configs/cluster/rayjob.yaml").read_text())
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        volumes = {v["name"]: v for v in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
        assert mounts["/shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"


def test_the_rayjob_names_a_job_and_a_study_that_exist(
    rayjob: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    python, job, config, *overrides = shlex.split(rayjob["spec"]["entrypoint"])
    assert python == "python"
    assert (ROOT / job).exists()
    # The study itself; its base model, and so its tokenizer, lies on a hub.
    monkeypatch.setattr("gift_ray.study.load.check_base", lambda model: None)
    monkeypatch.setattr("gift_ray.study.load.check_prompts", lambda config: None)
    monkeypatch.setattr("gift_ray.study.load.locate_encoder", lambda role, name: None)
    study = load_study(ROOT / config, overrides)
    assert study.output_dir == "/shared/runs"


def test_the_aws_cluster_is_what_ray_up_takes() -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    cluster = yaml.safe_load((ROOT / "configs/cluster/aws.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert "~/.ray/auth_token" in cluster["file_mounts"]
    (start,) = [c for c in cluster["head_start_ray_commands"] if "--head" in c]
    assert "--dashboard-host=127.0.0.1" in start


def test_the_image_tells_ray_what_our_own_clusters_tell_it() -> None:
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    (settings,) = [line for line in lines if line.startswith("ENV ")]
    told = dict(part.split("=", 1) for part in settings.split()[1:])
    assert told["RAY_AUTH_MODE"] == "token"
    assert {name: told[name] for name in told.keys() & ENVIRONMENT.keys()} == {
        name: ENVIRONMENT[name] for name in told.keys() & ENVIRONMENT.keys()
    }
    assert "RAY_idle_worker_killing_time_threshold_ms" in told


def test_a_folder_too_large_for_ray_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "kept.bin").write_bytes(b"x")
    require_uploadable(tmp_path, limit=5000)
    with pytest.raises(ConfigError, match=r"\.rayignore.*weights\.bin"):
        require_uploadable(tmp_path, limit=500)
    # Ray's own rules say what is packed.
    (tmp_path / ".rayignore").write_text("weights.bin\n")
    require_uploadable(tmp_path, limit=500)


def test_this_repository_can_be_sent() -> None:
    require_uploadable(ROOT)
