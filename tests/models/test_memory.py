"""Memory: what a training holds at once is what its arithmetic says, counted in tensors that are alive; the
options that save some leave results as they are, or say what they change."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killed import KilledJournal
from PIL import Image
from tiny import make_klein, make_pipeline, make_sdxl, same_weights, tiny_study
from torch import Tensor
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from gift_ray import plugins
from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ConfigError
from gift_ray.models import families
from gift_ray.models.architecture import architecture
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import base_model, load_backbone, released_model
from gift_ray.study import presets
from gift_ray.study.journal import LocalJournal
from gift_ray.study.memory import needed
from gift_ray.study.presets import check_preset, with_preset
from gift_ray.study.suited import check_base
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.loop import Level
from gift_ray.training.optimizers import state_bytes

MAKERS: dict[str, Callable[[Path], Any]] = {
    "sd": make_pipeline, "sdxl": make_sdxl, "klein": make_klein,
}  # fmt: skip
SEEDS = Seeds(3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("memory") / name for name in MAKERS}
    for name, folder in made.items():
        MAKERS[name](folder)
    return made


def config_of(folder: Path, **options: Any) -> ModelConfig:
    return ModelConfig(pretrained_model_name_or_path=str(folder), resolution=16, **options)


def encoded(model: Backbone) -> Examples:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(2)]
    return model.encode(images, ["an sks", "a cat"], ["0", "1"])


def alive() -> dict[int, int]:
    """The bytes of every storage that some tensor uses now, by its address."""
    found = {}
    for item in gc.get_objects():
        if type(item) in (Tensor, torch.nn.Parameter):
            storage = item.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            if item.grad is not None:
                storage = item.grad.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


@contextmanager
def counting() -> Iterator[list[int]]:
    """The bytes of new tensors around each step of an optimizer: gradients are there, activations no more."""
    gc.collect()
    before, most = alive(), []

    def count(*_: Any) -> None:
        most.append(sum(size for place, size in alive().items() if place not in before))

    def counted(model: Backbone, base: Backbone) -> Backbone:
        merged = merge(model, base)
        count()
        return merged

    # What GIFT of low rank does at its end.
    merge, Backbone.with_adapter_in_weights = Backbone.with_adapter_in_weights, counted  # type: ignore[method-assign]
    handles = [register_optimizer_step_pre_hook(count), register_optimizer_step_post_hook(count)]
    try:
        yield most
    finally:
        Backbone.with_adapter_in_weights = merge  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()


TRAININGS = [
    ("attacks", "dreambooth", {}),
    ("attacks", "dreambooth", {"optimizer": "adamw_8bit"}),
    ("attacks", "full_finetune", {"optimizer": "sgd"}),
    ("attacks", "lora", {"rank": 8}),
    ("attacks", "lora", {"rank": 8, "target_modules": ["blocks"], "optimizer": "adamw_8bit"}),
    ("defenses", "gift", {}),
    ("defenses", "gift", {"coordination": "joint", "optimizer": "adamw_8bit"}),
    ("defenses", "gift", {"path": 0.5}),
    ("defenses", "gift", {"rank": 8}),
    ("defenses", "gift", {"rank": 8, "path": 0.5, "optimizer": "adamw_8bit"}),
    ("defenses", "esd", {"num_inference_steps": 2}),
    ("defenses", "imma", {}),
    ("defenses", "imma", {"inner_attack": "lora"}),
    ("defenses", "post_immunization", {"prompt": None}),
    ("defenses", "look_ahead", {"attack_steps": 1, "max_train_steps": 6}),
    ("defenses", "sophon", {"attack_steps": 1, "inner_steps": 1}),
]


@pytest.mark.parametrize("family", ["sdxl", "klein"])
@pytest.mark.parametrize(("kind", "name", "options"), TRAININGS)
def test_what_a_training_holds_is_what_is_counted(
    kind: str, name: str, options: dict[str, Any], family: str, folders: dict[str, Path],
    journal: LocalJournal,
) -> None:  # fmt: skip
    model = load_backbone(config_of(folders[family]))
    examples = encoded(model)
    cls = plugins.resolve(kind, name)
    short = {"max_train_steps": 4, "train_batch_size": 2}
    plugin = cls(**{n: v for n, v in (short | options).items() if n in cls.model_fields})
    base = architecture(config_of(folders[family]))
    assert base.weights == sum(t.nbytes for t in model.weights().values())
    with counting() as most:
        if kind == "attacks":
            for _ in plugin.finetune(model, examples, seeds=SEEDS, report=journal):
                pass
        else:
            plugin.immunize(model, [examples], examples, seeds=SEEDS, report=journal)
    told = plugin.footprint(base).total
    # Beside it: latents, conditioning, noise statistics, the quantization maps of 8 bits.
    beside = 0.06 * told + 60_000
    assert max(most) <= told + beside, (max(most), told)
    assert max(most) >= 0.9 * told - 10_000, (max(most), told)


def test_the_state_of_each_optimizer_is_what_is_counted() -> None:
    shapes = [(128, 64), (4096,), (4095,), (3, 5), (100, 77)]
    for name in ("adamw", "sgd", "adamw_8bit"):
        parameters = {str(i): torch.nn.Parameter(torch.randn(s)) for i, s in enumerate(shapes)}
        level = Level(parameters, optimizer=name, learning_rate=1e-3)
        level.step([torch.randn_like(p) for p in parameters.values()])
        held = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for state in level.optimizer.state.values()
            for key, t in state.items()
            if isinstance(t, Tensor) and not key.startswith("qmap")
        }
        assert sum(held.values()) == state_bytes(name, [p.numel() for p in parameters.values()])


def test_adamw_of_8_bits_goes_where_adamw_goes_and_continues_from_a_checkpoint(
    folders: dict[str, Path], journal: LocalJournal, killed_journal: KilledJournal, tmp_path: Path
) -> None:
    model = load_backbone(config_of(folders["sd"]))
    examples = encoded(model)

    def trained(optimizer: str, report: LocalJournal) -> dict[str, Tensor]:
        attack = plugins.build(
            "attacks", "full_finetune",
            {"optimizer": optimizer, "max_train_steps": 6, "train_batch_size": 2, "learning_rate": 1e-3},
        )  # fmt: skip
        *_, (_, last) = attack.finetune(model, examples, seeds=SEEDS, report=report)
        return {name: tensor.clone() for name, tensor in last.weights().items()}

    before = model.weights()
    full, eighth = trained("adamw", journal), trained("adamw_8bit", journal)
    moved = [
        torch.cat([(after[n] - before[n]).flatten() for n in before]) for after in (full, eighth)
    ]
    assert torch.nn.functional.cosine_similarity(*moved, dim=0) > 0.95
    assert not same_weights(full, eighth)

    path = tmp_path / "halfway.safetensors"
    with pytest.raises(SystemExit):
        trained("adamw_8bit", Leaving(path, after=3))
    assert same_weights(trained("adamw_8bit", LocalJournal(path, every=100)), eighth)


class Leaving(LocalJournal):
    """Saves after some steps, and ends."""

    def __init__(self, path: Path, after: int) -> None:
        super().__init__(path, every=100)
        self.after = after

    def due(self, step: int) -> bool:
        self.leaving = lambda: step >= self.after
        return super().due(step)


def test_without_bitsandbytes_a_study_is_refused_in_one_line(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"pretrained_model_name_or_path": str(folders["sd"])}
    config = tiny_study(model=model, defense={"name": "gift", "optimizer": "adamw_8bit"})
    check_base(config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises((ConfigError, families.ModelError)) as refused:
        check_base(config)
    (line,) = refused.value.mistakes
    assert line.startswith("defense: optimizer: adamw_8bit needs bitsandbytes")


@pytest.mark.parametrize("family", list(MAKERS))
def test_prompts_that_are_read_apart_draw_the_same_pictures(
    family: str, folders: dict[str, Path]
) -> None:
    model = load_backbone(config_of(folders[family]))
    apart = load_backbone(config_of(folders[family], low_memory=True))
    assert apart.text_on_cpu
    assert not model.text_on_cpu

    def drawn(one: Backbone) -> np.ndarray:
        pictures = one.generate(
            ["a cat", "a dog", "a cat"], seeds=SEEDS, num_inference_steps=2, guidance_scale=3.0,
            batch_size=2,
        )  # fmt: skip
        return np.stack([np.asarray(picture) for picture in pictures]).astype(int)

    # The pipeline is given no prompt to read.
    asked = apart._asked(["a cat", "a dog"])
    assert "prompt" not in asked
    assert all(len(tensor) == 2 for tensor in asked.values())
    assert np.abs(drawn(apart) - drawn(model)).max() <= 1


def test_a_released_model_takes_the_place_of_the_base(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    changed = load_backbone(config_of(folders["sd"])).clone()
    with torch.no_grad():
        next(iter(changed.parameters("all").values())).add_(0.1)
    changed.save_weights(tmp_path / "w.safetensors")
    lean, plain = config_of(folders["sd"], low_memory=True), config_of(folders["sd"])
    for config, kept in ((plain, 1), (lean, 0)):
        base_model.cache_clear()
        base_model(config)
        released = released_model(config, tmp_path / "w.safetensors")
        assert same_weights(dict(released.weights()), dict(changed.weights()))
        assert base_model.cache_info().currsize == kept
        assert not any(p.requires_grad for p in released.denoiser.parameters())


@pytest.mark.parametrize("family", ["sdxl", "klein"])
def test_gift_of_low_rank_changes_the_blocks_by_matrices_of_that_rank(
    family: str, folders: dict[str, Path], journal: LocalJournal
) -> None:
    model = load_backbone(config_of(folders[family]))
    examples = encoded(model)
    before = {name: tensor.clone() for name, tensor in model.weights().items()}
    options = {
        "rank": 2, "max_train_steps": 4, "train_batch_size": 2, "alpha_inner": 1e-2, "alpha_outer": 1e-2,
        "path": 0.5,
    }  # fmt: skip
    gift = plugins.build("defenses", "gift", options)
    released = gift.immunize(model, [examples], examples, seeds=SEEDS, report=journal)
    assert same_weights(dict(model.weights()), before)
    assert not released.has_adapter
    deltas = {
        n: t - before[n] for n, t in released.weights().items() if not torch.equal(t, before[n])
    }
    assert deltas
    for name, delta in deltas.items():
        assert torch.linalg.matrix_rank(delta.flatten(1), rtol=1e-4) <= 2, name
    assert any(released.in_group(name.split("."), "cross_attention") for name in deltas)
    assert not any(name.startswith(("conv_in", "time_embedding", "x_embedder")) for name in deltas)


def test_on_the_way_to_the_base_an_adapter_shrinks_to_nothing(folders: dict[str, Path]) -> None:
    from gift_ray.training.path import on_the_way

    model = load_backbone(config_of(folders["sd"]))
    adapted = model.with_lora(
        rank=2,
        lora_alpha=2,
        lora_dropout=0.0,
        target_modules=["blocks"],
        generator=SEEDS.generator("a"),
    )
    with torch.no_grad():
        for name, parameter in adapted.adapter().items():
            if ".lora_B." in name:
                parameter.normal_()
    noise, times = model.draw(2, SEEDS.generator("n"))
    conditioning = model.condition(["a cat", "a dog"])
    # The same point, by the weights themselves.
    released = adapted.with_adapter_in_weights(model)
    with torch.no_grad(), on_the_way(adapted, model, 0.4), on_the_way(released, model, 0.4):
        one, other = (m.predict(noise, conditioning, times) for m in (adapted, released))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_preset_sets_what_saves_memory_and_leaves_what_is_given(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_study(
        model={"pretrained_model_name_or_path": str(folders["sdxl"]), "preset": "24gb",
               "mixed_precision": "fp16"},
        attacks=[{"name": "lora", "rank": 4}, {"name": "dreambooth", "optimizer": "sgd"}],
    )  # fmt: skip
    lean = with_preset(config)
    assert lean.model.low_memory
    assert lean.model.gradient_checkpointing
    assert lean.model.mixed_precision == "fp16"
    assert (lean.defense.options["rank"], lean.defense.options["optimizer"]) == (16, "adamw_8bit")
    lora, dreambooth = lean.attacks
    assert (lora.options["rank"], lora.options["optimizer"]) == (4, "adamw_8bit")
    assert dreambooth.options["optimizer"] == "sgd"
    check_preset(lean)
    # A GPU on which the largest training has no room.
    largest, *others = needed(lean)
    monkeypatch.setitem(presets.GIGABYTES, "24gb", (largest.total - 1) / 10**9)
    with pytest.raises(ConfigError) as refused:
        check_preset(lean)
    (line,) = refused.value.mistakes
    assert line.startswith(f"model.preset: 24gb does not hold {largest.title}: ")
    assert len(others) == 2


def test_a_study_is_told_what_each_option_saves(folders: dict[str, Path]) -> None:
    def largest(attack: dict[str, Any], **model: Any) -> int:
        config = tiny_study(
            model={"pretrained_model_name_or_path": str(folders["sdxl"]), **model}, attacks=[attack],
            defense={"name": "none"},
        )  # fmt: skip
        (found,) = [each for each in needed(config) if each.title.startswith("attacks")]
        return found.total

    base = architecture(config_of(folders["sdxl"]))
    full = largest({"name": "dreambooth"})
    sizes = base.sizes("all")
    # Base, released and attacked model, gradients, two moments and a step count for each tensor.
    assert full == 6 * base.weights + 4 * len(sizes) + base.vae + base.text
    lean = largest({"name": "dreambooth"}, low_memory=True)
    assert full - lean == base.weights + base.text
    eighth = largest({"name": "dreambooth", "optimizer": "adamw_8bit"})
    assert full - eighth == state_bytes("adamw", sizes) - state_bytes("adamw_8bit", sizes)
    adapter = sum(base.adapter_sizes(("attention",), 4))
    tensors = len(base.adapter_sizes(("attention",), 4))
    assert largest({"name": "lora", "rank": 4}, low_memory=True) == (
        base.weights + base.vae + 16 * adapter + 4 * tensors
    )
