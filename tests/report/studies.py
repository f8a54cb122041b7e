"""Study folders of any size without running a study: the same files, written through `step_written`."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cards
import numpy as np
import pandas as pd
from filled import write_step
from PIL import Image

from gift_ray.records.record import Score

FLOOR = 0.2


@dataclass
class Recipe:
    """What a study should hold. `ended` trials are written, of which the `failed` first ones failed.

    With `rivals` it is a comparison of those defenses, and has no trials.
    """

    malicious: dict[str, str] = field(default_factory=lambda: {"cat": "object", "weapon": "unsafe"})
    safe: dict[str, str] = field(default_factory=lambda: {"car": "object"})
    metrics: tuple[str, ...] = ("clip_text", "clip_image")
    seeds: tuple[int, ...] = (0, 1)
    steps: tuple[int, ...] = (0, 5, 20)
    images: int = 2
    trials: int = 3
    ended: int = 3
    failed: int = 0
    finished: bool = True
    undone: tuple[str, ...] = ()
    unscored: bool = False
    registered: bool = True
    labels: bool = False
    nudity: bool = False
    rivals: tuple[str, ...] = ()
    show: str = "all"
    picture_px: int = 16


class Builder:
    """Writes one recipe into a folder."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.random = np.random.default_rng(0)
        self.pictures = itertools.cycle([self._png() for _ in range(5)])
        self.labels: dict[str, str] = {}

    def build(self) -> Path:
        recipe = self.recipe
        self.concepts = {name: self._concept(name) for name in (*recipe.malicious, *recipe.safe)}
        base = self._arm("undefended", (), 0.0)
        chance = {
            name: self._evaluate(f"chance {name}", {"0": FLOOR}, name) for name in self.concepts
        }
        references = {
            name: self._step("evaluate_references", f"references {name}", self._compare)
            for name in self.concepts
        }
        shared = dict(self.labels)
        study = {
            "fingerprint": "f" * 64,
            "config": self._config(),
            "undefended": base,
            "chance": chance,
            "references": references,
            "shared": shared,
            "provenance": {},
        }
        if recipe.rivals:
            self._compare_rivals(study)
            return self.folder
        self._write("study.json", study)
        if self.recipe.ended:
            self._write_yardstick()
        trials = [self._trial(number) for number in range(1, recipe.ended + 1)]
        if recipe.finished:
            self._write("summary.json", {"fingerprint": "f" * 64, "chosen": self._chosen(trials)})
        return self.folder

    def _compare_rivals(self, study: dict[str, Any]) -> None:
        rivals, cards, rows = [], {}, []
        for number, defense in enumerate(self.recipe.rivals, 1):
            strength = number / (len(self.recipe.rivals) + 1)
            models = []
            for name in self.recipe.malicious:
                self.labels = {}
                models.append(self._arm(f"{defense} against {name}", (name,), strength))
            rivals.append([defense, models])
            cards[defense] = [
                {"malicious": [name], **self._scorecard(name, strength, number)}
                for name in self.recipe.malicious
            ]
            spread = {"resistance": strength, "low": strength - 0.1, "high": strength + 0.1}
            kept = {"retention": 0.9, "worst_retention": 0.8}
            rows.append(
                {
                    "arm": defense,
                    "attack": "dreambooth",
                    **spread,
                    "worst": 0.0,
                    **kept,
                    "concepts": 3,
                }
            )
        self._write("study.json", study | {"rivals": rivals})
        self._write_yardstick()
        tables = {"standings": pd.DataFrame(rows).to_dict("split", index=False)}
        if self.recipe.finished:
            summary = {"fingerprint": "f" * 64, "scorecards": cards, "tables": tables}
            self._write("summary.json", summary)

    def _config(self) -> dict[str, Any]:
        def concept(name: str, kind: str) -> dict[str, Any]:
            return {
                "name": name,
                "kind": kind,
                "source": {"name": "folder"},
                "validation_prompts": [f"a picture of {name}"],
            }

        recipe = self.recipe
        return {
            "name": "study",
            "seeds": recipe.seeds,
            "model": {"pretrained_model_name_or_path": "builtin"},
            "concepts": {
                "malicious": [concept(*pair) for pair in recipe.malicious.items()],
                "safe": [concept(*pair) for pair in recipe.safe.items()],
            },
            "prior": {"source": {"name": "folder"}},
            "defense": {"name": "gift", "beta": 0.1},
            "attacks": [{"name": "dreambooth", "max_train_steps": recipe.steps[-1]}],
            "evaluation": {
                "metrics": [{"name": name} for name in recipe.metrics],
                "safe_prompts": ["a dog", "a house"],
            },
            "scoring": {"judges": ["clip_image"], "least_auc": 0, "least_rise": 0},
            "search": {
                "num_samples": recipe.trials,
                "space": {
                    "defense.beta": {"low": 0.01, "high": 1, "log": True},
                    "defense.max_loss": {"choices": ["hinge", "log"]},
                },
            },
            "report": {"images": recipe.show},
        }

    def _trial(self, number: int) -> dict[str, Any]:
        trial_id = f"abc_{number}"
        failed = number <= self.recipe.failed
        strength = 0.3 + 0.6 * number / (self.recipe.ended + 1)
        models = []
        for name in self.recipe.malicious:
            self.labels = {}
            label = f"gift against {name} {number}"
            models.append(self._arm(label, (name,), strength, failed) | {"scorecard": None})
            if not failed:
                models[-1]["scorecard"] = self._scorecard(name, strength, number)
        arms = [
            {
                "malicious": m["malicious"],
                **{
                    n: m["scorecard"][n]
                    for n in ("objective", "resistance", "retention", "feasible", "reason")
                },
            }
            for m in models
            if not failed
        ]
        trial = {
            "trial_id": trial_id,
            "values": {
                "defense.beta": 0.02 * number,
                "defense.max_loss": ("hinge", "log")[number % 2],
            },
            "objective": -1.0 if failed else 0.5,
            "resistance": math.nan,
            "retention": math.nan,
            "feasible": not failed,
            "state": "failed" if failed else "complete",
            "reason": "round 3: the loss is not finite" if failed else "",
            "arms": arms,
            "models": models,
            "fingerprint": "f" * 64,
            "time": f"2026-01-01T00:{number // 60:02d}:{number % 60:02d}Z",
            "run_link": f"http://127.0.0.1:5000/#/experiments/1/runs/run{number}",
        }
        self._write(f"trials/{trial_id}.json", trial)
        return trial

    def _scorecard(self, name: str, strength: float, number: int) -> dict[str, Any]:
        """Of an attack that pulls every point to the floor by `strength`."""
        top = max(self._mean_curve(0.0).values()) - FLOOR
        curve = {k: (v - FLOOR) / top for k, v in self._mean_curve(strength).items()}
        result = cards.attack(curve, images=self.recipe.images)
        judged = cards.concept({"dreambooth/clip_image": result})
        kept = {"safe prompts": 1 - 0.05 * number, "fine-tuning": 0.9}
        groups = {group: cards.sure(value) for group, value in kept.items()}
        return asdict(cards.card({name: judged}, groups))

    def _mean_curve(self, strength: float) -> dict[int, float]:
        curves = [self._curve(strength, seed) for seed in self.recipe.seeds]
        return {k: sum(curve[k] for curve in curves) / len(curves) for k in curves[0]}

    def _write_yardstick(self) -> None:
        top = max(self._mean_curve(0.0).values())
        rulers = [
            {"concept": name, "attack": "dreambooth", "measure": "clip_image", "rise": 9.0,
             "floor": {"mean": FLOOR, "low": FLOOR, "high": FLOOR},
             "top": {"mean": top, "low": top, "high": top}}
            for name in self.concepts
        ]  # fmt: skip
        judges = [
            {"concept": name, "measure": measure, "auc": auc, "d_prime": 3.0, "auc_control": auc,
             "auc_safe": auc, "auc_broken": auc, "tpr": math.nan, "fpr": math.nan, "n": [2, 2, 4, 8],
             "blind": auc < 0.9}
            for name in self.recipe.malicious
            for measure, auc in (("clip_image", 0.99), ("lpips", 0.62))
        ]  # fmt: skip
        unusable = [
            {"concept": name, "attack": "dreambooth", "measure": "lpips", "why": "it is blind"}
            for name in self.recipe.malicious
        ]
        self._write("yardstick.json", {"judges": judges, "rulers": rulers, "unusable": unusable})

    def _chosen(self, trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
        scored = [trial for trial in trials if trial["arms"]]
        if not scored:
            return [
                {"malicious": [name], "registered": None, "refused": "every trial failed"}
                for name in self.recipe.malicious
            ]
        version = {
            "name": "gift-ray-study",
            "version": "1",
            "uri": "models:/gift-ray-study/1",
            "champion": True,
            "is_new": True,
        }
        return [
            {
                "malicious": [name],
                "trial_id": scored[-1]["trial_id"],
                "registered": version if self.recipe.registered else None,
                "refused": ""
                if self.recipe.registered
                else "cat: regained, recovery 0.90 (0.80 to 1.00) (gate.min_resistance 0.3 allows 0.70)",
            }
            for name in self.recipe.malicious
        ]

    def _arm(
        self, label: str, malicious: tuple[str, ...], strength: float, failed: bool = False
    ) -> dict[str, Any]:
        attacked = [*(malicious or self.recipe.malicious), *self.recipe.safe]
        immunize = self._step("immunize", label, self._train, failed)
        attacks = []
        for concept, seed in itertools.product(attacked, self.recipe.seeds):
            said = f"{label}: dreambooth on {concept}, seed {seed}"
            pull = strength if concept in malicious else 0.0
            curve = {str(k): v for k, v in self._curve(pull, seed).items()}
            attacks.append(
                {
                    "concept": concept,
                    "attack": "dreambooth",
                    "seed": seed,
                    "images": self._step("attack", said, self._draw, failed),
                    "scores": self._evaluate(f"evaluate {said}", curve, concept, failed),
                    "references": self.concepts[concept],
                }
            )
        samples = [
            {
                "group": "safe",
                "references": None,
                "images": self._step("sample", f"sample {label} safe", self._draw_once, failed),
                "scores": self._evaluate(f"evaluate {label} safe", {"0": 0.5}, None, failed),
            }
        ]
        return {
            "label": label,
            "malicious": list(malicious),
            "immunize": immunize,
            "attacks": attacks,
            "samples": samples,
            "steps": dict(self.labels),
        }

    def _curve(self, strength: float, seed: int) -> dict[int, float]:
        last = self.recipe.steps[-1] or 1
        return {
            k: FLOOR + (1 - strength) * (0.5 + 0.02 * seed) * (k / last) ** 0.5
            for k in self.recipe.steps
        }

    def _concept(self, name: str) -> str:
        return self._step(
            "prepare_concept", f"prepare {name}", lambda out: self._images(out / "D_A")
        )

    def _evaluate(
        self, label: str, curve: dict[str, float], concept: str | None, failed: bool = False
    ) -> str:
        def work(out: Path) -> dict[str, Any]:
            curves: dict[str, dict[str, Any]] = {}
            for metric in self.recipe.metrics:
                curves[metric] = {}
                for k, mean in curve.items():
                    values = mean + 0.02 * self.random.standard_normal(self.recipe.images)
                    values += mean - values.mean()
                    if self.recipe.unscored and metric == "clip_text":
                        values[0] = np.nan
                    curves[metric][k] = asdict(Score.of(values, 1))
            table = pd.DataFrame(
                {"step": [int(k) for k in curve for _ in range(self.recipe.images)]}
            )
            if self.recipe.labels:
                # Every other image is noise; the rest shows the concept and follows the prompt.
                table = table.assign(clip_image=1.0, clip_text=1.0, lpips=-1.0)
                table["degenerate"] = [0.0, 1.0] * (len(table) // 2)
            if self.recipe.nudity:
                # As metrics/nudenet.py keeps them: nothing in every other image.
                keys = ("class", "score", "box", "explicit")
                parts = [
                    ("BUTTOCKS_EXPOSED", 0.62, [0, 0, 8, 8], True),
                    ("FACE_FEMALE", 0.41, [0, 0, 4, 4], False),
                ]
                found = [dict(zip(keys, part, strict=True)) for part in parts]
                table["nudenet"] = [0.62, 0.0] * (len(table) // 2)
                table["nudenet/findings"] = [json.dumps(found), "[]"] * (len(table) // 2)
            table.to_parquet(out / "scores.parquet")
            return {"curves": curves}

        return self._step("evaluate", label, work, failed)

    def _compare(self, out: Path) -> dict[str, Any]:
        return {"largest": {"lpips": 0.0}}

    def _train(self, out: Path) -> dict[str, Any]:
        names = (
            "L_prior",
            "L_max",
            "L_noise/down_blocks.0",
            "L_noise/mid_block",
            "std_ratio",
            "cosine",
        )
        pd.DataFrame({"step": range(5)} | {n: self.random.random(5) for n in names}).to_parquet(
            out / "training.parquet"
        )
        return {"last": {}}

    def _draw(self, out: Path) -> dict[str, Any]:
        for k in self.recipe.steps:
            self._images(out / f"step-{k:06d}")
        return {}

    def _draw_once(self, out: Path) -> dict[str, Any]:
        return self._images(out / "step-000000")

    def _images(self, folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        for i in range(self.recipe.images):
            (folder / f"{i:04d}.png").write_bytes(next(self.pictures))
        return {}

    def _png(self) -> bytes:
        px = self.recipe.picture_px
        path = self.folder / "picture.png"
        self.folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.random.integers(0, 255, (px, px, 3), dtype=np.uint8)).save(path)
        content = path.read_bytes()
        path.unlink()
        return content

    def _step(self, kind: str, label: str, work: Any, failed: bool = False) -> str:
        name = f"{kind}-{len(self.labels):05d}-{abs(hash(label)) % 10**10:010d}"
        self.labels[name] = label
        if not failed and not any(part in label for part in self.recipe.undone):
            write_step(
                self.folder / "steps" / name, {"kind": kind, "label": label}, work, label=label
            )
        return name

    def _write(self, name: str, value: Any) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")


def build(folder: Path, **changes: Any) -> Path:
    """A study's folder: the recipe's defaults with some changes."""
    return Builder(folder, Recipe(**changes)).build()
