"""What is downloaded of a hub repository: no more than a study needs. The hub is a server of this machine,
whose repositories list what the published ones of these names do, as far as it matters here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.architecture import architecture

CLIP = "merges.txt special_tokens_map.json tokenizer_config.json vocab.json"
ONNX = "model.onnx model.onnx_data openvino_model.bin openvino_model.xml"
BOTH = "config.json {0}.bin {0}.fp16.bin {0}.fp16.safetensors {0}.safetensors"
SAFE = "config.json {0}.fp16.safetensors {0}.safetensors"
TEXT, IMAGE = BOTH.format("model"), BOTH.format("diffusion_pytorch_model")
XL_TEXT = f"flax_model.msgpack {SAFE.format('model')} {ONNX}"
XL_IMAGE = f"diffusion_flax_model.msgpack {SAFE.format('diffusion_pytorch_model')}"
# Repository -> folder ("": the root) -> names.
TREES = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "": "model_index.json README.md .gitattributes v1-inference.yaml v1-5-pruned-emaonly.ckpt "
        "v1-5-pruned-emaonly.safetensors v1-5-pruned.ckpt v1-5-pruned.safetensors",
        "feature_extractor": "preprocessor_config.json",
        "safety_checker": TEXT,
        "scheduler": "scheduler_config.json",
        "text_encoder": TEXT,
        "tokenizer": CLIP,
        "unet": f"{IMAGE} diffusion_pytorch_model.non_ema.bin diffusion_pytorch_model.non_ema.safetensors",
        "vae": IMAGE,
    },
    "stabilityai/stable-diffusion-2-1": {
        "": "model_index.json README.md .gitattributes v2-1_768-ema-pruned.ckpt "
        "v2-1_768-ema-pruned.safetensors v2-1_768-nonema-pruned.ckpt v2-1_768-nonema-pruned.safetensors",
        "feature_extractor": "preprocessor_config.json",
        "scheduler": "scheduler_config.json",
        "text_encoder": TEXT,
        "tokenizer": CLIP,
        "unet": IMAGE,
        "vae": IMAGE,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "": "model_index.json README.md LICENSE.md .gitattributes 01.png comparison.png pipeline.png "
        "sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors "
        "sd_xl_offset_example-lora_1.0.safetensors",
        "scheduler": "scheduler_config.json",
        "text_encoder": XL_TEXT,
        "text_encoder_2": XL_TEXT,
        "tokenizer": CLIP,
        "tokenizer_2": CLIP,
        "unet": f"{XL_IMAGE} {ONNX}",
        "vae": XL_IMAGE,
        "vae_1_0": SAFE.format("diffusion_pytorch_model"),
        "vae_decoder": f"config.json {ONNX}",
        "vae_encoder": f"config.json {ONNX}",
    },
    "black-forest-labs/FLUX.2-klein-base-4B": {
        "": "model_index.json README.md LICENSE.md .gitattributes teaser_generation.png "
        "flux-2-klein-base-4b.safetensors",
        "scheduler": "scheduler_config.json",
        "text_encoder": "config.json generation_config.json model-00001-of-00002.safetensors "
        "model-00002-of-00002.safetensors model.safetensors.index.json",
        "tokenizer": "added_tokens.json chat_template.jinja merges.txt special_tokens_map.json "
        "tokenizer.json tokenizer_config.json vocab.json",
        "transformer": "config.json diffusion_pytorch_model.safetensors",
        "vae": "config.json diffusion_pytorch_model.safetensors",
    },
    "somebody/controlnet": {"": "model_index.json", "unet": IMAGE},
}
LISTS = {
    repository: [
        f"{folder}/{name}".lstrip("/") for folder, names in tree.items() for name in names.split()
    ]
    for repository, tree in TREES.items()
}
KINDS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "StableDiffusionPipeline",
    "stabilityai/stable-diffusion-2-1": "StableDiffusionPipeline",
    "stabilityai/stable-diffusion-xl-base-1.0": "StableDiffusionXLPipeline",
    "black-forest-labs/FLUX.2-klein-base-4B": "Flux2KleinPipeline",
    "somebody/controlnet": "StableDiffusionControlNetPipeline",
}
# A driver with a cache of its own: where a study would look for its base.
DRIVER = """
import sys
from gift_ray.config.schema import ModelConfig
from gift_ray.errors import ModelError
from gift_ray.models.locate import locate
name, variant = sys.argv[1], sys.argv[2] or None
try:
    config = ModelConfig(pretrained_model_name_or_path=name, variant=variant)
    folder = locate(config)
    assert locate(config) == folder
    print(folder)
