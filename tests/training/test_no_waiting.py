"""A step of a training reads nothing that was computed with the model: on a GPU it would wait for it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import available, build, resolve
from gift_ray.study.journal import LocalJournal
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.loop import READ_EVERY

SHORT: dict[str, Any] = {
    "max_train_steps": 12, "train_batch_size": 2, "num_images": 2, "num_inference_steps": 3,
    "attack_steps": 2, "num_evaluations": 2,
}  # fmt: skip
TRAINED = [
    ("defenses", "gift", {}),
    ("defenses", "gift", {"coordination": "project", "path": 0.5}),
    ("defenses", "gift", {"concept_projection": True, "noise_distance": "mmd"}),
    ("defenses", "gift", {"prior_loss": "distillation", "caption_dropout": 0.5}),
    *(("defenses", name, {}) for name in available("defenses")),
    ("attacks", "dreambooth", {"lr_scheduler": "cosine"}),
    *(("attacks", name, {}) for name in available("attacks")),
]
# What reads on purpose: the loop, now and then; gift, in rounds that measure whether it has collapsed; and
# what is done once, before the first step.
MAY_READ = {
    ("loop.py", "read"),
    ("gift.py", "step"),
    ("backbone.py", "encode"),
    ("damage.py", "immunize"),
}


class Reads(TorchDispatchMode):
    """Where a number is read that depends on some parameter, as (file, function) of this project.

    What depends on parameters is on the device, wherever the tests run; random draws are made on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        depends = any(map(depends_on_parameters, tree_leaves((args, kwargs))))
        if depends and func is torch.ops.aten._local_scalar_dense.default:
            self.seen()
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result) if depends else ():
            if isinstance(tensor, torch.Tensor):
                tensor.depends = True
        return result

    def seen(self) -> None:
        ours = [f for f in traceback.extract_stack() if "gift_ray/" in f.filename]
        self.found.append((Path(ours[-1].filename).name, ours[-1].name) if ours else ("", ""))


def depends_on_parameters(value: Any) -> bool:
    return isinstance(value, torch.nn.Parameter) or hasattr(value, "depends")


@contextmanager
def reads() -> Iterator[list[tuple[str, str]]]:
    to_list = torch.Tensor.tolist
    with Reads() as mode:

        def seen(tensor: torch.Tensor) -> Any:
            if depends_on_parameters(tensor):
                mode.seen()
            return to_list(tensor)

        # It reads a tensor of the CPU without an operation of its own.
        with mock.patch.object(torch.Tensor, "tolist", seen):
            yield mode.found


@pytest.mark.parametrize(
    ("kind", "name", "options"), TRAINED, ids=[f"{n}-{'-'.join(o)}" for _, n, o in TRAINED]
)
def test_a_step_reads_no_number_from_the_device(
    kind: str, name: str, options: dict[str, Any], tiny_model: StableDiffusion, malicious: Examples,
    safe: Examples, journal: LocalJournal,
) -> None:  # fmt: skip
    fields = resolve(kind, name).model_fields
    given = {n: v for n, v in (SHORT | options).items() if n in fields}
    if name in ("chain", "checkpoint"):
        pytest.skip("made of others, or of none")
    plugin: Any = build(kind, name, given)
    with reads() as found:
        if kind == "defenses":
            plugin.immunize(tiny_model, [malicious, safe], safe, seeds=Seeds(0), report=journal)
        else:
            captions = ("an sks",) * len(malicious)
            d_a = replace(malicious, captions=captions, conditioning=tiny_model.condition(captions))
            list(plugin.finetune(tiny_model, d_a, seeds=Seeds(0), report=journal))
    assert len(journal.rows) < READ_EVERY
    assert set(found) <= MAY_READ
    assert (("loop.py", "read") in found) == bool(journal.rows)


def test_a_number_that_is_read_is_seen(tiny_model: StableDiffusion) -> None:
    with reads() as found:
        float(torch.rand(()))
        assert found == []
        weights = tiny_model.denoiser.conv_out.weight
        assert weights.sum().item() < weights.abs().sum() * 2
        weights.mean((1, 2, 3)).tolist()
        assert len(found) == 3
