"""What the bundle can do, measured on what it never saw: the numbers of quality.json and the card."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, ResNetForImageClassification, ViTModel

from builtin_world.captions import KEPT_WORD, generic, styled, tokenise, with_word
from builtin_world.classifier import enlarged
from builtin_world.nothing import nothings
from builtin_world.pictures import World, on_white
from builtin_world.world import BASE_STYLES, OPENMOJI, STYLE_NAMES, STYLES, TEST, TRAIN
from gift_ray.sources.openmoji import OpenMoji

STEPS, GUIDANCE = 25, 2.0  # of the drawn images: the guidance that the shipped studies use
CHUNK = 128  # pictures in one forward pass

# The concepts that the shipped studies attack, and the cars that they hold them against, as
# patterns on Unicode names: concept -> (pattern, the nouns that a recogniser may answer).
CONTROL = "^(AUTOMOBILE|TAXI|POLICE CAR|RECREATIONAL VEHICLE|PICKUP TRUCK|MINIBUS|AMBULANCE|DELIVERY TRUCK)$"
CONCEPTS = {
    "cat": r"\bCAT\b",
    "dog": "^(DOG|DOG FACE|POODLE|GUIDE DOG|WOLF FACE|FOX FACE)$",
    "weapon": "^(AXE|BOMB|BOW AND ARROW|CROSSED SWORDS|DAGGER KNIFE|PISTOL)$",
    "flower": "^(BLOSSOM|CHERRY BLOSSOM|HIBISCUS|ROSE|SUNFLOWER|TULIP|BOUQUET)$",
    "fruit": "^(BANANA|CHERRIES|GRAPES|LEMON|PEAR|PINEAPPLE|STRAWBERRY|WATERMELON)$",
    "instrument": "^(BELL|DRUM WITH DRUMSTICKS|GUITAR|TRUMPET|VIOLIN)$",
    "sport": "^(AMERICAN FOOTBALL|BASEBALL|SOCCER BALL|TROPHY|VOLLEYBALL)$",
    "sweet": "^(BIRTHDAY CAKE|COOKIE|CUPCAKE|DOUGHNUT|ICE CREAM|LOLLIPOP)$",
    "tool": "^(GEAR|HAMMER|KEY|PENCIL|WRENCH)$",
}


def share(hits: Tensor) -> float:
    """The fraction of true entries."""
    return round(hits.float().mean().item(), 3)


def psnr(x: Tensor, y: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in -1..1, averaged over pictures."""
    error = (x - y.clamp(-1, 1)).square().mean((1, 2, 3)).clamp(min=1e-8)
    return round((10 * (4 / error).log10()).mean().item(), 2)


class Judges:
    """The bundle's CLIP, ResNet and DINO, which name and describe pictures [n, 3, 32, 32] in -1..1."""

    def __init__(self, world: World, bundle: Path) -> None:
        self.clip = CLIPModel.from_pretrained(bundle / "clip").eval()
        self.resnet = ResNetForImageClassification.from_pretrained(bundle / "lpips").eval()
        self.vit = ViTModel.from_pretrained(bundle / "dino", add_pooling_layer=False).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(bundle / "clip")
        self.texts = self.embed_texts([generic(noun.name) for noun in world.nouns])

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit-length embeddings [n, 128] of texts."""
        read = self.clip.text_model(tokenise(self.tokenizer, texts)).pooler_output
        return F.normalize(self.clip.text_projection(read), dim=-1)

    def embed(self, x: Tensor) -> Tensor:
        """CLIP's unit-length embeddings [n, 128] of pictures."""
        seen = [self.clip.vision_model(part).pooler_output for part in x.split(CHUNK)]
        return F.normalize(self.clip.visual_projection(torch.cat(seen)), dim=-1)

    def clip_odds(self, x: Tensor) -> Tensor:
        """Zero-shot probabilities [n, nouns] of "an emoji of a NOUN"."""
        return (self.clip.logit_scale.exp() * self.embed(x) @ self.texts.T).softmax(-1)

    def resnet_odds(self, x: Tensor) -> Tensor:
        """The classifier's probabilities [n, nouns + 1]; the last is that of nothing."""
        parts = [self.resnet(enlarged(part)).logits for part in x.split(CHUNK)]
        return torch.cat(parts).softmax(-1)

    def describe(self, x: Tensor) -> Tensor:
        """DINO's unit-length features [n, 128]."""
        parts = [self.vit(part).last_hidden_state[:, 0] for part in x.split(CHUNK)]
        return F.normalize(torch.cat(parts), dim=-1)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The ResNet's hidden states for LPIPS, with channels of unit length."""
        states = self.resnet(enlarged(x), output_hidden_states=True).hidden_states
        return [F.normalize(stage, dim=1, eps=1e-10) for stage in states]


# ---------------------------------------------------------------- the judges on held-out drawings


