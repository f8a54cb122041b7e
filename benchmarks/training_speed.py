"""Training steps per second against the loops of the scripts that people run today: diffusers'
train_dreambooth.py and train_dreambooth_lora.py, and IMMA's alternating loop.

Each loop here takes its steps as its script does: a DataLoader that opens, crops and normalizes each image
and tokenizes each caption, the VAE and the text encoder at every step, accelerate's `prepare`, `backward` and
`clip_grad_norm_`, AdamW as torch builds it, a learning-rate scheduler, a progress bar and the loss read at
every step. Ours trains the same parameters of the same model on the same images, encoding included. The two
take turns, and the ratio of each pair is what counts; loading the model is in neither.

    python benchmarks/training_speed.py [--pairs 7] [--steps 40] [--batch 4]
"""

from __future__ import annotations

import argparse
import copy
import io
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from gift_ray.config.schema import ModelConfig
from gift_ray.models.families import base_model
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.plugins import build
from gift_ray.training.diffusion import Seeds

PROMPT = "an emoji of a sks cat"
RATE = 1e-5


class Phases:
    """Seconds of each phase of a loop, summed over its steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started


class DreamBoothDataset(torch.utils.data.Dataset):
    """As the scripts' own: an image is opened and a prompt tokenized whenever it is asked for."""

    def __init__(self, folder: Path, tokenizer: Any, size: int) -> None:
        self.paths = sorted(folder.iterdir())
        self.tokenizer = tokenizer
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image = ImageOps.exif_transpose(Image.open(self.paths[index])).convert("RGB")
        tokens = self.tokenizer(
            PROMPT, truncation=True, padding="max_length", return_tensors="pt",
            max_length=self.tokenizer.model_max_length,
        )  # fmt: skip
        # Resize, CenterCrop, ToTensor and Normalize of the script's torchvision.
        fitted = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1).div(255)
        return {"pixel_values": (pixels - 0.5) / 0.5, "input_ids": tokens.input_ids}


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    input_ids = torch.cat([example["input_ids"] for example in examples])
    return {"pixel_values": pixel_values.contiguous().float(), "input_ids": input_ids}


class ScriptLoop:
    """What the scripts share: data, losses and the optimizer's steps. `trained` are lists of parameters,
    one AdamW for each."""

    def __init__(self, model: StableDiffusion, folder: Path, batch: int, unet: Any) -> None:
        self.model, self.unet, self.phases = model, unet, Phases()
        self.accelerator = Accelerator(mixed_precision="no", cpu=True)
        dataset = DreamBoothDataset(folder, model.tokenizer, model.resolution)
        self.loader = self.accelerator.prepare(
            torch.utils.data.DataLoader(
                dataset, batch_size=batch, shuffle=True, collate_fn=collate, drop_last=True
            )
        )
        self.batches = self._endless()

    def _endless(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield from self.loader

    def optimizer(self, parameters: list[torch.nn.Parameter], steps: int) -> tuple[Any, Any]:
        optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=1e-2)
        schedule = get_scheduler("constant", optimizer, num_training_steps=steps)
        prepared: tuple[Any, Any] = self.accelerator.prepare(optimizer, schedule)
        return prepared

    def loss(self) -> torch.Tensor:
        """The denoising loss of the next batch."""
        scheduler = self.model.noise_scheduler
        with self.phases("data"):
            batch = next(self.batches)
        with self.phases("encode"), torch.no_grad():
            latents = self.model.vae.encode(batch["pixel_values"]).latent_dist.sample()
            latents = latents * self.model.vae.config.scaling_factor
            hidden_states = self.model.text_encoder(batch["input_ids"])[0]
        with self.phases("forward"):
            noise = torch.randn_like(latents)
            limit = scheduler.config.num_train_timesteps
            timesteps = torch.randint(0, limit, (len(latents),)).long()
            noisy = scheduler.add_noise(latents, noise, timesteps)
            predicted = self.unet(noisy, timesteps, hidden_states, return_dict=False)[0]
            return F.mse_loss(predicted.float(), noise.float(), reduction="mean")

    def step(self, loss: torch.Tensor, optimizer: Any, schedule: Any, parameters: list) -> float:
        with self.phases("backward"):
            self.accelerator.backward(loss)
        with self.phases("optimizer"):
            self.accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach().item()


def script_dreambooth(model: StableDiffusion, folder: Path, steps: int, batch: int) -> Phases:
    """train_dreambooth.py without prior preservation: the whole UNet."""
    unet = copy.deepcopy(model.denoiser).requires_grad_(True).train()
    return _script_attack(ScriptLoop(model, folder, batch, unet), steps)


def script_lora(model: StableDiffusion, folder: Path, steps: int, batch: int) -> Phases:
    """train_dreambooth_lora.py: rank 4 on the attention projections it names."""
    unet = copy.deepcopy(model.denoiser).requires_grad_(False)
    targets = ["to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets)
    )
    return _script_attack(ScriptLoop(model, folder, batch, unet), steps)


