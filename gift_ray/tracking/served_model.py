"""The registered model as MLflow serves it (a model from code: nothing is pickled)."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
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
        logging.getLogger("mlflow.models.utils").addFilter(_UnknownParameters())

    # MLflow would take type annotations for a signature, in which parameters such as the seed have no place.
    def predict(self, context, model_input: np.ndarray, params=None):
        """One base64 PNG for each prompt; the same prompt gives the same image (seed in params).

        Raises:
            MlflowException: a prompt or parameter that can't be drawn; a server answers 400.
        """
        prompts = self._prompts(model_input)
        seed, steps, guidance = self._settings(params or {})
        images = []
        for prompt in prompts:
            # By name: the first argument of some families' pipelines is an image.
            result = self.pipeline(
                prompt=prompt, generator=torch.Generator().manual_seed(seed),
                num_inference_steps=steps, guidance_scale=guidance,
            )  # fmt: skip
            buffer = io.BytesIO()
            result.images[0].save(buffer, format="PNG")
            images.append(base64.b64encode(buffer.getvalue()).decode("ascii"))
        return images

    def _prompts(self, model_input: np.ndarray) -> list[str]:
        # A list from Python; a table of one column from a server.
        prompts = list(np.asarray(model_input, dtype=object).ravel())
        if not prompts:
            raise refused("no prompt is given; send at least one, as text")
        for place, prompt in enumerate(prompts):
            if not isinstance(prompt, str) or not prompt.strip():
                raise refused(f"prompt {place} is {prompt!r}; send text that says what to draw")
            if lost := self._lost(prompt):
                raise refused(
                    f"prompt {place} is longer than the model reads: {lost!r} would be lost; shorten it"
                )
        return prompts

    def _lost(self, prompt: str) -> str:
        """The end of a prompt that the text encoder does not read, since it is too long."""
        tokenizer = self.pipeline.tokenizer
        words = tokenizer(prompt, add_special_tokens=False).input_ids
        return str(tokenizer.decode(words[tokenizer.model_max_length - 2 :])).strip()

    def _settings(self, params: dict[str, Any]) -> tuple[int, int, float]:
        most = self.pipeline.scheduler.config.num_train_timesteps
        seed = int(params.get("seed", 0))
        steps = int(params.get("num_inference_steps", 25))
        guidance = float(params.get("guidance_scale", 4.0))
        if not 0 <= seed < 2**63:
            raise refused(f"seed is {seed}; send a whole number from 0 to 2^63 - 1")
        if not 1 <= steps <= most:
            raise refused(f"num_inference_steps is {steps}; send a whole number from 1 to {most}")
        if not 0 <= guidance < float("inf"):
            raise refused(f"guidance_scale is {guidance}; send a finite number, 0 or more")
        return seed, steps, guidance


def refused(reason: str) -> MlflowException:
    """An error that tells the caller what to change; a server answers with the status 400."""
    return MlflowException(reason, error_code=INVALID_PARAMETER_VALUE)


class _UnknownParameters(logging.Filter):
    """Refuses parameters that the signature does not name.

    MLflow drops such a parameter and only logs a warning, so the caller would get another image than they
    asked for. This filter of that log raises an error instead.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if message.startswith("Unrecognized params"):
            raise refused(message.split("To enable")[0].strip())
        return True


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