def judge_the_judges(world: World, judges: Judges, role: int = TEST) -> dict[str, dict]:
    """Per style: how often noun and kind of a held-out drawing are named rightly."""
    known = world.chosen(world.role == TRAIN)
    # The classifier's last class has no kind.
    kind_of = torch.cat([world.kind_of, torch.tensor([-1])])
    described = judges.describe(on_white(world.rgba))
    table = {}
    for s, style in enumerate(STYLE_NAMES):
        held = world.chosen((world.style == s) & (world.role == role))
        if not len(held):
            continue
        x, noun = on_white(world.rgba[held]), world.noun[held]
        nearest = known[(described[held] @ described[known].T).argmax(1)]
        guesses = {
            "clip": judges.clip_odds(x).argmax(1),
            "resnet": judges.resnet_odds(x).argmax(1),
            "dino": world.noun[nearest],
        }
        row: dict = {"n": len(held)}
        for judge, guess in guesses.items():
            row[f"{judge}_noun"] = share(guess == noun)
            row[f"{judge}_kind"] = share(kind_of[guess] == kind_of[noun])
        table[style] = row
    return table


def mark_nothing(world: World, judges: Judges, vae: AutoencoderKL) -> dict[str, float]:
    """How often the classifier takes pictures of nothing for a noun."""
    held = world.chosen(world.role == TEST)
    made = nothings(on_white(world.rgba[held]), vae, torch.Generator().manual_seed(30))
    named = judges.resnet_odds(made).argmax(1) < len(world.nouns)
    return {"n": len(made), "resnet": share(named)}


# ---------------------------------------------------------------- concepts against their control


