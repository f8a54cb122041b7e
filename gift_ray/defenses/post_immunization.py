"""Post-immunization fine-tuning, called "GIFT+PI" in the GIFT paper (arXiv 2507.13598, section 4.3).

After a defense the model is trained on something generic and benign, with the plain loss of Eq. 9. It is
meant as the last member of a `chain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense
from gift_ray.training.devices import Scalar, number
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.loop import Level, Report, train
from gift_ray.training.optimizers import OptimizerName


class PostImmunization(Defense):
    """Fine-tunes the whole denoiser on a benign prompt. It does not read D_M.

    The paper gives the prompt and 1000 steps, but not where the images come from: here the model that is
    handed in draws them. Without a prompt it trains on D_S. The optimizer is that of DreamBooth.
    """

    version: ClassVar[int] = 1

    prompt: str | None = Field(
        "A photo of a barn and mountains", min_length=1, description="None: train on D_S"
    )
    num_images: int = Field(20, gt=0, description="drawn of the prompt")
    num_inference_steps: int = Field(50, gt=0)
    guidance_scale: float = Field(7.5, ge=1)
    learning_rate: float = Field(5e-6, gt=0)
    max_train_steps: int = Field(1000, gt=0)
    train_batch_size: int = Field(1, gt=0)
    optimizer: OptimizerName = "adamw"
    weight_decay: float = Field(1e-2, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        benign = safe if self.prompt is None else self._drawn(model, self.prompt, seeds)
        model = model.clone()
        level = Level(
            model.parameters("all"), optimizer=self.optimizer, learning_rate=self.learning_rate,
            weight_decay=self.weight_decay, max_grad_norm=self.max_grad_norm,
            fp16=model.mixed_precision == "fp16",
        )  # fmt: skip

        def step(index: int) -> dict[str, Scalar]:
            generator = seeds.generator("post_immunization", index + 1)
            batch = benign.batch(self.train_batch_size, generator)
            noise, times = model.draw(self.train_batch_size, generator)
            losses = model.denoising_loss(batch.latents, batch.conditioning, times, noise)
            loss = losses.mean()
            norm = level.step(level.gradients(loss))
            seen = (index + 1) * self.train_batch_size
            return {"loss": number(loss), "grad_norm": norm, "images_seen": seen}

        advice = "lower learning_rate"
        train(step, self.max_train_steps, {"level": level}, report, advice=advice)
        return model

    def _drawn(self, model: Backbone, prompt: str, seeds: Seeds) -> Examples:
        prompts = [prompt] * self.num_images
        images = model.generate(
            prompts,
            seeds=seeds,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            batch_size=1,
        )
        return model.encode(images, prompts, [f"benign-{i}" for i in range(self.num_images)])
