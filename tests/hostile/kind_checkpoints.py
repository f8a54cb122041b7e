"""Checkpoints for `gift-ray attack --model` that would be scored as what they are not, and damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import yaml
from battery import STUDY, Case, run
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny import make_pipeline
from torch import Tensor

from gift_ray.config.schema import ModelConfig
from gift_ray.models.backbone import Backbone
from gift_ray.models.checkpoints import save_delta, with_checkpoint
from gift_ray.models.families import load_backbone

TITLE = "Checkpoints to be attacked"
Tensors = dict[str, Tensor]


@lru_cache(maxsize=1)
def base_folder() -> Path:
    folder = Path(mkdtemp()) / "base"
    make_pipeline(folder)
    return folder


@lru_cache(maxsize=1)
def base() -> Backbone:
    return load_backbone(ModelConfig(pretrained_model_name_or_path=str(base_folder())))


def some(count: int = 3) -> Tensors:
    """A few weights of the base, changed as a defense would."""
    chosen = {n: t for n, t in base().weights().items() if ".attn2." in n}
    return {n: (t + 0.1).clone() for n, t in list(chosen.items())[:count]}


def file(
    tensors: Callable[[], dict[Any, Any]], name: str = "odd.safetensors", **metadata: str
) -> Callable[[Path], None]:
    """Give a file of these tensors."""

    def attempt(folder: Path) -> None:
        path = folder / name
        if name.endswith(".pt"):
            torch.save(tensors(), path)
        else:
            save_file(tensors(), path, metadata=metadata or None)
        with_checkpoint(base(), str(path))

    return attempt


def raw(content: bytes, name: str = "odd.safetensors") -> Callable[[Path], None]:
    def attempt(folder: Path) -> None:
        (folder / name).write_bytes(content)
        with_checkpoint(base(), str(folder / name))

    return attempt


def folder_with(
    change: Callable[[StableDiffusionPipeline], None], **save: Any
) -> Callable[[Path], None]:
    """Give a diffusers folder: the base's, changed."""

    def attempt(folder: Path) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), safety_checker=None)
        change(pipeline)
        pipeline.save_pretrained(folder / "odd", **save)
        read = with_checkpoint(base(), str(folder / "odd"))
        expected = StableDiffusionPipeline.from_pretrained(folder / "odd", safety_checker=None).unet
        assert all(
            torch.equal(t, read.weights()[n]) for n, t in expected.float().state_dict().items()
        )

    return attempt


def variants(
    *saved: str | None, named: str | None = None, read: str | None = None
) -> Callable[[Path], None]:
    """Give a folder with these sets of weights, all different, and name one of them; `read` is what plain
    diffusers is told to read for comparison."""

    def attempt(folder: Path) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), safety_checker=None)
        for variant in saved:
            tune("unet")(pipeline)
            pipeline.save_pretrained(folder / "odd", variant=variant)
        found = with_checkpoint(base(), str(folder / "odd"), named).weights()
        expected = UNet2DConditionModel.from_pretrained(
            folder / "odd", subfolder="unet", variant=read
        )
        assert all(torch.equal(t, found[n]) for n, t in expected.state_dict().items())

    return attempt


def attacked(variant: str) -> Callable[[Path], object]:
    """`gift-ray attack --variant`, on a folder without variants."""

    def attempt(folder: Path) -> object:
        path = folder / "study.yaml"
        path.write_text(yaml.safe_dump(STUDY | {"output_dir": str(folder / "runs")}))
        return run(["attack", str(path), "--model", str(base_folder()), "--variant", variant])

    return attempt


def of_a_file(folder: Path) -> None:
    save_file(some(), folder / "odd.safetensors")
    with_checkpoint(base(), str(folder / "odd.safetensors"), "fp16")


