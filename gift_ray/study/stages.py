"""What happens to a study's models and images, stage by stage: prepare, immunize, attack, sample,
evaluate. Each stage reads the folders of earlier ones, fills its own folder and returns a small JSON
result. No Ray, no MLflow, no knowledge of who runs it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file

from gift_ray import plugins
from gift_ray.config.schema import (
    ConceptConfig,
    EvaluationConfig,
    MergeConfig,
    ModelConfig,
    PluginConfig,
    PriorConfig,
)
from gift_ray.data import examples
from gift_ray.errors import DataError
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import base_model
from gift_ray.models.merge import merge_weights
from gift_ray.plugins import MetricContext
from gift_ray.records.record import Score, load_state, save_state
from gift_ray.training.diffusion import Examples, Seeds

Inputs = Mapping[str, Path]
# Hashes are of the original pixels: the size that a check resizes to does not matter.
CHECK_PX = 8
IMMA_PX = 64
# What sources that don't generate are handed when there is no model yet.
NO_MODEL = cast(Backbone, None)


class Journal(ABC):
    """The Report of a long stage: diagnostics, and checkpoints that carry everything so far.

    Diagnostics and kept results travel inside the checkpoint, so that a stage that continues has the
    same log and the same images as one that was never stopped. `leaving` says whether the process was
    asked to end: then the stage saves at its next step, due or not, and ends.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.rows: list[dict[str, float]] = []
        self.kept: dict[str, torch.Tensor] = {}
        self.leaving: Callable[[], bool] = lambda: False

    def log(self, step: int, **values: float) -> None:
        self.rows.append({"step": step, **values})

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Keep a small result, by name, for the end of the stage."""
        self.kept[name] = tensor

    def save(self, step: int, state: dict[str, Any]) -> None:
        leaving = self.leaving()
        if leaving or step % self.every == 0:
            self.write(step, {"state": state, "kept": self.kept, "rows": self.rows})
        if leaving:
            raise SystemExit(f"asked to end; step {step} is saved")

    def load(self) -> dict[str, Any] | None:
        try:
            saved = self.read()
        except DataError:
            # A damaged checkpoint is worth nothing: begin again rather than trust a part of it.
            return None
        if saved is None:
            return None
        self.kept, self.rows = saved.get("kept", {}), saved.get("rows", [])
        return saved["state"]

    @abstractmethod
    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        """Store a checkpoint."""

    @abstractmethod
    def read(self) -> dict[str, Any] | None:
        """The latest stored checkpoint, or None.

        Raises:
            DataError: it is damaged.
        """


class LocalJournal(Journal):
    """Checkpoints in one file, replaced atomically."""

    def __init__(self, path: Path, every: int) -> None:
        super().__init__(every)
        self.path = path

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        save_state(self.path, checkpoint)

    def read(self) -> dict[str, Any] | None:
        return load_state(self.path) if self.path.exists() else None


def prepare_concept(
    concept: ConceptConfig, model: ModelConfig, seed: int, inputs: Inputs, out: Path
) -> dict[str, Any]:
    """Read a concept's images, split them into disjoint D_M and D_A, and encode both sides."""
    # Everything is read, and refused if need be, before anything is written.
    base = base_model(model)
    images = read_source(concept.source, base, Seeds(seed), "source")
    if concept.attack_source is None:
        d_m, d_a = examples.split(images, seed, concept.max_images, concept.name)
    else:
        d_m = images[: concept.max_images]
        d_a = read_source(concept.attack_source, base, Seeds(seed), "attack_source")
        d_a = d_a[: concept.max_images]
        examples.require_distinct(d_m, d_a, concept.name)

    # The defender captions with the class, the attacker with a rare token: neither knows the other.
    for name, side, prompt in (
        ("D_M", d_m, concept.class_prompt),
        ("D_A", d_a, concept.instance_prompt),
    ):
        pictures = [item.image for item in side]
        captions = [prompt or item.caption for item in side]
        examples.save_images(out / name, pictures)
        examples.save_examples(
            out / f"{name}.safetensors",
            base.encode(pictures, captions, [item.key for item in side]),
        )
    return {"D_M": [i.origin for i in d_m], "D_A": [i.origin for i in d_a]}


def check_concept(concept: ConceptConfig, seed: int) -> None:
    """Read and split a concept's images without a model and without writing anything.

    Sources that generate need the model, and are left to `prepare_concept`.

    Raises:
        DataError: unreadable, too few, or the same image on both sides.
    """
    sides = [concept.source, *([concept.attack_source] if concept.attack_source else [])]
    built = [plugins.build("sources", side.name, side.options) for side in sides]
    if any(source.uses_model() for source in built):
        return
    images = [examples.keyed(source.images(NO_MODEL, Seeds(seed)), CHECK_PX) for source in built]
    if len(images) == 1:
        examples.split(images[0], seed, concept.max_images, concept.name)
    else:
        examples.require_distinct(images[0], images[1], concept.name)


