"""Writing a study's models for use elsewhere: a diffusers folder, a delta of the base, an attack's adapter.

The weights of attacks are not kept, so an adapter is trained again as its step trained it, and is refused if
it does not draw the images that the step drew. Every export is read back before it is handed over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from gift_ray.config.schema import ModelConfig
from gift_ray.data.examples import load_images
from gift_ray.errors import ConfigError, ModelError
from gift_ray.models.adapters import require_same as require_same_adapter
from gift_ray.models.backbone import Backbone
from gift_ray.models.checkpoints import save_delta, with_checkpoint
from gift_ray.models.families import base_model, load_backbone
from gift_ray.models.parts import require_same_parts
from gift_ray.models.weights import require_equal
from gift_ray.records.record import is_done
from gift_ray.records.whole import written_whole
from gift_ray.study.drawing import draw, repeated
from gift_ray.study.execute import verified_inputs
from gift_ray.study.journal import Journal
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.step import Step
from gift_ray.study.steps.attack_model import AttackModel

# The largest mean difference of two images (of values up to 255) that other hardware of the same kind may
# cause by rounding.
MAX_DIFFERENCE = 2.0
Format = Literal["diffusers", "delta", "lora", "kohya"]


class _Forgetful(Journal):
    """Keeps no checkpoint: an adapter's training is short, and ends with its file."""

    def write(self, step: int, checkpoint: dict[str, Any]) -> None:
        pass

    def read(self) -> None:
        return None


def export(plan: Plan, concept: str, form: Format, path: Path, *, attack: str, seed: int) -> None:
    """Write one model of a study, or the adapter that an attack makes of it, to `path`.

    Args:
        plan: the plan of the study, whose steps must be done.
        concept: the malicious concept against which the model is immunized.
        form: `diffusers`, a folder for `from_pretrained`; `delta`, a safetensors file of the changed tensors,
            bound to its base; `lora`, a folder for `load_lora_weights`; `kohya`, one file for web UIs.
        path: the file or folder to write.
        attack: the attack whose adapter is wanted; `diffusers` and `delta` don't read it.
        seed: the seed of that attack; `diffusers` and `delta` don't read it.

    Raises:
        ConfigError: the study has no such concept, attack or seed; the model isn't immunized yet; the
            attack trains no adapter; `path` exists already.
    """
    arm = _arm_against(plan, concept)
    adapter = _attack_of(arm, concept, attack, seed) if form in ("lora", "kohya") else None
    _require_done(plan, arm.immunize, *(adapter.inputs.values() if adapter else ()))
    if path.exists():
        raise ConfigError(f"--to: {path} is there already; give another place")
    if form in ("delta", "kohya") and path.suffix != ".safetensors":
        raise ConfigError(f"--to: {path}: a {form} is one file; let its name end in .safetensors")
    base = base_model(plan.config.model)
    released = base.with_weights(_folder(plan, arm.immunize) / "unet.safetensors")
    model = attacked(plan, adapter) if adapter else released
    _write(base, released, model, form, path)


def attacked(plan: Plan, step: AttackModel) -> Backbone:
    """The model at the end of an attack step, trained again and checked to draw what the step drew.

    Raises:
        ConfigError: the attack trains no adapter.
        ModelError: the model draws other images than the study recorded.
    """
    inputs = verified_inputs(step, plan.config.study_dir)
    *_, (_, model) = step.finetune(inputs, _Forgetful(every=1))
    if not model.has_adapter:
        raise ConfigError(
            f"--attack: {step.attack.identity()['name']} trains no adapter; give lora"
        )
    folder = _folder(plan, step)
    if is_done(folder):
        _require_as_recorded(step, model, folder)
    return model


def _require_as_recorded(step: AttackModel, model: Backbone, folder: Path) -> None:
    """Compare what the model draws with the images of the step's last evaluation."""
    last = sorted(folder.glob("step-*"))[-1]
    recorded = load_images(last)
    drawn = draw(model, repeated(step.prompts, step.evaluation), step.evaluation, step.seed)
    differences = [
        np.abs(np.asarray(a, dtype=float) - np.asarray(b, dtype=float)).mean()
        for a, b in zip(recorded, drawn, strict=True)
    ]
    if max(differences) > MAX_DIFFERENCE:
        raise ModelError(
            f"{folder}: the adapter, trained again, draws other images than the study recorded (by "
            f"{max(differences):.1f} of 255; at most {MAX_DIFFERENCE:g} is allowed): another device or other "
            "versions of libraries; export it where the study ran"
        )


def _arm_against(plan: Plan, concept: str) -> Arm:
    found = next((arm for arm in plan.defended if concept in arm.malicious), None)
    if found is None:
        names = ", ".join(name for arm in plan.defended for name in arm.malicious)
        raise ConfigError(f"--concept: no malicious concept {concept!r}; the study's: {names}")
    return found


def _attack_of(arm: Arm, concept: str, attack: str, seed: int) -> AttackModel:
    key = (concept, attack, seed)
    if key not in arm.attacks:
        known = ", ".join(f"{name} with seed {s}" for c, name, s in arm.attacks if c == concept)
        raise ConfigError(
            f"--attack: no {attack} with seed {seed} on {concept!r}; there are: {known}"
        )
    step = arm.attacks[key].inputs["images"]
    assert isinstance(step, AttackModel)
    return step


def _folder(plan: Plan, step: Step) -> Path:
    return step.folder(plan.config.study_dir)


def _require_done(plan: Plan, *steps: Step) -> None:
    missing = [step.label for step in steps if not is_done(_folder(plan, step))]
    if missing:
        raise ConfigError(
            f"{plan.config.study_dir}: not computed yet with these settings: {'; '.join(missing)}; run "
            "the study first, or give the overrides that it was run with"
        )


def _write(base: Backbone, released: Backbone, model: Backbone, form: Format, path: Path) -> None:
    """`model` is `released`, or `released` with an attack's adapter."""
    with written_whole(path) as private:
        write = {
            "diffusers": lambda: model.save_pretrained(private),
            "delta": lambda: save_delta(base, model, private),
            "lora": lambda: model.save_lora(private),
            "kohya": lambda: model.save_lora_kohya(private),
        }
        write[form]()
        # The file is read as its users will read it, before it is handed over.
        if form == "diffusers":
            read = load_backbone(ModelConfig(pretrained_model_name_or_path=str(private)))
            require_same_parts(model, read, origin=str(path))
            require_equal(model.weights(), read.weights(), origin=str(path))
        elif form == "delta":
            read = with_checkpoint(base, str(private))
            require_equal(model.weights(), read.weights(), origin=str(path))
        else:
            read = released.load_lora(private)
            require_same_adapter(model.denoiser, read.denoiser, origin=str(path))
