"""DreamBooth steps per second: cached latents and text embeddings against the straightforward loop of
the diffusers script, which encodes images and captions anew every step. Same model, batch, optimizer
settings and machine; the two take turns, and the ratio of each pair is what counts.

    python benchmarks/training_speed.py [pairs] [steps] [batch]
"""

from __future__ import annotations

import platform
import statistics
import sys
import time

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import base_model
from gift_ray.sources.openmoji import OpenMoji
from gift_ray.training.conditioning import Conditioning
from gift_ray.training.diffusion import Seeds
from gift_ray.training.loop import Level


def cached(model: Backbone, images: list, captions: list[str], steps: int, batch: int) -> float:
    """Steps per second of our loop, the encoding (once) included."""
    started = time.perf_counter()
    examples = model.encode(images, captions, [str(i) for i in range(len(images))])
    model = model.clone()
    level = Level(model.parameters("all"), optimizer="adamw", learning_rate=1e-5, weight_decay=1e-2)
    for step in range(steps):
        generator = Seeds(0).generator("attack", step)
        drawn = examples.batch(batch, generator)
        noise, timesteps = model.draw(batch, generator)
        loss = model.denoising_loss(drawn.latents, drawn.conditioning, timesteps, noise)
        level.step(level.gradients(loss.mean()))
    return steps / (time.perf_counter() - started)


def straightforward(
    model: Backbone, images: list, captions: list[str], steps: int, batch: int
) -> float:
    """Steps per second when every step encodes its batch, with plain AdamW and clipping."""
    started = time.perf_counter()
    model = model.clone()
    parameters = list(model.denoiser.parameters())
    optimizer = torch.optim.AdamW(parameters, 1e-5, weight_decay=1e-2)
    for step in range(steps):
        generator = Seeds(0).generator("attack", step)
        chosen = torch.randperm(len(images), generator=generator)[:batch].tolist()
        mean, std = model.encode_images([images[i] for i in chosen])
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        # One text pass a caption of the batch, as the script's collate function makes it.
        embeddings = Conditioning.concatenate([model.condition([captions[i]]) for i in chosen])
        noise, timesteps = model.draw(len(chosen), generator)
        model.denoising_loss(latents, embeddings, timesteps, noise).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return steps / (time.perf_counter() - started)


def main(pairs: int, steps: int, batch: int) -> None:
    model = base_model(ModelConfig())
    source = OpenMoji(match=r"\bCAT\b", caption="an emoji of a sks cat")
    found = source.images(model, Seeds(0))
    images = [item.image.resize((model.resolution, model.resolution)) for item in found]
    captions = [item.caption for item in found]
    batch = min(batch, len(images))
    ratios = []
    for pair in range(pairs):
        ours = cached(model, images, captions, steps, batch)
        theirs = straightforward(model, images, captions, steps, batch)
        ratios.append(ours / theirs)
        print(
            f"pair {pair}: cached {ours:.2f}, straightforward {theirs:.2f} steps/s, ratio {ratios[-1]:.2f}"
        )
    print(
        f"median ratio {statistics.median(ratios):.2f} (min {min(ratios):.2f}, max {max(ratios):.2f}), "
        f"batch {batch}, {steps} steps, {torch.get_num_threads()} threads, {platform.machine()}"
    )


if __name__ == "__main__":
    main(*(int(value) for value in [*sys.argv[1:], *("3", "30", "8")[len(sys.argv) - 1 :]]))
