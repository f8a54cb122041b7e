"""The rebuild command on a tiny world of coloured squares: trains, resumes, exports, measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import never_known
import rebuild_builtin
from builtin_world.training import steps_done
from builtin_world.world import (
    STYLES,
    TRAIN,
    base_sees,
    judges_role,
    make_nouns,
    openmoji_kept_back,
)
from gift_ray.config.schema import ModelConfig
from gift_ray.models.builtin import NOTHING
from gift_ray.models.encoders import VisionEncoder
from gift_ray.models.families import base_model

NAMES = ["axe", "bear", "bus", "car", "cat", "cow", "hammer", "lion", "pizza", "rose"]
BASE, JUDGES = ["vae", "text", "unet"], ["resnet", "clip", "dino"]


def write_world(data: Path, spoil: str = "") -> None:
    """A world.pt of a few nouns as random squares; `spoil` makes NaN of what a party may not see."""
    gen = torch.Generator().manual_seed(0)
    nouns = make_nouns()
    kept_back = openmoji_kept_back(nouns)
    rows = [
        (n, s, base_sees(noun, style, kept_back), judges_role(noun.name, style, kept_back))
        for n, noun in enumerate(nouns)
        if noun.name in NAMES
        for s, style in enumerate(STYLES)
    ]
    noun, style, base, role = torch.tensor(rows).T
    rgba = torch.zeros(len(rows), 4, 32, 32)
    rgba[:, 3, 6:26, 6:26] = 1
    rgba[:, :3] = torch.rand(len(rows), 3, 1, 1, generator=gen) * rgba[:, 3:]
    hidden = {"": torch.zeros(len(rows)), "base": base == 0, "judges": role != TRAIN}[spoil]
    rgba[hidden.bool()] = float("nan")
    fields = {"rgba": rgba, "noun": noun, "style": style, "base": base.bool(), "role": role}
    data.mkdir(parents=True)
    torch.save(
        fields | {"more": rgba[base.bool()][:8], "names": ["grinning face"]}, data / "world.pt"
    )


def rebuild(folder: Path, stages: list[str], steps: int) -> None:
    """The command, in this process."""
    rebuild_builtin.main(
        [
            *("--data", str(folder / "data"), "--work", str(folder / "work")),
            *("--bundle", str(folder / "bundle"), "--prompts", "2"),
            *("--stages", *stages),
            *("--steps", *(f"{name}={steps}" for name in BASE + JUDGES)),
        ]
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle made in one go."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "data")
    rebuild(folder, [*BASE, *JUDGES, "export", "measure"], steps=1)
    return folder


def test_the_bundle_loads_as_the_package_loads_it(built: Path) -> None:
    folder = built / "bundle" / "pipeline"
    assert base_model(ModelConfig(pretrained_model_name_or_path=str(folder)))
    assert VisionEncoder(built / "bundle" / "lpips")
    labels = json.loads((built / "bundle" / "lpips" / "config.json").read_text())["id2label"]
    assert list(labels.values()) == [*(noun.name for noun in make_nouns()), NOTHING]


def test_the_card_carries_what_was_measured(built: Path) -> None:
    quality = json.loads((built / "bundle" / "quality.json").read_text())
    assert quality["steps"] == dict.fromkeys(BASE + JUDGES, 1)
    assert {"weapon", "cat"} <= set(quality["concepts"])
    assert "**Missed**" in (built / "bundle" / "README.md").read_text()
    known = json.loads((built / "bundle" / "nouns.json").read_text())["nouns"]
    assert known["axe"]["kind"] == "weapon"
    assert known["axe"]["base_never_saw"] == ["openmoji"]


def test_it_goes_on_from_its_checkpoints(built: Path) -> None:
    before = torch.load(built / "work" / "dino.pt", weights_only=True)["model"]
    rebuild(built, ["dino"], steps=1)
    after = torch.load(built / "work" / "dino.pt", weights_only=True)["model"]
    assert all(torch.equal(before[key], after[key]) for key in before)
    rebuild(built, ["dino"], steps=2)
    assert steps_done(built / "work", "dino") == 2


@pytest.mark.parametrize(("party", "stages"), [("base", ["vae", "unet"]), ("judges", JUDGES)])
def test_held_out_drawings_never_reach_a_batch(
    built: Path, tmp_path: Path, party: str, stages: list[str]
) -> None:
    """Held-out drawings are NaN here: one of them in a batch would make the weights NaN."""
    write_world(tmp_path / "data", spoil=party)
    (tmp_path / "work").mkdir()
    for name in ("vae.pt", "text.pt", "tokenizer"):
        if name.removesuffix(".pt") not in stages:
            (tmp_path / "work" / name).symlink_to(built / "work" / name)
    rebuild(tmp_path, stages, steps=3)
    for stage in stages:
        weights = torch.load(tmp_path / "work" / f"{stage}.pt", weights_only=True)["model"]
        assert all(torch.isfinite(w).all() for w in weights.values() if w.is_floating_point())


def test_a_base_that_never_saw_a_noun_has_drawings_of_it_in_no_batch(tmp_path: Path) -> None:
    """Drawings of the nouns that are hidden are NaN here; the others are learnt from."""
    write_world(tmp_path / "data")
    file = tmp_path / "data" / "world.pt"
    fields = torch.load(file, weights_only=True)
    hidden = [i for i, n in enumerate(make_nouns()) if n.name in never_known.NEVER_SHOWN]
    spoilt = torch.isin(fields["noun"], torch.tensor(hidden))
    assert 0 < spoilt.sum() < len(spoilt)
    fields["rgba"][spoilt] = float("nan")
    torch.save(fields, file)
    to = tmp_path / "base"
    never_known.main(["--data", str(tmp_path / "data"), "--to", str(to), "--steps", "2"])
    base = base_model(ModelConfig(pretrained_model_name_or_path=str(to)))
    assert all(torch.isfinite(w).all() for w in base.weights().values())


def test_weights_are_half_precision(built: Path) -> None:
    files = list((built / "bundle").rglob("*.safetensors"))
    assert len(files) >= 6, "the unet, the VAE, the text encoder and three judges"
    for file in files:
        kinds = {w.dtype for w in load_file(file).values() if w.is_floating_point()}
        assert kinds == {torch.float16}, file