def check_prior(prior: PriorConfig, seed: int) -> None:
    """Read D_S without a model and without writing anything, unless the model generates it.

    Raises:
        DataError: unreadable.
    """
    source = plugins.build("sources", prior.source.name, prior.source.options)
    if not source.uses_model():
        source.images(NO_MODEL, Seeds(seed))


def prepare_prior(
    prior: PriorConfig, model: ModelConfig, seed: int, inputs: Inputs, out: Path
) -> dict[str, Any]:
    """Read or generate D_S, and encode it."""
    base = base_model(model)
    images = read_source(prior.source, base, Seeds(seed), "prior")
    pictures = [item.image for item in images]
    examples.save_images(out / "D_S", pictures)
    captions, keys = [i.caption for i in images], [i.key for i in images]
    examples.save_examples(out / "D_S.safetensors", base.encode(pictures, captions, keys))
    return {"D_S": len(images)}


def read_source(
    source: PluginConfig, base: Backbone, seeds: Seeds, purpose: str
) -> list[examples.KeyedImage]:
    """All images of a source, hashed and resized for the model."""
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    return examples.keyed(plugin.images(base, Seeds(_offset(seeds, purpose))), base.resolution)


def immunize(
    defense: PluginConfig, concepts: Sequence[str], model: ModelConfig, seed: int,
    inputs: Inputs, out: Path, journal: Journal,
) -> dict[str, Any]:  # fmt: skip
    """Train the defense on D_M of all given concepts and D_S; leaves unet.safetensors."""
    immunized = immunized_model(defense, concepts, model, seed, inputs, journal)
    immunized.save_weights(out / "unet.safetensors")
    _save_log(out, journal)
    return {"last": journal.rows[-1] if journal.rows else {}}


def immunized_model(
    defense: PluginConfig, concepts: Sequence[str], model: ModelConfig, seed: int,
    inputs: Inputs, journal: Journal,
) -> Backbone:  # fmt: skip
    """The training itself, of the base or of the weights that are among the inputs as `model`. All
    data-parallel workers do it; one of them keeps the result."""
    plugin: plugins.Defense = plugins.build("defenses", defense.name, defense.options)
    d_m, d_s = _defenders_data(concepts, inputs)
    given = base_model(model)
    if "model" in inputs:
        given = given.with_weights(inputs["model"] / "unet.safetensors")
    seeds = Seeds(_offset(Seeds(seed), "immunize"))
    return plugin.immunize(given, d_m, d_s, seeds=seeds, report=journal)


def merge(
    merge: MergeConfig, concepts: Sequence[str], model: ModelConfig, inputs: Inputs, out: Path
) -> dict[str, Any]:
    """Merge the models that were immunized against one concept each; leaves unet.safetensors."""
    d_m, d_s = _defenders_data(concepts, inputs)
    base = base_model(model)
    weights, values = merge_weights(
        {name: tensor.cpu() for name, tensor in base.weights().items()},
        (load_file(inputs[f"model/{name}"] / "unet.safetensors") for name in concepts),
        d_m, d_s, list(base.parameters("cross_attention_kv")), merge,
    )  # fmt: skip
    merged = base.clone()
    merged.load_weights(weights, origin="merge")
    merged.save_weights(out / "unet.safetensors")
    pd.DataFrame([{"step": 0, **values}]).to_parquet(out / "training.parquet")
    return {"last": values}


def _defenders_data(concepts: Sequence[str], inputs: Inputs) -> tuple[list[Examples], Examples]:
    """D_M of each concept, and D_S."""
    d_m = [
        examples.load_examples(inputs[f"concept/{name}"] / "D_M.safetensors") for name in concepts
    ]
    return d_m, examples.load_examples(inputs["prior"] / "D_S.safetensors")


def attack(
    attack: PluginConfig, prompts: Sequence[str], evaluation: EvaluationConfig, model: ModelConfig,
    seed: int, inputs: Inputs, out: Path, journal: Journal,
) -> dict[str, Any]:  # fmt: skip
    """Fine-tune the released weights on D_A; draw images along the way, never storing weights."""
    plugin: plugins.Attack = plugins.build("attacks", attack.name, attack.options)
    released = base_model(model).with_weights(inputs["model"] / "unet.safetensors")
    d_a = examples.load_examples(inputs["concept"] / "D_A.safetensors")
    seeds = attack_seeds(seed)
    asked = [p for p in prompts for _ in range(evaluation.num_images_per_prompt)]
    for step, attacked in plugin.finetune(released, d_a, seeds=seeds, report=journal):
        # The same noise at every step and for every arm: differences are the weights' alone.
        images = draw(attacked, asked, evaluation, seed)
        journal.keep(f"{step:06d}", torch.from_numpy(np.stack([np.asarray(i) for i in images])))
    for name, tensor in journal.kept.items():
        examples.save_images(out / f"step-{name}", [Image.fromarray(a) for a in tensor.numpy()])
    _save_log(out, journal)
    return {"steps": [int(name) for name in journal.kept], "prompts": asked}


def attack_seeds(seed: int) -> Seeds:
    """What an attack draws from."""
    return Seeds(_offset(Seeds(seed), "attack"))