except ModelError as error:
    print(error)
"""
COMMIT = "1" * 40


def content(repository: str, file: str) -> bytes:
    if file == "model_index.json":
        return json.dumps({"_class_name": KINDS[repository]}).encode()
    return f"{repository} {file}".encode()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as huggingface_hub asks for."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        if path.startswith("api/models/"):
            owner, name, what, *_ = path.removeprefix("api/models/").split("/")
            files = LISTS[f"{owner}/{name}"]
            if what == "tree":
                return self.answer(json.dumps([
                    {"type": "file", "path": f, "size": len(content(f"{owner}/{name}", f)), "oid": "0" * 40}
                    for f in files
                ]).encode(), "application/json")  # fmt: skip
            told = {
                "id": f"{owner}/{name}",
                "sha": COMMIT,
                "siblings": [{"rfilename": f} for f in files],
            }
            return self.answer(json.dumps(told).encode(), "application/json")
        owner, name, _resolve, _commit, file = path.split("/", 4)
        return self.answer(content(f"{owner}/{name}", file), "application/octet-stream")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def downloaded(hub: str, cache: Path, repository: str, variant: str = "") -> tuple[set[str], str]:
    """The files that lie in the cache after a study has looked for this base, and what was said."""
    environment = {n: v for n, v in os.environ.items() if n != "HF_HUB_OFFLINE"} | {
        "HF_ENDPOINT": hub, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, repository, variant], env=environment, capture_output=True,
        text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = cache.glob("hub/models--*/snapshots/*")
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}, done.stdout


def configuration(repository: str, *parts: str) -> set[str]:
    """All of a repository's own words on some parts, with its index, card and licence."""
    return {"model_index.json", "README.md", "LICENSE.md"} & set(LISTS[repository]) | {
        name
        for name in LISTS[repository]
        if name.split("/")[0] in parts and name.endswith((".json", ".txt", ".jinja"))
    }


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize(
    "repository",
    ["stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0"],
)
def test_one_format_and_one_variant_of_the_parts_that_are_loaded(
    repository: str, variant: str, hub: str, tmp_path: Path
) -> None:
    found, said = downloaded(hub, tmp_path, repository, variant)
    tail = f".{variant}" if variant else ""
    xl = "xl" in repository
    encoders = ["text_encoder", "text_encoder_2"] if xl else ["text_encoder"]
    tokenizers = ["tokenizer", "tokenizer_2"] if xl else ["tokenizer"]
    expected = configuration(repository, "scheduler", "unet", "vae", *encoders, *tokenizers)
    expected |= {f"{part}/diffusion_pytorch_model{tail}.safetensors" for part in ("unet", "vae")}
    expected |= {f"{part}/model{tail}.safetensors" for part in encoders}
    assert found == expected, said


def test_weights_in_shards_and_the_template_of_a_chat_are_downloaded(
    hub: str, tmp_path: Path
) -> None:
    klein = "black-forest-labs/FLUX.2-klein-base-4B"
    found, _ = downloaded(hub, tmp_path, klein)
    assert set(LISTS[klein]) - found == {
        ".gitattributes", "teaser_generation.png", "flux-2-klein-base-4b.safetensors",
    }  # fmt: skip


def test_of_stable_diffusion_2_nothing_lies_at_the_root(hub: str, tmp_path: Path) -> None:
    found, _ = downloaded(hub, tmp_path, "stabilityai/stable-diffusion-2-1")
    assert {name for name in found if "/" not in name} == {"model_index.json", "README.md"}
    assert not [name for name in found if "fp16" in name or name.endswith((".bin", ".ckpt"))]
    assert len([name for name in found if name.endswith(".safetensors")]) == 3


def test_of_a_family_that_is_not_supported_no_weight_is_downloaded(
    hub: str, tmp_path: Path
) -> None:
    found, said = downloaded(hub, tmp_path, "somebody/controlnet")
    assert found == {"model_index.json"}
    assert "StableDiffusionControlNetPipeline, which is not supported" in said


def test_a_variant_that_is_not_there_is_one_line(tiny_folder: Path) -> None:
    config = ModelConfig(pretrained_model_name_or_path=str(tiny_folder), variant="fp16")
    with pytest.raises(
        ModelError, match=r"variant 'fp16' of its unet, vae, text_encoder; leave model.variant"
    ):
        architecture(config)
