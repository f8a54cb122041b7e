"""What one GPU makes of the training steps and of drawing, in ten minutes and without a network.

    python benchmarks/gpu.py [--models sd15 sdxl klein] [--minutes 10] [--tiny]

It needs torch, diffusers, transformers, peft and this package. Models have the shapes of Stable Diffusion
1.5, SDXL and FLUX.2 klein 4B, random weights, and bf16 autocast over fp32 weights. Each step is this
project's own, against the loop of diffusers' training scripts on the same parameters and batch: the VAE
encodes at every step, copies wait, gradients are clipped and AdamW steps as torch builds it, and the loss is
read at every step. Text encoders are in neither. Drawing is against a pipeline whose weights are bf16.

MFU is the share of the matrix multiplications that this GPU was measured to do, counting those of one step.
`--tiny` runs everything on small shapes, to see that it works: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from peft import LoraConfig
from shapes import BATCH, backbone, conditioning, examples
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import build
from gift_ray.training.diffusion import Seeds
from gift_ray.training.loop import Unread

Step = Callable[[int], Any]
SEEDS = Seeds(0)
DRAWING_STEPS = 5


@dataclass(frozen=True)
class Setting:
    """The shape that is measured, and how long each measurement may take."""

    name: str
    device: torch.device
    tiny: bool
    seconds: float

    @property
    def batch(self) -> int:
        return 2 if self.tiny else BATCH[self.name]

    def model(self) -> Backbone:
        return backbone(self.name, self.device, tiny=self.tiny)

    def examples(self, model: Backbone, seed: int) -> Any:
        return examples(self.name, model, 4, seed, tiny=self.tiny)

    def options(self) -> dict[str, Any]:
        return {"train_batch_size": self.batch, "max_train_steps": 10**6}


@dataclass(frozen=True)
class Measured:
    """Steps a second, the floating-point operations of a step, and a GPU's memory at its peak (0: none)."""

    rate: float
    operations: float
    peak: int

    def told(self, best: float) -> str:
        share = 100 * self.rate * self.operations / best
        memory = f"  {self.peak / 2**30:5.1f} GiB" if self.peak else ""
        return f"{self.rate:8.2f} /s  MFU {share:4.1f} %{memory}"


# The plain loop of the scripts.


def plain_training(setting: Setting, group: str) -> Step:
    """A step of the scripts' loop over a group of parameters, or over an adapter (`lora`)."""
    given = setting.model()
    model = given.clone()
    vae = copy.deepcopy(given.vae).to(torch.bfloat16)
    parameters = _adapted(model) if group == "lora" else list(model.parameters(group).values())
    model.denoiser.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=1e-2)
    size, generator = given.resolution, torch.Generator().manual_seed(0)
    batches = [torch.rand((setting.batch, 3, size, size), generator=generator) for _ in range(4)]
    states = conditioning(setting.name, setting.batch, generator, tiny=setting.tiny)
    states = states.to(setting.device)

    def step(index: int) -> float:
        with torch.no_grad():
            posterior = vae.encode(
                batches[index % 4].to(setting.device, torch.bfloat16)
            ).latent_dist
            mean, std = model.scaled(posterior.mean.float(), posterior.std.float())
            latents = mean + std * torch.randn_like(mean)
        noise = torch.randn_like(latents)
        times = model.draw_times(setting.batch, generator).to(setting.device)
        predicted = model.predict(model.add_noise(latents, noise, times), states, times)
        target = model.target(latents, noise, times)
        loss = F.mse_loss(predicted.float(), target.float())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def _adapted(model: Backbone) -> list[nn.Parameter]:
    """The parameters of an adapter as the scripts add it."""
    targets = model.roles["attention"]
    config = LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    denoiser: Any = model.denoiser
    denoiser.requires_grad_(False).add_adapter(config)
    return [parameter for parameter in denoiser.parameters() if parameter.requires_grad]