def edited(part: str, **values: Any) -> Callable[[Path], None]:
    """Give the base's folder with other values in the configuration of a part."""

    def attempt(folder: Path) -> None:
        pipeline = StableDiffusionPipeline.from_pretrained(base_folder(), safety_checker=None)
        pipeline.save_pretrained(folder / "odd")
        path = folder / "odd" / part
        path.write_text(json.dumps(json.loads(path.read_text()) | values))
        with_checkpoint(base(), str(folder / "odd"))

    return attempt


def tune(part: str) -> Callable[[StableDiffusionPipeline], None]:
    def change(pipeline: StableDiffusionPipeline) -> None:
        with torch.no_grad():
            next(getattr(pipeline, part).parameters()).add_(0.01)

    return change


def v_prediction(pipeline: StableDiffusionPipeline) -> None:
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )


def other_betas(pipeline: StableDiffusionPipeline) -> None:
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, beta_schedule="linear"
    )


def half(pipeline: StableDiffusionPipeline) -> None:
    tune("unet")(pipeline)
    pipeline.to(dtype=torch.float16)


def single(**more: Tensor) -> Callable[[], Tensors]:
    """A single file: one weight of a unet is enough for what is refused before the unet is read."""
    return lambda: (
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 4, 3, 3)}
        | {name.replace("__", "."): tensor for name, tensor in more.items()}
    )


def cast(dtype: torch.dtype) -> Callable[[], Tensors]:
    return lambda: {n: t.to(dtype) for n, t in some().items()}


def unchanged(folder: Path) -> None:
    save_delta(base(), base(), folder / "odd.safetensors")
    with_checkpoint(base(), str(folder / "odd.safetensors"))


def applied(folder: Path) -> None:
    save_file(cast(torch.bfloat16)(), folder / "odd.safetensors")
    read = with_checkpoint(base(), str(folder / "odd.safetensors")).weights()
    assert all(torch.equal(read[n], t.to(torch.bfloat16).float()) for n, t in some().items())


def exported(folder: Path) -> None:
    """A delta of ours on top of the base is the model that it was taken from."""
    model = base().clone()
    with torch.no_grad():
        next(iter(model.parameters("cross_attention").values())).add_(0.1)
    save_delta(base(), model, folder / "odd.safetensors")
    read = load_file(folder / "odd.safetensors")
    assert len(read) == 1
    assert torch.equal(with_checkpoint(base(), str(folder / "odd.safetensors")).weights()[next(iter(read))],
                       next(iter(read.values())))  # fmt: skip


