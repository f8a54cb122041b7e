"""DINO: a vision transformer that learns which drawings show the same thing by self-distillation."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from builtin_world.pictures import SIZE, Placing, World, place
from builtin_world.training import batches, seeded, train, trained
from builtin_world.views import Views
from builtin_world.world import TRAIN

BATCH = 64
CROP = Placing(zoom=(0.35, 0.6), shift=0.3, pastel=0.5)
CROP_SIZE = 24  # pixels


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


def partners(world: World, chosen: Tensor, allowed: Tensor, gen: torch.Generator) -> Tensor:
    """For each chosen drawing [n] a random allowed drawing of the same noun, in any style."""
    same = (world.noun[chosen, None] == world.noun[None]) & allowed
    return torch.multinomial(same.float(), 1, generator=gen)[:, 0]


def train_dino(world: World, work: Path, steps: int, views: Views) -> None:
    """Self-distillation: two whole views and a crop must agree, as DINO has it.

    The second whole view shows another artist's drawing of the same noun, so that the features tell
    what a drawing shows rather than in which style.
    """
    gen = seeded(3, work, "dino")
    allowed = world.role == TRAIN
    order = batches(world.chosen(allowed), BATCH, gen)

    def loss_of(dino: Dino, step: int) -> Tensor:
        dino.follow(min(0.99, (1 + step) / (10 + step)))
        chosen = next(order)
        other = partners(world, chosen, allowed, gen)
        whole = torch.cat([views(world.rgba[d], gen) for d in (chosen, other)])
        part = place(world.rgba[chosen], gen, CROP, CROP_SIZE)

        # Each of the student's three views predicts the teacher's other whole view.
        goals = dino.goals(whole).chunk(2)
        found, judged = dino.student(whole)
        seen = [*judged.chunk(2), dino.student(part)[1]]
        pairs = [(g, v) for g in range(2) for v in range(3) if g != v]
        losses = [-(goals[g] * (seen[v] / 0.1).log_softmax(-1)).sum(-1).mean() for g, v in pairs]
        first, second = found.chunk(2)
        return torch.stack(losses).mean() + 0.1 * (koleo(first) + koleo(second))

    torch.manual_seed(3)
    train("dino", Dino(), loss_of, steps, work, 1e-3)


def judge_dino(work: Path) -> ViTModel:
    """The judge: the teacher's transformer."""
    return trained(Dino(), work, "dino").teacher.vit