def plain_drawing(setting: Setting) -> Step:
    """A batch of pictures by a plain pipeline with bf16 weights."""
    model = setting.model()
    pipeline = model.pipeline()
    pipeline.to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    rows = [
        conditioning(setting.name, setting.batch, generator, tiny=setting.tiny) for _ in range(2)
    ]
    asked = model.embeddings(*(row.to(torch.bfloat16).to(setting.device) for row in rows))
    size = {"height": model.resolution, "width": model.resolution}

    def step(index: int) -> Any:
        with torch.no_grad():
            return pipeline(**asked, **size, num_inference_steps=DRAWING_STEPS, guidance_scale=5.0)

    return step


# This project's own steps.


class Nowhere:
    """A report that keeps nothing."""

    def log(self, step: int, **values: float) -> None:
        pass


def our_attack(
    setting: Setting, name: str, prepare: Callable[[nn.Module], Any] = lambda module: None
) -> Step:
    """A step of an attack. `prepare` changes the denoiser that is trained."""
    model = setting.model()
    attack: Any = build("attacks", name, setting.options())
    attacker = attack.attacker(model, setting.examples(model, 1), SEEDS)
    prepare(attacker.trainee.model.denoiser)
    unread = Unread(Nowhere(), {}, advice="")
    return lambda index: unread.add(index, attacker.step(index, SEEDS.generator("attack", index)))


def our_gift(setting: Setting, part: str) -> Step:
    """GIFT's `inner` or `outer` steps alone, or a `round` of one each."""
    model = setting.model()
    gift: Any = build("defenses", "gift", setting.options())
    run = gift.begun(model, [setting.examples(model, 1)], setting.examples(model, 2), SEEDS)
    unread = Unread(Nowhere(), {}, advice="")

    def inner(index: int) -> Mapping[str, Any]:
        gradients, values = run.inner_gradients(index)
        return values | {"grad_norm": run.inner.step(gradients)}

    def outer(index: int) -> Mapping[str, Any]:
        gradients, values = run.outer_gradients(index, index)
        return values | {"grad_norm": run.outer.step(gradients)}

    step = {"inner": inner, "outer": outer, "round": run.step}[part]
    return lambda index: unread.add(index, step(index))


def our_drawing(setting: Setting) -> Step:
    """A batch of pictures by `generate`, whose prompts are random states."""
    tokenizer = mock.Mock(model_max_length=512)
    model = replace(setting.model(), text_on_cpu=True, tokenizer=tokenizer)
    states = conditioning(setting.name, 1, torch.Generator().manual_seed(0), tiny=setting.tiny)

    def step(index: int) -> Any:
        with mock.patch.object(type(model), "read", return_value=states):
            return model.generate(
                ["a picture"] * setting.batch, seeds=SEEDS, num_inference_steps=DRAWING_STEPS,
                guidance_scale=5.0, batch_size=setting.batch,
            )  # fmt: skip

    return step


# Title -> the plain loop (or none) and ours.
CASES: dict[str, tuple[Callable[[Setting], Step] | None, Callable[[Setting], Step]]] = {
    "GIFT, inner step": (partial(plain_training, group="all"), partial(our_gift, part="inner")),
    "GIFT, outer step": (
        partial(plain_training, group="cross_attention"), partial(our_gift, part="outer"),
    ),
    "GIFT, round of both": (None, partial(our_gift, part="round")),
    "DreamBooth": (partial(plain_training, group="all"), partial(our_attack, name="dreambooth")),
    "LoRA": (partial(plain_training, group="lora"), partial(our_attack, name="lora")),
    f"a batch drawn in {DRAWING_STEPS} steps": (plain_drawing, our_drawing),
}  # fmt: skip


@contextmanager
def plain_adamw() -> Iterator[None]:
    """Within the block AdamW is as torch builds it, and not fused."""

    def make(name: str, values: Any, rate: float, decay: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(values, lr=rate, weight_decay=decay)

    with mock.patch("gift_ray.training.loop.make_optimizer", make):
        yield


def waiting() -> AbstractContextManager[Any]:
    """Within the block the values of each step are read at once."""
    return mock.patch("gift_ray.training.loop.READ_EVERY", 1)


def copies_that_wait() -> AbstractContextManager[Any]:
    """Within the block batches are copied from ordinary memory."""
    return mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: tensor)