def _script_attack(loop: ScriptLoop, steps: int) -> Phases:
    loop.unet = loop.accelerator.prepare(loop.unet)
    parameters = [p for p in loop.unet.parameters() if p.requires_grad]
    optimizer, schedule = loop.optimizer(parameters, steps)
    with tqdm(total=steps, file=io.StringIO()) as bar:
        for _ in range(steps):
            with loop.accelerator.accumulate(loop.unet):
                value = loop.step(loop.loss(), optimizer, schedule, parameters)
            bar.update(1)
            bar.set_postfix(loss=value, lr=schedule.get_last_lr()[0])
    return loop.phases


def script_imma(model: StableDiffusion, folder: Path, steps: int, batch: int) -> Phases:
    """IMMA's DreamBooth loop: descend with the whole UNet, then ascend with the attention's
    parameters, each on a batch of its own; `steps` counts both, as ours does."""
    unet = copy.deepcopy(model.denoiser).requires_grad_(True).train()
    loop = ScriptLoop(model, folder, batch, unet)
    every = list(unet.parameters())
    attention = [p for name, p in unet.named_parameters() if "attn" in name]
    inner, inner_schedule = loop.optimizer(every, steps)
    outer, outer_schedule = loop.optimizer(attention, steps)
    with tqdm(total=steps, file=io.StringIO()) as bar:
        for _ in range(steps // 2):
            value = loop.step(loop.loss(), inner, inner_schedule, every)
            bar.update(1)
            outer.zero_grad()
            loop.step(-loop.loss(), outer, outer_schedule, attention)
            inner.zero_grad()
            bar.update(1)
            bar.set_postfix(loss=value)
    return loop.phases


class Silent:
    """A report that keeps nothing."""

    def log(self, step: int, **values: float) -> None:
        pass

    def due(self, step: int) -> bool:
        return False

    def save(self, step: int, state: dict[str, Any]) -> None:
        pass

    def load(self) -> None:
        return None


def ours(name: str, model: StableDiffusion, folder: Path, steps: int, batch: int) -> None:
    """The same training by this project, encoding included."""
    paths = sorted(folder.iterdir())
    images = [Image.open(path).convert("RGB") for path in paths]
    images = [ImageOps.fit(image, (model.resolution, model.resolution)) for image in images]
    examples = model.encode(images, [PROMPT] * len(paths), [path.name for path in paths])
    options = {"max_train_steps": steps, "train_batch_size": batch, "learning_rate": RATE}
    if name == "imma":
        defense = build("defenses", "imma", options | {"inner_learning_rate": RATE})
        defense.immunize(model, [examples], examples, seeds=Seeds(0), report=Silent())
        return
    attack = build("attacks", name, options | {"num_evaluations": 2})
    for _ in attack.finetune(model, examples, seeds=Seeds(0), report=Silent()):
        pass


SCRIPTS = {"dreambooth": script_dreambooth, "lora": script_lora, "imma": script_imma}


def seconds(work: Any, *arguments: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work(*arguments)
    return time.perf_counter() - started, result


def main(pairs: int, steps: int, batch: int) -> None:
    """Print each pair and the medians."""
    model = base_model(ModelConfig())
    prompts = [PROMPT.replace("sks ", "")] * 16
    drawn = model.generate(
        prompts, seeds=Seeds(0), num_inference_steps=6, guidance_scale=2.0, batch_size=8
    )
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; "
        f"{steps} steps of {batch} images, {len(drawn)} images of {model.resolution} px"
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for i, image in enumerate(drawn):
            image.resize((128, 128)).save(folder / f"{i:02d}.png")
        for name, script in SCRIPTS.items():
            ratios = []
            spent: dict[str, float] = defaultdict(float)
            for pair in range(pairs + 1):
                theirs, phases = seconds(script, model, folder, steps, batch)
                mine, _ = seconds(ours, name, model, folder, steps, batch)
                if pair == 0:
                    continue  # Both warm up.
                ratios.append(theirs / mine)
                for phase, value in phases.seconds.items():
                    spent[phase] += value / pairs / steps * 1000
                print(
                    f"{name} pair {pair}: script {steps / theirs:.2f}, ours {steps / mine:.2f} steps/s, "
                    f"ratio {ratios[-1]:.2f}",
                    flush=True,
                )
            shares = ", ".join(f"{phase} {value:.0f}" for phase, value in spent.items())
            print(f"{name}: the script's milliseconds a step: {shares}")
            # What every loop has to do over this model; all else could be saved at most.
            needed = spent["forward"] + spent["backward"]
            print(
                f"{name}: forward and backward alone are {needed:.0f} of {sum(spent.values()):.0f}: no loop "
                f"can be more than {sum(spent.values()) / needed:.2f} times as fast"
            )
            print(
                f"{name}: median ratio {statistics.median(ratios):.2f} "
                f"({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    main(**vars(parser.parse_args()))
