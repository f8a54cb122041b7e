"""The ResNet that names the noun: the judge `recognition`, and the backbone of LPIPS."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from builtin_world.nothing import nothings
from builtin_world.pictures import SIZE, World
from builtin_world.training import batches, channels_last, seeded, train, trained
from builtin_world.views import Views
from builtin_world.world import TRAIN
from gift_ray.models.builtin import NOTHING

BATCH = 64
# How many more of a batch show nothing at all.
EMPTY = 10


def new_resnet(world: World) -> ResNetForImageClassification:
    """A small ResNet for 64x64 inputs (32x32 pictures enlarged): one class per noun, and one for nothing."""
    names = dict(enumerate([*(noun.name for noun in world.nouns), NOTHING]))
    config = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 128, 192],
        depths=[1, 2, 2, 1],
        layer_type="basic",
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    return ResNetForImageClassification(config)


def enlarged(x: Tensor) -> Tensor:
    """Pictures [n, 3, 32, 32] at the size that the ResNet takes, [n, 3, 64, 64]."""
    return F.interpolate(x, size=2 * SIZE, mode="bicubic").clamp(-1, 1)


def mixed(x: Tensor, noun: Tensor, classes: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half of the pictures blended with another one, and what share of each noun they show.

    This is mixup: few drawings go a long way, and the classifier learns to be unsure.
    """
    order = torch.randperm(len(x), generator=gen)
    part = 0.4 * torch.rand(len(x), generator=gen) * (torch.rand(len(x), generator=gen) < 0.5)
    goal = F.one_hot(noun, classes).float()
    goal = goal * (1 - part[:, None]) + goal[order] * part[:, None]
    part = part[:, None, None, None]
    return x * (1 - part) + x[order] * part, goal


def train_resnet(world: World, work: Path, steps: int, views: Views) -> None:
    """Classify the nouns, whatever the style, and what shows none; the hidden states serve as perceptual
    features."""
    gen = seeded(4, work, "resnet")
    order = batches(world.chosen(world.role == TRAIN), BATCH, gen)

    def loss_of(resnet: ResNetForImageClassification, step: int) -> Tensor:
        chosen = next(order)
        x = views(world.rgba[chosen], gen)
        nothing = nothings(x[:EMPTY], views.vae, gen)
        x, goal = mixed(x, world.noun[chosen], len(world.nouns) + 1, gen)
        last = torch.full((len(nothing),), len(world.nouns))
        x = torch.cat([x, nothing])
        goal = torch.cat([goal, F.one_hot(last, goal.shape[1]).float()])
        seen = enlarged(x).to(memory_format=torch.channels_last)
        return F.cross_entropy(resnet(seen).logits, goal, label_smoothing=0.1)

    torch.manual_seed(4)
    train("resnet", channels_last(new_resnet(world)), loss_of, steps, work, 2e-3)


def judge_resnet(world: World, work: Path) -> ResNetForImageClassification:
    """The judge, trained."""
    return trained(new_resnet(world), work, "resnet")