def switches(setting: Setting) -> Iterator[tuple[str, Callable[[Setting], Step], Any]]:
    """DreamBooth with one thing changed: its title, how it begins, and a block in which it runs."""
    ours = CASES["DreamBooth"][1]
    yield "as it is", ours, nullcontext()
    yield "values read at every step", ours, waiting()
    yield "copies from ordinary memory", ours, copies_that_wait()
    yield "AdamW not fused", ours, plain_adamw()
    last = partial(nn.Module.to, memory_format=torch.channels_last)
    yield "channels_last", partial(ours, prepare=last), nullcontext()
    # It takes minutes of a CPU, where nothing is to be measured.
    if not setting.tiny:
        yield "torch.compile", partial(ours, prepare=nn.Module.compile), nullcontext()


# Measuring.


def measure(begin: Callable[[Setting], Step], setting: Setting, *, count: bool = True) -> Measured:
    """Begin, warm up, and take steps for a while.

    Args:
        count: whether to count operations, which a compiled module does not allow.
    """
    if setting.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = begin(setting)
    operations = 0
    with FlopCounterMode(display=False) if count else nullcontext() as counter:
        step(0)
    if counter:
        operations = counter.get_total_flops()
    steps, taken = 1, _seconds(step, range(1, 2), setting.device)
    if setting.seconds:
        steps = max(2, round(setting.seconds / taken))
        taken = _seconds(step, range(2, 2 + steps), setting.device)
    peak = torch.cuda.max_memory_allocated() if setting.device.type == "cuda" else 0
    return Measured(steps / taken, operations, peak)


def tried(begin: Callable[[Setting], Step], setting: Setting, **options: Any) -> Measured | None:
    """What was measured; None if the GPU has too little memory."""
    try:
        return measure(begin, setting, **options)
    except torch.cuda.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        if setting.device.type == "cuda":
            torch.cuda.empty_cache()


def _seconds(step: Step, indices: range, device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    for index in indices:
        step(index)
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def best_matmul(device: torch.device, size: int) -> float:
    """Operations a second of the fastest of some bf16 matrix multiplications of this size."""
    left, right = (torch.randn((size, size), device=device, dtype=torch.bfloat16) for _ in range(2))
    best = min(_seconds(lambda _: left @ right, range(10), device) for _ in range(5))
    return 10 * 2 * size**3 / best


def told(found: Measured | None, best: float) -> str:
    return found.told(best) if found else "too little memory"


def main(models: list[str], minutes: float, tiny: bool) -> None:
    """Print a line for each measurement; what the time does not allow is said to be left out."""
    end = time.monotonic() + 60 * minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not tiny:
        raise SystemExit("no GPU is at hand; --tiny runs everything on small shapes")
    if tiny:
        torch.set_num_threads(1)
    best = best_matmul(device, 256 if device.type == "cpu" else 8192)
    named = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{named}, torch {torch.__version__}: bf16 matmul {best / 1e12:.2f} TFLOP/s", flush=True)
    settings = [Setting(name, device, tiny, 0.0 if tiny else 4.0) for name in models]
    for setting in settings:
        for title, (plain, ours) in CASES.items():
            if time.monotonic() > end:
                print(f"{setting.name}, {title}: left out, the time is over")
                continue
            theirs = tried(plain, setting) if plain else None
            mine = tried(ours, setting)
            print(f"{setting.name}, batch {setting.batch}: {title}")
            if plain:
                print(f"    plain {told(theirs, best)}")
            ratio = f"  {mine.rate / theirs.rate:.2f} times" if mine and theirs else ""
            print(f"    ours  {told(mine, best)}{ratio}", flush=True)
    for title, begin, block in switches(settings[0]):
        if time.monotonic() > end:
            print(f"DreamBooth, {title}: left out, the time is over")
            continue
        with block:
            found = tried(begin, settings[0], count=False)
        print(
            f"{settings[0].name}, DreamBooth, {title}: "
            + (f"{found.rate:.2f} /s" if found else told(None, best))
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=BATCH, default=list(BATCH))
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--tiny", action="store_true")
    main(**vars(parser.parse_args()))