PARTS = "differs from the base in its "
CASES = [
    Case("a folder with another unet", folder_with(tune("unet")), outcome="the unet of plain diffusers"),
    Case("a folder in half precision", folder_with(half), outcome="the unet of plain diffusers"),
    Case("a folder whose weights are all of the variant fp16", variants("fp16", read="fp16"),
         outcome="the unet of plain diffusers with `variant`"),
    Case("a folder with weights of no variant and of fp16", variants("fp16", None),
         outcome="those of no variant"),
    Case("the same, `--variant fp16`", variants("fp16", None, named="fp16", read="fp16"),
         outcome="those of fp16"),
    Case("a folder of two variants, none named", variants("fp16", "non_ema"),
         says="there is fp16, non_ema; say which"),
    Case("a folder of fp16, `--variant bf16`", variants("fp16", named="bf16"),
         says="no variant 'bf16'; there are fp16"),
    Case("a folder without variants, `gift-ray attack --variant bf16`", attacked("bf16"),
         says="no variant 'bf16'; it has none"),
    Case("one file, `--variant fp16`", of_a_file, says="is one file"),
    Case("a folder with a tuned text encoder", folder_with(tune("text_encoder")),
         says=PARTS + "text_encoder"),
    Case("a folder with another VAE", folder_with(tune("vae")), says=PARTS + "vae"),
    Case("a folder whose VAE has another scaling factor", edited("vae/config.json", scaling_factor=0.13),
         says="vae (scaling_factor)"),
    Case("a folder of v_prediction", folder_with(v_prediction), says="v_prediction; the base's is epsilon"),
    Case("a folder with other betas", folder_with(other_betas), says="noise_scheduler (other betas)"),
    Case("a folder whose unet computes otherwise", edited("unet/config.json", norm_eps=0.1),
         says="unet configuration (norm_eps)"),
    Case("a single file with `v_pred`", file(single(v_pred=torch.zeros(0))),
         says="prediction type (v_prediction"),
    Case("a single file with `ztsnr`", file(single(ztsnr=torch.zeros(0))), says="zero terminal SNR"),
    Case("a single file whose metadata say v",
         file(single(), **{"modelspec.prediction_type": "v"}), says="prediction type (v_prediction"),
    Case("a single file with other alphas_cumprod",
         file(single(alphas_cumprod=torch.linspace(1, 0, 1000))), says="noise schedule (alphas_cumprod)"),
    Case("a single file with unknown tensors", file(single(control__input=torch.ones(1))),
         says="1 unknown tensors, first 'control.input'"),
    Case("a single file with another text encoder",
         file(single(cond_stage_model__transformer__text_model__final_layer_norm__bias=torch.ones(16))),
         says=PARTS + "text_encoder"),
    Case("an int8 delta", file(cast(torch.int8)), says="holds int8"),
    Case("a delta in 8-bit floats", file(cast(torch.float8_e4m3fn)), says="holds float8_e4m3fn"),
    Case("a delta in bfloat16", applied, outcome="its values, in float32"),
    Case("a delta of ours", exported, outcome="the model that it was taken from"),
    Case("a whole unet in int8",
         file(lambda: {n: t.to(torch.int8) for n, t in base().weights().items()}), says="holds int8"),
    Case("a file without tensors", file(dict), says="holds no tensor"),
    Case("a .pt without tensors", file(dict, "odd.pt"), says="holds no tensor"),
    Case("a delta that changes nothing", file(lambda: {n: base().weights()[n].clone() for n in some()}),
         says="nothing is changed"),
    Case("a delta of the base and itself", unchanged, says="holds no tensor"),
    Case("a delta with a tensor of another name", file(lambda: some() | {"not.there": torch.ones(1)}),
         says="1 unknown unet weights, first 'not.there'"),
    Case("a .pt with numbers for names", file(lambda: dict(enumerate(some().values())), "odd.pt"),
         says="must hold a dict of tensors by name; not so: 0 (Tensor)"),
    Case("a .pt with a dict inside", file(lambda: {"state_dict": some()}, "odd.pt"),
         says="not so: 'state_dict' (dict)"),
    Case("a .pt with a list", file(lambda: list(some().values()), "odd.pt"), says="holds a list"),  # type: ignore[arg-type, return-value]
    Case("a .pt with sparse tensors", file(lambda: {n: t.to_sparse() for n, t in some().items()}, "odd.pt"),
         says="not a dense tensor"),
    Case("a .pt with 8-bit floats", file(cast(torch.float8_e5m2), "odd.pt"), says="holds float8_e5m2"),
    Case("a .pt with nested pickles", file(lambda: {"a": {"b": {"c": torch.ones(1)}}}, "odd.pt"),
         says="not so: 'a' (dict)"),
    Case("a .pt that runs code", raw(b"cos\nsystem\n(S'true'\ntR.", "odd.pt"), says="not trusted"),
    Case("a text named .pt", raw(b"hello", "odd.pt"), says="not trusted"),
    Case("an empty .pt", raw(b"", "odd.pt"), says="not trusted"),
    Case("a text named .safetensors", raw(b"hello, I am a text"), says="not a readable safetensors file"),
    Case("an empty .safetensors", raw(b""), says="not a readable safetensors file"),
    Case("a .ckpt", raw(b"", "odd.ckpt"), says="not a checkpoint that is read"),
]  # fmt: skip
