"""How many of the built-in model's drawings are recognised, by sampler and number of steps.

    python benchmarks/samplers.py [--images 8]

Each noun of the built-in model is drawn as often as asked, from the same noise by every sampler, and counts
as recognised if it is the built-in classifier's first choice. Differences are paired: of the same noun and
noise.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from gift_ray.config.schema import ModelConfig
from gift_ray.metrics.recognition import Recognition
from gift_ray.models.families import base_model
from gift_ray.plugins import MetricContext
from gift_ray.training.diffusion import Seeds

DRAWN = [("default", 6), ("dpm++", 3), ("default", 3), ("dpm++", 6)]
RESAMPLED = 2000


def interval(by_noun: np.ndarray) -> tuple[float, float]:
    """A bootstrap interval of 95 % of the mean of [nouns], drawing nouns."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(by_noun), (RESAMPLED, len(by_noun)))
    low, high = np.quantile(by_noun[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def main(images: int) -> None:
    """Print a line for each sampler: recognition, its difference to the first, and seconds an image."""
    model, judge = base_model(ModelConfig()), Recognition(classifier="builtin")
    nouns = Recognition().known_names()
    prompts = [f"an emoji of a {noun}" for noun in nouns for _ in range(images)]
    context = MetricContext(tuple(prompts), (), {})
    print(f"{len(nouns)} nouns, {images} images of each, guidance 2")
    first = None
    for sampler, steps in DRAWN:
        began = time.process_time()
        drawn = model.generate(
            prompts, seeds=Seeds(0), num_inference_steps=steps, guidance_scale=2.0, batch_size=16,
            sampler=sampler,
        )  # fmt: skip
        seconds = (time.process_time() - began) / len(prompts)
        found = judge.measure(drawn, context).reshape(len(nouns), images).mean(1)
        first = found if first is None else first
        low, high = interval(found - first)
        print(
            f"{sampler:>8} {steps:3d} steps: recognised {found.mean():.3f}, difference "
            f"{found.mean() - first.mean():+.3f} [{low:+.3f}, {high:+.3f}], "
            f"{1000 * seconds:.0f} ms of CPU an image",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=8)
    main(**vars(parser.parse_args()))
