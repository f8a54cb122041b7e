"""The product as a user runs it: `ray job submit -- python jobs/sweep.py`, on a real local Ray, with real
images, the built-in model, MLflow and its registry."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from diffusers import DiffusionPipeline
from mlflow import MlflowClient
from PIL import Image

from gift_ray.cli.command import main

ROOT = Path(__file__).parents[2]
# The demo, shrunk: one model against both concepts, few steps, every kind of unit still there.
SMALL = [
    "concepts.mode=joint",
    "concepts.malicious.0.source.num_images=7",
    "concepts.malicious.0.source.num_inference_steps=8",
    "concepts.malicious.0.attack_source.num_images=7",
    "concepts.malicious.0.attack_source.num_inference_steps=8",
    "concepts.malicious.1.source.num_images=4",
    "concepts.malicious.1.attack_source.num_images=4",
    "concepts.safe.0.source.num_images=8",
    "search.num_samples=2",
    "defense.max_train_steps=6",
    "attacks.0.learning_rate=2e-4",
    "attacks.0.max_train_steps=10",
    "attacks.0.num_evaluations=3",
    "evaluation.num_images_per_prompt=2",
    "evaluation.num_inference_steps=8",
    "prior.source.words=[apple, bus, camera, house, lion, shoe]",
    "prior.source.images_per_word=2",
    "prior.source.num_inference_steps=8",
    "scoring.min_retention=0",
    "scoring.least_auc=0",
    "scoring.least_rise=0",
    "gate.min_resistance=0",
    "gate.min_retention=0",
]

HELD_OUT = (
    "confirm={seeds: [5], attacks: [{name: dreambooth, learning_rate: 3e-4, max_train_steps: 10, "
    "train_batch_size: 4, num_evaluations: 3}]}"
)


def sweep(output: Path, *extra: str, submit: bool = False) -> subprocess.CompletedProcess[str]:
    prefix = ["jobs/submit.py"] if submit else []
    command = [sys.executable, *prefix, "jobs/sweep.py", "configs/demo.yaml", *SMALL]
    command += [f"output_dir={output}", *extra]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("runs")
    done = sweep(output, submit=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return output / "demo", done


@pytest.mark.slow
@pytest.mark.timeout(900)
class TestSweep:
    def test_summary_tells_the_whole_study(self, finished):
        study, _ = finished
        summary = json.loads((study / "summary.json").read_text())
        assert len(summary["trials"]) == 2
        assert set(summary["undefended"]) == {f"{c}/dreambooth/0" for c in ("cat", "weapon", "car")}
        (model,) = summary["chosen"]
        searched = {"defense.alpha_inner", "defense.alpha_outer", "defense.retreat"}
        assert set(model["values"]) == searched
        assert model["registered"]["name"] == "gift-ray-demo"
        assert model["registered"]["version"] == "1"
        assert set(model["scorecard"]["concepts"]) == {"cat", "weapon"}
        assert set(summary["concepts"]) == {"cat", "weapon"}
        for found in summary["concepts"].values():
            # All is allowed here, so that nothing is shown.
            assert found["verdict"] == "not shown"
            assert found["needed"] == {}
            assert (
                found["recovery"]["low"] <= found["recovery"]["mean"] <= found["recovery"]["high"]
            )
        judged = {(row["concept"], row["measure"]) for row in summary["judges"]}
        assert ("cat", "recognition-resnet") in judged

    def test_output_shows_the_leaderboard_and_where_to_look(self, finished):
        _, done = finished
        for word in (
            "leaderboard",
            "resistance",
            "AUC",
            "models:/gift-ray-demo/1",
            "mlflow ui",
            "summary.json",
            "report.html",
        ):
            assert word in done.stdout

    def test_the_command_shows_the_study(self, finished, capsys):
        study, _ = finished
        assert main(["show", str(study)]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "leaderboard" in text
        assert "models:/gift-ray-demo/1" in text

    def test_report_shows_every_trial_and_its_run(self, finished):
        study, _ = finished
        html = (study / "report.html").read_text()
        client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "demo"]
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        for run in runs:
            assert (f"runs/{run.info.run_id}" in html) == (run is not parent)
        assert "This study is not finished" not in html
        assert "report.html" in [f.path for f in client.list_artifacts(parent.info.run_id)]

    def test_every_trial_is_a_finished_run_under_the_study(self, finished):
        study, _ = finished
        client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "demo"]
        runs = client.search_runs([experiment.experiment_id])
        (parent,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
        children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(children) == 2
        assert {r.info.status for r in runs} == {"FINISHED"}
        for child in children:
            curve = client.get_metric_history(child.info.run_id, "dreambooth/cat/clip_image")
            assert min(p.step for p in curve) == 0
            assert len(curve) == 3
            assert "defense.retreat" in child.data.params
            assert len(client.list_artifacts(child.info.run_id, "images")) > 0
        assert client.get_metric_history(parent.info.run_id, "dreambooth/cat/clip_image")

    def test_registered_model_loads_in_plain_diffusers_and_draws(self, finished):
        study, _ = finished
        summary = json.loads((study / "summary.json").read_text())
        folder = summary["chosen"][0]["folder"]
        pipeline = DiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        assert pipeline("an emoji of a dog", num_inference_steps=2).images[0].size == (32, 32)

    def test_registered_model_loads_from_the_registry_and_gives_pngs(self, finished):
        study, _ = finished
        mlflow.set_tracking_uri(f"sqlite:///{study / 'mlflow.db'}")
        model = mlflow.pyfunc.load_model("models:/gift-ray-demo@champion")
        (encoded,) = model.predict(["an emoji of a dog"])
        image = Image.open(io.BytesIO(base64.b64decode(encoded)))
        assert (image.format, image.size) == ("PNG", (32, 32))

    def test_running_again_computes_and_registers_nothing(self, finished):
        study, _ = finished
        before = {p: p.stat().st_mtime_ns for p in (study / "steps").rglob("record.json")}
        again = sweep(study.parent)
        assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
        assert {p: p.stat().st_mtime_ns for p in (study / "steps").rglob("record.json")} == before
        client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
        assert len(client.search_model_versions("name = 'gift-ray-demo'")) == 1

    def test_the_released_folder_is_scored_as_the_defense_was(self, finished):
        study, _ = finished
        (chosen,) = json.loads((study / "summary.json").read_text())["chosen"]
        command = [sys.executable, "jobs/attack.py", "configs/demo.yaml", *SMALL]
        command += [f"output_dir={study.parent}", "--model", chosen["folder"]]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        (path,) = study.glob("attack-*.json")
        assert json.loads(path.read_text())["scorecard"] == chosen["scorecard"]
        assert "Standings" in (path.with_suffix("") / "report.html").read_text()

    def test_unseen_attacks_decide_at_the_gate_which_refuses_with_exit_3_and_the_reason(
        self, finished
    ):
        study, _ = finished
        trained = {p: p.stat().st_mtime_ns for p in study.glob("steps/immunize-*/record.json")}
        refused = sweep(study.parent, "gate.min_resistance=1", "gate.min_retention=1", HELD_OUT)
        assert refused.returncode == 3, refused.stdout[-2000:] + refused.stderr[-2000:]
        assert "gate.min_resistance 1.0 allows 0.00" in refused.stderr
        assert "by dreambooth/recognition" in refused.stderr
        # The weights that were found are confirmed: nothing is searched or trained again.
        again = {p: p.stat().st_mtime_ns for p in study.glob("steps/immunize-*/record.json")}
        assert again == trained
        (model,) = json.loads((study / "summary.json").read_text())["chosen"]
        bias = model["objective"] - model["confirmed"]["objective"]
        assert model["selection_bias"]["objective"] == pytest.approx(bias)
        client = MlflowClient(f"sqlite:///{study / 'mlflow.db'}")
        (experiment,) = [e for e in client.search_experiments() if e.name == "demo"]
        # A model's metrics are named by its concepts; what MLflow can't spell is told apart by a hash.
        runs = client.search_runs([experiment.experiment_id])
        confirmed = [
            value
            for run in runs
            for name, value in run.data.metrics.items()
            if name.startswith("confirmed/weapon_ cat") and name.endswith("/objective")
        ]
        assert confirmed == [pytest.approx(model["confirmed"]["objective"])]
        assert any(n.startswith("selection_bias/weapon_ cat") for r in runs for n in r.data.metrics)
