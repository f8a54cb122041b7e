"""What callers send to a registered model that is served: a picture, or HTTP 400 and a line."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
from battery import Case
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_params_schema
from PIL import Image
from tiny import make_pipeline

from gift_ray.errors import ConfigError
from gift_ray.records.manifest import seal
from gift_ray.tracking.registry import SIGNATURE
from gift_ray.tracking.served_model import ServedPipeline

TITLE = "Requests to a served model"


@cache
def served() -> ServedPipeline:
    folder = Path(mkdtemp()) / "model"
    make_pipeline(folder)
    model = ServedPipeline()
    context = SimpleNamespace(
        artifacts={"pipeline": str(folder)}, model_config={"manifest": seal(folder)}
    )
    model.load_context(context)
    return model


def asked(prompts: Any, **params: Any) -> list[str]:
    """Ask as MLflow's server does, which checks parameters against the signature first."""
    model = served()
    try:
        settings = _enforce_params_schema({"num_inference_steps": 2, **params}, SIGNATURE.params)
        return model.predict(None, np.array(prompts, dtype=object), settings)
    except MlflowException as error:
        status = error.get_http_status_code()
        raise ConfigError(f"HTTP {status}: {error.message}") from error
    finally:
        log = logging.getLogger("mlflow.models.utils")
        assert log.filters, "unknown parameters would only be logged"


def request(prompts: Any, **params: Any) -> Callable[[Path], object]:
    return lambda folder: asked(prompts, **params)


def drawn(folder: Path) -> None:
    first, second = asked(["a cat", "a cat"], seed=3)
    assert first == second
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (16, 16)
    assert asked(["a cat"], seed=4) != [first]


CASES = [
    Case("two prompts, one seed", drawn, outcome="a PNG for each; the same prompt gives the same picture"),
    Case("`null` for a prompt", request([None]), says="HTTP 400: prompt 0 is None"),
    Case("a number for a prompt", request([5]), says="HTTP 400: prompt 0 is 5"),
    Case("NaN for a prompt", request([math.nan]), says="prompt 0 is nan"),
    Case("a blank prompt", request([" "]), says="prompt 0 is ' '"),
    Case("a good prompt and `null`", request(["a cat", None]), says="prompt 1 is None"),
    Case("no prompt", request([]), says="HTTP 400: no prompt is given"),
    Case("a prompt that is too long", request(["abcdefghijklmnopqrstuvw"]), says="would be lost"),
    Case("`num_inference_steps: -3`", request(["a"], num_inference_steps=-3),
         says="HTTP 400: num_inference_steps is -3"),
    Case("`num_inference_steps: 0`", request(["a"], num_inference_steps=0), says="num_inference_steps is 0"),
    Case("`num_inference_steps: 10^9`", request(["a"], num_inference_steps=10**9), says="from 1 to 1000"),
    Case("`num_inference_steps: 2.5`", request(["a"], num_inference_steps=2.5), says="num_inference_steps"),
    Case("`guidance_scale: NaN`", request(["a"], guidance_scale=math.nan),
         says="HTTP 400: guidance_scale is nan"),
    Case("`guidance_scale: Infinity`", request(["a"], guidance_scale=math.inf), says="guidance_scale is inf"),
    Case("`guidance_scale: many`", request(["a"], guidance_scale="many"), says="guidance_scale"),
    Case("`seed: -1`", request(["a"], seed=-1), says="HTTP 400: seed is -1"),
    Case("an unknown parameter", request(["a"], guidance=3.0),
         says="HTTP 400: Unrecognized params ['guidance']"),
]  # fmt: skip