def sample(
    prompts: Sequence[str], evaluation: EvaluationConfig, model: ModelConfig, seed: int,
    inputs: Inputs, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Draw images from released weights as they are: what users get before any fine-tuning."""
    released = base_model(model).with_weights(inputs["model"] / "unet.safetensors")
    asked = [p for p in prompts for _ in range(evaluation.num_images_per_prompt)]
    examples.save_images(out / "step-000000", draw(released, asked, evaluation, seed))
    return {"steps": [0], "prompts": asked}


def evaluate(
    evaluation: EvaluationConfig, asked: Sequence[str], inputs: Inputs, out: Path
) -> dict[str, Any]:
    """Measure all images of an attack or a sample: scores.parquet (one row an image), and curves.

    `asked` are the prompts that each step's images are held against. References are the concept's
    D_A; without a concept among the inputs only metrics that need none are measured, and set metrics
    only where `base`, the base's images of the same prompts, is among them.
    """
    references = images_of(inputs.get("concept"), "D_A", evaluation)
    base_images = images_of(inputs.get("base"), "step-000000", evaluation)
    context = MetricContext(tuple(asked), tuple(references), evaluation.encoders.model_dump())
    metrics, set_metrics = _metrics(evaluation)
    usable = {n: m for n, m in metrics.items() if references or not m.needs_references}
    usable_sets = set_metrics if base_images else {}

    tables = []
    curves: dict[str, dict[str, Any]] = {}
    for folder in sorted(inputs["images"].glob("step-*")):
        step = int(folder.name.removeprefix("step-"))
        images = images_of(inputs["images"], folder.name, evaluation)
        table = pd.DataFrame({"step": step, "index": range(len(images)), "prompt": list(asked)})
        for name, metric in usable.items():
            values, findings = metric.examine(images, context)
            table[name] = np.asarray(values, dtype=np.float64)
            if findings is not None:
                table[f"{name}/findings"] = findings
            score = Score.of(table[name].to_numpy(), metric.direction)
            curves.setdefault(name, {})[str(step)] = asdict(score)
        for name, set_metric in usable_sets.items():
            value, error = set_metric.compare(images, base_images, context)
            score = Score.of_set(value, error, len(images), set_metric.direction)
            curves.setdefault(name, {})[str(step)] = asdict(score)
        tables.append(table)
    pd.concat(tables, ignore_index=True).to_parquet(out / "scores.parquet")
    return {"curves": curves}


def evaluate_references(evaluation: EvaluationConfig, inputs: Inputs, out: Path) -> dict[str, Any]:
    """How alike different real images are: each image of D_A measured against all the others.

    The largest of a metric is what an attacked image must pass to be called a copy.
    """
    images = images_of(inputs["concept"], "D_A", evaluation)
    names = evaluation.encoders.model_dump()
    metrics = {n: m for n, m in _metrics(evaluation)[0].items() if m.needs_references}
    table = pd.DataFrame({"index": range(len(images))})
    for name, metric in metrics.items():
        others = [tuple(images[:i] + images[i + 1 :]) for i in range(len(images))]
        table[name] = [
            float(metric.measure([image], MetricContext(("",), rest, names))[0]) if rest else np.nan
            for image, rest in zip(images, others, strict=True)
        ]
    table.to_parquet(out / "scores.parquet")
    return {"largest": {name: float(table[name].max()) for name in metrics}}


def images_of(step: Path | None, folder: str, evaluation: EvaluationConfig) -> list[Image.Image]:
    """A step's saved images as the protocol sees them; none of a step that isn't there."""
    images = examples.load_images(step / folder) if step else []
    if evaluation.protocol == "standard":
        return images
    # IMMA's eval.py: torchvision's Resize with antialiasing, which is PIL's bilinear filter.
    return [i.resize((IMMA_PX, IMMA_PX), Image.Resampling.BILINEAR) for i in images]


def _metrics(
    evaluation: EvaluationConfig,
) -> tuple[dict[str, plugins.Metric], dict[str, plugins.SetMetric]]:
    """The metrics by name: those of single images, and those of whole sets."""
    built = {m.name: plugins.build("metrics", m.name, m.options) for m in evaluation.metrics}
    return (
        {name: m for name, m in built.items() if isinstance(m, plugins.Metric)},
        {name: m for name, m in built.items() if isinstance(m, plugins.SetMetric)},
    )


def draw(
    model: Backbone, prompts: Sequence[str], evaluation: EvaluationConfig, seed: int
) -> list[Image.Image]:
    """One image per prompt, under the evaluation's settings."""
    return model.generate(
        prompts,
        seeds=Seeds(_offset(Seeds(seed), "evaluation")),
        num_inference_steps=evaluation.num_inference_steps,
        guidance_scale=evaluation.guidance_scale,
        batch_size=evaluation.batch_size,
    )


def _offset(seeds: Seeds, purpose: str) -> int:
    """A seed of its own for each purpose, so that no two stages share a random stream."""
    return seeds.generator(purpose).initial_seed()


def _save_log(out: Path, journal: Journal) -> None:
    pd.DataFrame(journal.rows or {"step": []}).to_parquet(out / "training.parquet")
