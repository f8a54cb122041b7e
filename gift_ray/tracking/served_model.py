"""The registered model as MLflow serves it (a model from code: nothing is pickled)."""

from __future__ import annotations

import base64
import io
from typing import Any

import mlflow
import torch
from mlflow.pyfunc import PythonModel


class ServedPipeline(PythonModel):
    """Prompts in, PNG images out (base64 text, so that a server can answer with them)."""

    def load_context(self, context: Any) -> None:
        """Load the diffusers folder that lies beside the model."""
        from diffusers import DiffusionPipeline

        where = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = DiffusionPipeline.from_pretrained(context.artifacts["pipeline"])
        self.pipeline = pipeline.to(where)
        self.pipeline.set_progress_bar_config(disable=True)

    def predict(
        self, context: Any, model_input: list[str], params: dict[str, Any] | None = None
    ) -> list[str]:
        """One base64 PNG for each prompt; the same prompt gives the same image (seed in params)."""
        params = params or {}
        images = []
        for prompt in model_input:
            generator = torch.Generator().manual_seed(int(params.get("seed", 0)))
            steps = int(params.get("num_inference_steps", 25))
            guidance = float(params.get("guidance_scale", 4.0))
            result = self.pipeline(
                prompt, generator=generator, num_inference_steps=steps, guidance_scale=guidance
            )
            buffer = io.BytesIO()
            result.images[0].save(buffer, format="PNG")
            images.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
        return images


mlflow.models.set_model(ServedPipeline())
