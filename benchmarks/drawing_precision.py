"""Seconds of drawing with the built-in model in fp32 and under bf16 autocast, in turn, on one core.

    python benchmarks/drawing_precision.py [--images 48] [--rounds 3]

A processor with matrix units for bf16 (AMX) may draw faster in it; vector instructions alone need not help.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from gift_ray.config.schema import ModelConfig
from gift_ray.models.backbone import Backbone
from gift_ray.models.families import load_backbone
from gift_ray.training.diffusion import Seeds

BATCHES = (8, 16, 48)


def seconds(model: Backbone, images: int, batch_size: int) -> float:
    """The time that it takes to draw some images in 6 steps."""
    prompts = [f"an emoji of a {noun}" for noun in ("cat", "car", "house")] * images
    started = time.perf_counter()
    model.generate(
        prompts[:images], seeds=Seeds(0), num_inference_steps=6, guidance_scale=2,
        batch_size=batch_size,
    )  # fmt: skip
    return time.perf_counter() - started


def main() -> None:
    """Measure, and print the medians and their ratio for each batch size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fp32 = load_backbone(ModelConfig(mixed_precision="no"))
    bf16 = load_backbone(ModelConfig(mixed_precision="bf16"))
    for model in (fp32, bf16):
        seconds(model, args.images, BATCHES[0])
    for batch_size in BATCHES:
        pairs = [
            (seconds(fp32, args.images, batch_size), seconds(bf16, args.images, batch_size))
            for _ in range(args.rounds)
        ]
        plain, half = (statistics.median(side) for side in zip(*pairs, strict=True))
        print(
            f"batches of {batch_size}: fp32 {plain:.2f} s, bf16 {half:.2f} s, ratio {half / plain:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
