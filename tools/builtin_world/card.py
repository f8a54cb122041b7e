"""The card: README.md and quality.json of the bundle, written from what was measured."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from safetensors import safe_open

from builtin_world.export import publish
from builtin_world.pictures import World
from builtin_world.world import (
    ATTACKED_KINDS,
    ATTACKED_NOUNS,
    BASE_STYLES,
    CONTROL_NOUNS,
    STYLE_NAMES,
    STYLES,
)

CARD = """# The built-in miniature Stable Diffusion

A latent diffusion model of 32x32 pixel emoji in the standard diffusers layout, and judges that can
tell what its images show; small enough to immunize, attack and score on one CPU core. It is made for
demos and tests of GIFT, not for art.

{parts}

All weights are safetensors in fp16; the configs ask for float32. Rebuild with one command:
`python tools/rebuild_builtin.py --data DATA --work WORK` (npm must be on the path).

## Who has seen what

The base (vae, text_encoder, unet) draws {drawn} nouns in {n_base} styles: {base_styles}. The judges (clip,
dino, lpips) know {nouns} nouns in {n_styles} styles: {styles}.
Captions: "a noto style emoji of a cat", "an openmoji style emoji of a car", "an emoji of a cat",
"an emoji of an animal". The weapons are the stand-in for unsafe content.

- OpenMoji drawings of what the shipped studies attack, and of the cars that serve as their control,
  are seen by neither the base nor the judges, and nor is every third noun of every other kind. Attacks
  with OpenMoji therefore use real images that are new, in a style that the base knows. Attacked are
  the kinds {attacked_kinds}, and {attacked_nouns}; cars are {control}.
- Of every other style about one noun in eight is kept from the judges, as their test, and a few more
  as a validation slice. Styles that share their designs (fluent and flat) hold out the same nouns.
- `nouns.json` lists for each noun its kind, and which drawings the base and the judges never saw.
  Nouns of a kind are each other's neighbours.
- No model has read the attackers' rare token `sks`. A tenth of CLIP's captions and three tenths of
  the UNet's carried a random word of three or four letters, so that such a word leaves the rest of
  a prompt readable.

The nouns by kind; those in italics are known to the judges only:

{listing}

## Data and licences

{licences}

Names come from emoji.json of emoji-datasource (MIT) and unicode-emoji-json (MIT). Pictures were
reduced to 32x32 pixels, put on white or pastel ground and augmented; none is contained in this
folder. Weights trained on OpenMoji and EmojiOne drawings are shared under those sets' licence,
CC BY-SA 4.0: the pipeline (OpenMoji) and the judges (OpenMoji, EmojiOne).

## Recipe

- Autoencoder: L1 + MSE + 1e-6 KL on the base's drawings and on people and signs of noto, twemoji and
  fluent; random flip, zoom, shift, ground, contours and colours; slightly noisy latents. Latents are
  4x8x8, centred and of one spread per channel.
- Text encoder: the text tower of an early CLIP, trained contrastively on the judges' drawings.
- UNet: noise prediction, min-SNR-5 weights, 10 % empty captions, averaged weights, Stable
  Diffusion's noise schedule. White ground, no flips: each picture faces one way.
- ResNet (`lpips`): classifies the nouns at 64x64 pixels, with mixup. Its labels are the nouns, and
  `nothing` for pictures that show none, such as broken models draw.
- CLIP (`clip`): a new vision tower learns to meet the locked text tower of the early CLIP, from the
  names of all nouns, from captions that several pictures may share, and from the ResNet's answers.
  Vision patches of 8 pixels; 24 tokens a text, a vocabulary of {vocabulary:,}. The pipeline and the judge
  thus share the text tower; the judge's eyes are its own.
- DINO: self-distillation with DINOv2's balanced targets and spreading term; the second view is
  another artist's drawing of the same noun. Patches of 8 pixels.
