"""Writing a study's models for use elsewhere: a diffusers folder, a delta of the base, an attack's adapter.

The weights of attacks are not kept, so an adapter is trained again from its step, to the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from gift_ray.errors import ConfigError
from gift_ray.models.backbone import Backbone
from gift_ray.models.checkpoints import save_delta
from gift_ray.models.families import base_model
from gift_ray.records.record import is_done
from gift_ray.records.whole import written_whole
from gift_ray.study.execute import verified_inputs
from gift_ray.study.journal import Journal
from gift_ray.study.plan import Arm, Plan
from gift_ray.study.step import Step
from gift_ray.study.steps.attack_model import AttackModel

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
        plan: of the study, whose steps are done.
        concept: the malicious concept whose model is meant.
        form: `diffusers` a folder for `from_pretrained`; `delta` a safetensors of the changed tensors,
            bound to its base; `lora` a folder for `load_lora_weights`; `kohya` one file for web UIs.
        path: the file or folder to write.
        attack: which attack's adapter; `diffusers` and `delta` don't read it.
        seed: of the attack; `diffusers` and `delta` don't read it.

    Raises:
        ConfigError: the study has no such concept, attack or seed; the model isn't immunized yet; the
            attack trains no adapter; something is at `path` already.
    """
    arm = _arm_against(plan, concept)
    adapter = _attack_of(arm, concept, attack, seed) if form in ("lora", "kohya") else None
    _require_done(plan, arm.immunize, *(adapter.inputs.values() if adapter else ()))
    if path.exists():
        raise ConfigError(f"--to: {path} is there already; give another place")
    base = base_model(plan.config.model)
    if adapter:
        model = attacked(plan, adapter)
    else:
        model = base.with_weights(_folder(plan, arm.immunize) / "unet.safetensors")
    _write(base, model, form, path)


def attacked(plan: Plan, step: AttackModel) -> Backbone:
    """The model at the end of an attack step, trained again as the step trained it.

    Raises:
        ConfigError: the attack trains no adapter.
    """
    inputs = verified_inputs(step, plan.config.study_dir)
    *_, (_, model) = step.finetune(inputs, _Forgetful(every=1))
    if not model.has_adapter:
        raise ConfigError(f"--attack: {step.attack.name} trains no adapter; give lora")
    return model


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


def _write(base: Backbone, model: Backbone, form: Format, path: Path) -> None:
    with written_whole(path) as private:
        write = {
            "diffusers": lambda: model.save_pretrained(private),
            "delta": lambda: save_delta(base, model, private),
            "lora": lambda: model.save_lora(private),
            "kohya": lambda: model.save_lora_kohya(private),
        }
        write[form]()