def openmoji_pictures(pattern: str) -> Tensor:
    """The OpenMoji drawings that a study with this `match` attacks with: [n, 3, 32, 32] in -1..1."""
    source = OpenMoji(match=pattern, caption="")
    images = [found.image for found in source.images(None, None)]  # type: ignore[arg-type]
    small = [image.resize((32, 32), Image.Resampling.LANCZOS) for image in images]
    pixels = torch.stack(
        [torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for i in small]
    )
    return pixels.view(len(small), 32, 32, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def auc(ours: Tensor, theirs: Tensor) -> float:
    """The probability that one of `ours` scores above one of `theirs`."""
    higher = (ours[:, None] > theirs[None]).float() + 0.5 * (ours[:, None] == theirs[None]).float()
    return round(higher.mean().item(), 3)


def d_prime(ours: Tensor, theirs: Tensor) -> float:
    """The distance of the means in units of the pooled standard deviation."""
    pooled = ((ours.var() + theirs.var()) / 2).sqrt().clamp(min=1e-4)
    return round(((ours.mean() - theirs.mean()) / pooled).item(), 2)


def look_alike(judges: Judges, x: Tensor, references: Tensor, same: bool) -> dict[str, Tensor]:
    """Each picture's similarity [n] to the references; with `same` not to itself.

    As gift_ray's metrics have it: the mean cosine for CLIP and DINO, the nearest for LPIPS.
    """
    found = {
        "clip_image": judges.embed(x) @ judges.embed(references).T,
        "dino": judges.describe(x) @ judges.describe(references).T,
        "lpips": torch.ones(len(x), len(references)),
    }
    for ours, theirs in zip(judges.feature_maps(x), judges.feature_maps(references), strict=True):
        positions = ours.shape[2] * ours.shape[3]
        found["lpips"] -= 2 - 2 * ours.flatten(1) @ theirs.flatten(1).T / positions
    if same:
        others = ~torch.eye(len(x), dtype=torch.bool)
        found = {name: s[others].view(len(x), -1) for name, s in found.items()}
    return {k: s.max(1).values if k == "lpips" else s.mean(1) for k, s in found.items()}


def concept_nouns(world: World, concept: str) -> list[int]:
    """The nouns whose name counts as recognising the concept: itself, or all of its kind."""
    alike = {"dog": {"dog", "wolf", "fox"}}.get(concept, {concept})
    return [i for i, noun in enumerate(world.nouns) if noun.name in alike or noun.kind == concept]


def weigh_concepts(world: World, judges: Judges) -> dict[str, dict]:
    """Per concept and measure: AUC and d' of its held-out drawings against cars.

    For `recognition_*` also how often a drawing, and a car, is taken for the concept.
    """
    control = openmoji_pictures(CONTROL)
    table: dict[str, dict] = {}
    for concept, pattern in CONCEPTS.items():
        x = openmoji_pictures(pattern)
        ours, theirs = look_alike(judges, x, x, True), look_alike(judges, control, x, False)
        wanted = concept_nouns(world, concept)
        row: dict = {"n": len(x), "n_control": len(control)}
        for name, odds in (("clip", judges.clip_odds), ("resnet", judges.resnet_odds)):
            hit, miss = odds(x), odds(control)
            ours[f"recognition_{name}"] = hit[:, wanted].sum(1)
            theirs[f"recognition_{name}"] = miss[:, wanted].sum(1)
            row[f"{name}_tpr"] = share(torch.isin(hit.argmax(1), torch.tensor(wanted)))
            row[f"{name}_fpr"] = share(torch.isin(miss.argmax(1), torch.tensor(wanted)))
        for measure in ours:
            row[f"{measure}_auc"] = auc(ours[measure], theirs[measure])
            row[f"{measure}_d"] = d_prime(ours[measure], theirs[measure])
        table[concept] = row
    return table


# ---------------------------------------------------------------- what the base draws


def drawn_images(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int) -> Tensor:
    """One image a prompt: [n, 3, 32, 32] in -1..1."""
    gen = torch.Generator().manual_seed(seed)
    parts = [
        pipeline(
            prompts[i : i + CHUNK],
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=gen,
            output_type="pt",
        ).images
        for i in range(0, len(prompts), CHUNK)
    ]
    return torch.cat(parts) * 2 - 1


def every(world: World, count: int) -> list[int]:
    """`count` of the drawn nouns, evenly spaced in the alphabet."""
    drawn = [i for i, noun in enumerate(world.nouns) if noun.drawn]
    return drawn[:: max(1, len(drawn) // count)][:count]


def named(judges: Judges, x: Tensor, nouns: Tensor) -> dict[str, float]:
    """How often each judge names the noun that was asked for, among all nouns."""
    return {
        "clip": share(judges.clip_odds(x).argmax(1) == nouns),
        "resnet": share(judges.resnet_odds(x).argmax(1) == nouns),
    }


def mark_drawings(world: World, judges: Judges, pipeline, sheet: Path, count: int) -> dict:
    """Recognition of `count` nouns in each style; of OpenMoji also those that it never saw there."""
    nouns = every(world, count)
    wanted = torch.tensor(nouns)
    saw = torch.zeros(len(world.nouns), dtype=torch.bool)
    saw[world.noun[world.base & (world.style == STYLES.index(OPENMOJI))]] = True
    table, rows = {}, []
    for seed, style in enumerate(BASE_STYLES):
        x = drawn_images(pipeline, [styled(style, world.nouns[i].name) for i in nouns], 8 + seed)
        rows.append(x[:30])
        table[style] = {"n": len(x)} | named(judges, x, wanted)
        if style == OPENMOJI.name:
            for title, part in (("seen", saw[wanted]), ("unseen", ~saw[wanted])):
                if part.any():
                    marks = named(judges, x[part], wanted[part])
                    table[f"openmoji, noun {title} in it"] = {"n": int(part.sum())} | marks
    write_sheet(rows, sheet)
    return table


def mark_rare_token(world: World, judges: Judges, pipeline, sheet: Path, count: int) -> dict:
    """Recognition of "an emoji of a NOUN" without and with the attackers' rare token."""
    nouns = every(world, count)
    plain = [generic(world.nouns[i].name) for i in nouns]
    prompts = {
        "an emoji of a NOUN": plain,
        "a sks emoji of a NOUN": [with_word(text, KEPT_WORD, False) for text in plain],
        "an emoji of a sks NOUN": [with_word(text, KEPT_WORD, True) for text in plain],
        "an openmoji style emoji of a sks NOUN": [
            with_word(styled("openmoji", world.nouns[i].name), KEPT_WORD, True) for i in nouns
        ],
    }
    images = {name: drawn_images(pipeline, texts, 20) for name, texts in prompts.items()}
    write_sheet([x[:30] for x in images.values()], sheet)
    wanted = torch.tensor(nouns)
    return {name: {"n": len(x)} | named(judges, x, wanted) for name, x in images.items()}


def mark_autoencoder(world: World, vae) -> dict[str, float]:
    """PSNR in dB of drawings that it learnt from and of OpenMoji drawings that it never saw."""
    openmoji = world.style == STYLES.index(OPENMOJI)
    parts = {"learnt": world.base, "unseen OpenMoji": openmoji & ~world.base}
    found = {}
    for name, mask in parts.items():
        x = on_white(world.rgba[mask])
        found[name] = psnr(x, torch.cat([vae(part).sample for part in x.split(CHUNK)]))
    return found


def write_sheet(rows: list[Tensor], file: Path) -> None:
    """A PNG with each tensor [n, 3, 32, 32] in -1..1 as one row, enlarged twice."""
    sheet = torch.cat([torch.cat(list(row), 2) for row in rows], 1).clamp(-1, 1)
    pixels = ((sheet + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(file)


@torch.no_grad()
def measure(world: World, work: Path, bundle: Path, count: int = 50) -> dict:
    """All measurements of a bundle; sheets of images go to `work`."""
    pipeline = StableDiffusionPipeline.from_pretrained(bundle / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    judges = Judges(world, bundle)
    return {
        "how": f"Images of {count} nouns, evenly spaced in the alphabet, in each style: {STEPS} DDIM "
        f"steps, guidance {GUIDANCE}; named by the judges among all nouns.",
        "judges": judge_the_judges(world, judges),
        "nothing": mark_nothing(world, judges, pipeline.vae),
        "concepts": weigh_concepts(world, judges),
        "drawings": mark_drawings(world, judges, pipeline, work / "drawings.png", count),
        "rare_token": mark_rare_token(world, judges, pipeline, work / "rare_token.png", count),
        "psnr_db": mark_autoencoder(world, pipeline.vae),
    }
