"""The numbers behind the page: intervals, fronts, recoveries, what is missing; and the files for papers."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from studies import FLOOR, build

from gift_ray.report.collect import collect
from gift_ray.report.curves import RECOVERY, averaged
from gift_ray.report.heat_map import cross
from gift_ray.report.page import write_report
from gift_ray.report.pictures import CELL_PX, GAP_PX, HEADER_PX, LABEL_PX

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("runs") / "study")


@pytest.fixture(scope="module")
def papers(folder: Path) -> Path:
    write_report(folder)
    return folder / "report"


def curve(values: list[np.ndarray]) -> pd.DataFrame:
    """One point of a curve, for each seed the scores of its images."""
    return pd.DataFrame(
        [
            {"arm": "a", "concept": "c", "attack": "x", "seed": seed, "metric": "m", "step": 0,
             "mean": v.mean(), "stderr": v.std(ddof=1) / len(v) ** 0.5, "n": len(v), "unscored": 0,
             "direction": 1}
            for seed, v in enumerate(values)
        ]
    )  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 3])
def test_interval_is_students_over_seeds_or_over_the_images_of_one(seeds: int) -> None:
    values = [np.random.default_rng(i).random(5) for i in range(seeds)]
    sample = np.array([v.mean() for v in values]) if seeds > 1 else values[0]
    low, high = stats.t.interval(0.95, len(sample) - 1, sample.mean(), stats.sem(sample))
    (row,) = averaged(curve(values)).to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert (row["seeds"], row["n"]) == (seeds, 5 * seeds)


def test_recovery_is_where_a_curve_lies_between_the_floor_and_the_undefended_best(
    folder: Path,
) -> None:
    study = collect(folder)
    found = study.recoveries["abc_3/cat", "cat", "dreambooth"]
    # The recipe's third trial pulls every point to the floor by 0.3 + 0.6 * 3 / 4.
    assert found.worst_recovery == pytest.approx(0.25)
    assert study.recoveries["undefended", "cat", "dreambooth"].worst_recovery == pytest.approx(1)
    assert study.ruler.levels["cat", "dreambooth", "clip_image"][0] == pytest.approx(FLOOR)
    table = averaged(study.curves, study.arms)
    recovered = table[table["metric"] == RECOVERY + "clip_image"]
    assert recovered["mean"].between(0, 1).all()


def test_the_bands_of_recovery_are_the_bounds_of_the_verdict(folder: Path) -> None:
    study = collect(folder)
    table = averaged(study.curves, study.arms)
    row = table[
        (table["arm"] == "abc_3/cat") & (table["concept"] == "cat") & (table["step"] == 20)
        & (table["metric"] == RECOVERY + "clip_image")
    ].iloc[0]  # fmt: skip
    assert (row["low"], row["high"]) == pytest.approx((0.2, 0.3))


def test_blind_measures_are_shown_and_told_as_unusable(folder: Path) -> None:
    study = collect(folder)
    table = study.ruler.table().set_index(["concept", "measure"])
    assert table["verdict"]["cat", "lpips"] == "blind: no part of a verdict"
    assert table["verdict"]["cat", "clip_image"] == "reads"
    assert ("unusable", "cat, dreambooth, lpips") in [(p.kind, p.what) for p in study.problems]


def test_verdict_is_the_scorecard_of_the_chosen_trial(folder: Path) -> None:
    cat, weapon = collect(folder).cards
    assert (cat.status, cat.trial_id, cat.images) == ("registered", "abc_3", 2)
    assert cat.verdict == "resists"
    assert cat.recovery["mean"] == pytest.approx(0.25)
    assert cat.retention == pytest.approx((0.85 + 0.9) / 2)
    assert weapon.kind == "unsafe"


def test_what_was_not_attacked_is_not_measured(folder: Path) -> None:
    table, _ = cross(collect(folder))
    assert table.shape == (3, 2)
    assert math.isnan(table.loc["cat"].iloc[1])
    assert table.loc["cat"].iloc[0] == pytest.approx(0.25)
    assert table.loc["car"].iloc[0] == pytest.approx(1, abs=0.02)


def test_trials_of_another_configuration_are_not_shown(folder: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "study", ended=2, trials=2)
    old = other / "trials" / "abc_1.json"
    old.write_text(old.read_text().replace("f" * 64, "e" * 64))
    assert [trial["trial_id"] for trial in collect(other).trials] == ["abc_2"]


def test_figures_and_tables_for_papers(papers: Path) -> None:
    made = {path.name for path in papers.iterdir()}
    for name in ("curves", "curves-safe", "plane", "cross", "training"):
        assert {f"{name}.png", f"{name}.svg"} <= made
    for name in ("judges", "verdicts", "attacks", "trials", "retention", "cost"):
        assert {f"{name}.csv", f"{name}.tex"} <= made
    table = pd.read_csv(papers / "curves.csv")
    assert len(table[table["metric"] == "clip_image"]) == 3 * (3 + 3 * 4)
    moving = next(papers.glob("attack-cat-*-dreambooth.webp"))
    with Image.open(moving) as animation:
        assert animation.n_frames == 3
    # Rows: undefended, chosen, real images; columns: the steps.
    strip = Image.open(moving.with_suffix(".png"))
    assert strip.size == (LABEL_PX + 3 * (CELL_PX + GAP_PX), 2 * HEADER_PX + 3 * (CELL_PX + GAP_PX))


def test_unsafe_images_for_papers_are_blurred_for_good(papers: Path) -> None:
    # Noise keeps its contrast unless it is blurred.
    cat, weapon = (next(papers.glob(f"attack-{name}-*.png")) for name in ("cat", "weapon"))
    sharp, blurred = (np.asarray(Image.open(path))[50:130, 200:280].std() for path in (cat, weapon))
    assert blurred < sharp / 2


def test_job_says_in_one_line_what_is_no_study(tmp_path: Path) -> None:
    command = [sys.executable, "jobs/report.py", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {tmp_path}: no study.json; give a study's folder, as runs/demo\n"


def test_images_are_labelled_where_the_study_measures_what_labels_need(tmp_path: Path) -> None:
    labelled = collect(build(tmp_path / "labelled", labels=True)).labels
    shares = labelled.groupby("label")["images"].sum()
    assert set(shares.index) == {"recovered", "degraded"}
    assert shares["recovered"] == shares["degraded"] > 0
    assert collect(build(tmp_path / "plain")).labels.empty


def test_detections_are_counted_at_every_threshold(tmp_path: Path) -> None:
    folder = build(tmp_path / "study", nudity=True, trials=1, ended=1)
    table = collect(folder).detections
    own = table[(table["arm"] == "undefended") & (table["concept"] == "weapon")]
    count = own.set_index(["part", "threshold"])["detections"]
    # Two seeds; one image of two shows something.
    assert set(own["images"]) == {4}
    assert [count["all explicit parts", t] for t in (0.25, 0.6, 0.65)] == [2, 2, 0]
    assert [count["FACE_FEMALE", t] for t in (0.4, 0.45)] == [2, 0]
    write_report(folder)
    assert {"nudity.csv", "nudity.tex"} <= {path.name for path in (folder / "report").iterdir()}
