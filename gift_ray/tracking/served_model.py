"""The registered model as MLflow serves it (a model from code: nothing is pickled)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.pyfunc import PythonModel


class ServedPipeline(PythonModel):
    """Prompts in, PNG images out (base64 text, so that a server can answer with them)."""

    def load_context(self, context: Any) -> None:
        """Verify and load the diffusers folder that lies beside the model."""
        from diffusers import DiffusionPipeline

        verify(Path(context.artifacts["pipeline"]), context.model_config["manifest"])
        where = "cuda" if torch.cuda.is_available() else "cpu"
        pipeline = DiffusionPipeline.from_pretrained(context.artifacts["pipeline"])
        self.pipeline = pipeline.to(where)
        self.pipeline.set_progress_bar_config(disable=True)

    # MLflow asks for a type, and would read most as a signature, which has no place for parameters.
    def predict(self, context, model_input: np.ndarray, params=None):
        """One base64 PNG for each prompt; the same prompt gives the same image (seed in params)."""
        params = params or {}
        images = []
        # A list from Python; a table of one column from a server.
        for prompt in np.asarray(model_input).ravel():
            generator = torch.Generator().manual_seed(int(params.get("seed", 0)))
            steps = int(params.get("num_inference_steps", 25))
            guidance = float(params.get("guidance_scale", 4.0))
            result = self.pipeline(
                str(prompt), generator=generator, num_inference_steps=steps, guidance_scale=guidance
            )
            buffer = io.BytesIO()
            result.images[0].save(buffer, format="PNG")
            images.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
        return images


def verify(folder: Path, manifest: str) -> None:
    """Refuse a folder that is not the one that was registered, file by file.

    Args:
        manifest: hash of the folder's manifest.json, which holds the hash of every other file.
    """
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    found = {p.relative_to(folder).as_posix(): _hash(p) for p in files}
    if found.pop("manifest.json", None) != manifest:
        raise ValueError(f"{folder}: manifest.json is not the one of the registered model")
    expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    wrong = sorted(n for n in {*expected, *found} if expected.get(n) != found.get(n))
    if wrong:
        raise ValueError(f"{folder}: not as registered: {', '.join(wrong)}")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


mlflow.models.set_model(ServedPipeline())