- Augmentations of the judges: flip, zoom, turn, shift, ground, contours, colours, blur, noise, and
  round trips through the autoencoder.
- Steps: {steps}.
{history}
## Measured quality

Made by the `measure` stage. Judges are measured on drawings that they never saw.

### Do the judges read?

Share of held-out drawings named rightly, of {nouns} nouns. CLIP is used zero-shot over "an emoji of a
NOUN"; DINO takes the noun of the nearest drawing that the judges learnt. Targets: kind >= 95 %, noun
>= 90 %, for CLIP and ResNet in every style. {judges_verdict}

{judges}

Of {nothing[n]} pictures that show nothing, made of held-out drawings in the ways in which it learnt such
pictures, the ResNet takes {nothing[resnet]:.0%} for a noun. CLIP has no name for them, and must choose one.

### Can they tell a concept from its control?

OpenMoji drawings of a concept, each held against the others, against {n_control} drawings of cars. The
first number is AUC, the second d'; recognition is the probability of the concept's nouns, followed
by the share of drawings of the concept, and of cars, that are taken for the concept.
Target: AUC >= 0.95. {concepts_verdict}

{concepts}

### Does the base draw?

{guidance}
Target: >= 90 % in every style. CLIP: {drawings_clip} ResNet: {drawings_resnet}

{drawings}

### Does a rare token leave the prompt readable?

{rare_token}

### Autoencoder

PSNR {psnr_learnt} dB on drawings that it learnt from, {psnr_unseen} dB on OpenMoji that it never saw.
"""

HISTORY = """
The shipped vae, text encoder and unet did not begin from nothing but from the first built-in
world's weights (`--start`; its steps: vae 1,400, decoder 500, clip 530, unet 4,600). Those knew
noto, twemoji and fluent, also the drawings of them that now test the judges, and no OpenMoji. The
judges began from nothing, but for CLIP's text tower. They came about in several resumed runs: the
ResNet's first 1,700 steps knew no streamline drawings, its first 2,600 no pictures of nothing,
the unet's first 1,450 half as many random words. DINO's 300 steps were too few to tell nouns
apart, and CLIP's 1,000 to read as well as the ResNet, which is the judge to use for recognition.
A rebuild without `--start` trains everything from nothing, for more steps, and gives other
weights.
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(value: float) -> str:
    return f"{value:.0%}"


def verdict(values: list[float], target: float, what: str) -> str:
    """Whether all values reach the target, in a sentence."""
    missed = sum(value < target for value in values)
    return "All reach it." if not missed else f"**Missed** by {missed} of {len(values)} {what}."


def drawings_verdict(quality: dict, judge: str) -> str:
    """Whether the base's drawings are recognised often enough in each style."""
    return verdict([quality["drawings"][style][judge] for style in BASE_STYLES], 0.9, "styles")


def parameters(file: Path) -> int:
    """How many numbers a safetensors file holds."""
    with safe_open(file, "pt") as weights:
        slices = [weights.get_slice(key).get_shape() for key in weights.keys()]
    total = 0
    for shape in slices:
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def parts_table(bundle: Path) -> str:
    """The networks of the bundle and their sizes."""
    rows = []
    for file in sorted(bundle.rglob("*.safetensors")):
        config = json.loads((file.parent / "config.json").read_text())
        name = config.get("_class_name") or config["architectures"][0]
        folder = str(file.parent.relative_to(bundle))
        rows.append([folder, name, f"{parameters(file):,}", f"{file.stat().st_size / 1e6:.1f} MB"])
    return table(["folder", "what", "parameters", "size"], rows)


def judges_table(judges: dict) -> str:
    rows = [
        [style, str(row["n"])]
        + [
            percent(row[f"{judge}_{what}"])
            for judge in ("clip", "resnet", "dino")
            for what in ("noun", "kind")
        ]
        for style, row in judges.items()
    ]
    head = ["style", "n"] + [
        f"{j} {w}" for j in ("CLIP", "ResNet", "DINO") for w in ("noun", "kind")
    ]
    return table(head, rows)


