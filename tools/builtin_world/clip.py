"""CLIP: an early stage whose text tower the pipeline keeps, and the judge that trains on from it."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from builtin_world.captions import (
    TOKENS,
    generic,
    make_captions,
    make_tokenizer,
    shortened,
    sprinkled,
    tokenise,
)
from builtin_world.classifier import enlarged
from builtin_world.pictures import SIZE, World
from builtin_world.training import batches, seeded, train, trained
from builtin_world.views import Views
from builtin_world.world import TRAIN

TEXT_BATCH, BATCH = 96, 96


def new_clip(tokenizer: CLIPTokenizer, patch: int) -> CLIPModel:
    """Two towers of 4 layers, width 128; pictures in patches of `patch` pixels."""
    tower = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4)
    text = tower | dict(
        vocab_size=len(tokenizer),
        max_position_embeddings=TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = tower | dict(image_size=SIZE, patch_size=patch, projection_dim=128)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


class ClipInTraining(nn.Module):
    """CLIP with a plain classifier of nouns on its image features, which is thrown away at the end.

    A vision transformer learns slowly from two thousand drawings; the classifier tells it directly
    which of them show the same thing, and can be taught by the ResNet.
    """

    def __init__(self, tokenizer: CLIPTokenizer, nouns: int, patch: int):
        super().__init__()
        self.clip = new_clip(tokenizer, patch)
        self.classifier = nn.Linear(128, nouns)

    def forward(self, read: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [n, 3, 32, 32] and what the text tower made of texts [m, 128].

        Returns their similarities [n, m], and logits of nouns [n, nouns].
        """
        seen = self.clip.vision_model(pixel_values=x).pooler_output
        image = F.normalize(self.clip.visual_projection(seen), dim=-1)
        text = F.normalize(self.clip.text_projection(read), dim=-1)
        return self.clip.logit_scale.exp() * image @ text.T, self.classifier(seen)


def load_tokenizer(world: World, work: Path, start: Path | None = None) -> CLIPTokenizer:
    """The tokenizer of all text towers, made once (or taken over with the text tower)."""
    if not (work / "tokenizer").exists():
        found = CLIPTokenizer.from_pretrained(start / "clip") if start else make_tokenizer(world)
        found.save_pretrained(work / "tokenizer")
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def contrast(similar: Tensor, true: Tensor) -> Tensor:
    """CLIP's loss where a caption (column) may be true of several pictures (rows)."""
    true = true.float()
    by_text = F.cross_entropy(similar.T, true.T / true.T.sum(1, keepdim=True))
    by_image = F.cross_entropy(similar, true / true.sum(1, keepdim=True))
    return (by_text + by_image) / 2


def train_text(world: World, work: Path, steps: int, start: Path | None = None) -> None:
    """The early CLIP, whose text tower the pipeline keeps; from nothing or from an earlier bundle."""
    torch.manual_seed(2)
    captions, tokenizer = make_captions(world), load_tokenizer(world, work, start)
    model = ClipInTraining(tokenizer, len(world.nouns), patch=4)
    if start:
        model.clip.load_state_dict(CLIPModel.from_pretrained(start / "clip").state_dict())
    views, gen = Views(), seeded(2, work, "text")
    order = batches(world.chosen(world.role == TRAIN), TEXT_BATCH, gen)

    def loss_of(model: ClipInTraining, step: int) -> Tensor:
        chosen = next(order)
        words = captions.pick(chosen, gen)
        texts = sprinkled([captions.texts[i] for i in words.tolist()], gen)
        ids = shortened(tokenise(tokenizer, texts), tokenizer)
        read = model.clip.text_model(input_ids=ids).pooler_output
        similar, guess = model(read, views(world.rgba[chosen], gen))
        loss = contrast(similar, captions.true_of(words, chosen, world).T)
        return loss + F.cross_entropy(guess, world.noun[chosen], label_smoothing=0.1)

    train("text", model, loss_of, steps, work, 3e-4 if start else 1e-3, decay=0.1)


def early_clip(world: World, work: Path) -> CLIPModel:
    """The CLIP of the text stage."""
    tokenizer = load_tokenizer(world, work)
    return trained(ClipInTraining(tokenizer, len(world.nouns), patch=4), work, "text").clip


def text_encoder(world: World, work: Path) -> CLIPTextModel:
    """The pipeline's text encoder: the early CLIP's text tower."""
    clip = early_clip(world, work)
    encoder = CLIPTextModel(clip.config.text_config).eval()
    encoder.load_state_dict(clip.text_model.state_dict())
    return encoder.requires_grad_(False)


def train_judge(world: World, work: Path, steps: int, views: Views, teacher: nn.Module) -> None:
    """The judge: a new vision tower learns to meet the early CLIP's texts.

    The text tower is locked (as LiT does it), so that all captions are encoded once. Besides the
    captions the ResNet teaches its answers to the same pictures.
    """
    torch.manual_seed(7)
    captions, tokenizer = make_captions(world), load_tokenizer(world, work)
    model = ClipInTraining(tokenizer, len(world.nouns), patch=8)
    model.clip.text_model.load_state_dict(early_clip(world, work).text_model.state_dict())
    model.clip.text_model.requires_grad_(False)
    with torch.no_grad():
        ids = tokenise(tokenizer, captions.texts)
        parts = [model.clip.text_model(input_ids=part).pooler_output for part in ids.split(256)]
        read = torch.cat(parts)
    names = torch.tensor([captions.texts.index(generic(noun.name)) for noun in world.nouns])
    gen = seeded(7, work, "clip")
    order = batches(world.chosen(world.role == TRAIN), BATCH, gen)

    def loss_of(model: ClipInTraining, step: int) -> Tensor:
        chosen = next(order)
        x = views(world.rgba[chosen], gen)
        words = captions.pick(chosen, gen)
        both = torch.cat([read[names], read[words]])  # all nouns, then a caption for each picture
        similar, guess = model(both, x)
        to_names, to_captions = similar[:, : len(names)], similar[:, len(names) :]
        with torch.no_grad():
            # Without the teacher's last class, which is of pictures that show no noun.
            taught = (teacher(enlarged(x)).logits[:, : len(world.nouns)] / 2).softmax(-1)
        noun = world.noun[chosen]
        loss = F.cross_entropy(to_names, noun, label_smoothing=0.1)
        loss = loss + F.cross_entropy(guess, noun, label_smoothing=0.1)
        loss = loss + contrast(to_captions, captions.true_of(words, chosen, world).T)
        return (
            loss
            + 4 * F.cross_entropy(guess / 2, taught)
            + 4 * F.cross_entropy(to_names / 2, taught)
        )

    train("clip", model, loss_of, steps, work, 1e-3, decay=0.1)


def judge_clip(world: World, work: Path) -> CLIPModel:
    """The judge, trained."""
    tokenizer = load_tokenizer(world, work)
    return trained(ClipInTraining(tokenizer, len(world.nouns), patch=8), work, "clip").clip