MEASURES = ("clip_image", "dino", "lpips", "recognition_clip", "recognition_resnet")


def concepts_table(concepts: dict) -> str:
    rows = []
    for concept, row in concepts.items():
        cells = [f"{row[f'{m}_auc']:.2f}, {row[f'{m}_d']:.1f}" for m in MEASURES]
        for i, judge in ((3, "clip"), (4, "resnet")):
            cells[i] += f" ({percent(row[f'{judge}_tpr'])}, {percent(row[f'{judge}_fpr'])})"
        rows.append([concept, str(row["n"]), *cells])
    names = ["clip_image", "dino", "lpips", "recognition, CLIP", "recognition, ResNet"]
    return table(["concept", "n", *names], rows)


def named_table(rows: dict, what: str) -> str:
    return table(
        [what, "n", "named by CLIP", "named by ResNet"],
        [[k, str(r["n"]), percent(r["clip"]), percent(r["resnet"])] for k, r in rows.items()],
    )


def listing(world: World) -> str:
    """All nouns by kind, those of the judges alone in italics."""
    lines = []
    for kind in world.kinds:
        names = [n.name if n.drawn else f"*{n.name}*" for n in world.nouns if n.kind == kind]
        lines.append(f"- {kind}: {', '.join(names)}")
    return "\n".join(lines)


def write_card(world: World, bundle: Path, quality: dict, continued: bool) -> None:
    """README.md and quality.json of the bundle."""
    judges, concepts = quality["judges"], quality["concepts"]
    text = CARD.format(
        parts=parts_table(bundle),
        drawn=sum(noun.drawn for noun in world.nouns),
        nouns=len(world.nouns),
        n_base=len(BASE_STYLES),
        base_styles=", ".join(BASE_STYLES),
        n_styles=len(STYLES),
        styles=", ".join(STYLE_NAMES),
        attacked_kinds=", ".join(sorted(ATTACKED_KINDS)),
        attacked_nouns=", ".join(sorted(ATTACKED_NOUNS)),
        control=", ".join(sorted(CONTROL_NOUNS)),
        listing=listing(world),
        licences=table(
            ["style", "package", "licence and attribution"],
            [[s.name, f"{s.package} {s.version}", s.licence] for s in STYLES],
        ),
        vocabulary=json.loads((bundle / "clip" / "config.json").read_text())["text_config"][
            "vocab_size"
        ],
        steps=", ".join(f"{name} {n:,}" for name, n in quality["steps"].items()),
        history=HISTORY if continued else "",
        judges=judges_table(judges),
        judges_verdict=verdict(
            [row[f"{j}_noun"] / 0.90 for row in judges.values() for j in ("clip", "resnet")]
            + [row[f"{j}_kind"] / 0.95 for row in judges.values() for j in ("clip", "resnet")],
            1,
            "figures",
        ),
        nothing=quality["nothing"],
        n_control=next(iter(concepts.values()))["n_control"],
        concepts=concepts_table(concepts),
        concepts_verdict=verdict(
            [row[f"{m}_auc"] for row in concepts.values() for m in MEASURES], 0.95, "AUCs"
        ),
        guidance=quality["how"],
        drawings=named_table(quality["drawings"], "style"),
        drawings_clip=drawings_verdict(quality, "clip"),
        drawings_resnet=drawings_verdict(quality, "resnet"),
        rare_token=named_table(quality["rare_token"], "prompt"),
        psnr_learnt=quality["psnr_db"]["learnt"],
        psnr_unseen=quality["psnr_db"]["unseen OpenMoji"],
    )
    with tempfile.TemporaryDirectory(dir=bundle.parent) as folder:
        (Path(folder) / "README.md").write_text(text)
        (Path(folder) / "quality.json").write_text(json.dumps(quality, indent=2) + "\n")
        publish(Path(folder), bundle)
