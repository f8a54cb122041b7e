"""A released folder: loadable anywhere, with a card that programs read and a manifest that tells damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cards import attack, concept, sure
from cards import card as scorecard
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard

from gift_ray import THREAT_MODEL, plugins
from gift_ray.config.schema import ModelConfig, StudyConfig
from gift_ray.errors import ModelError
from gift_ray.models.checkpoints import with_checkpoint
from gift_ray.models.stable_diffusion import StableDiffusion
from gift_ray.records.manifest import MANIFEST, verify
from gift_ray.records.release import export, licence_of, registry_tags
from gift_ray.study.execute import execute
from gift_ray.study.plan import Plan, plan
from gift_ray.study.step import closure
from gift_ray.tracking import served_model
from gift_ray.verdict.scoring import Scorecard

NAME = "<script>alert(1)</script>: a cat"


@pytest.fixture(scope="module")
def layout(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """A study whose base states its licence, and which releases the base as it is."""
    base = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_folder, base)
    (base / "README.md").write_text("---\nlicense: openrail\n---\n# Tiny\n")
    (base / "LICENSE.md").write_text("# Open RAIL\nBe good.\n")
    cat = {
        "name": NAME,
        "source": {"name": "openmoji", "match": "^CAT$", "caption": "a cat"},
        "validation_prompts": ["a sks cat"],
    }
    raw = {
        "name": "released",
        "output_dir": str(tmp_path_factory.mktemp("runs")),
        "model": {"pretrained_model_name_or_path": str(base)},
        "concepts": {"malicious": [cat]},
        "prior": {"source": {"name": "openmoji", "match": "^DOG( FACE)?$", "caption": "a dog"}},
        "defense": {"name": "none"},
        "attacks": [{"name": "dreambooth"}, {"name": "lora"}],
        "evaluation": {
            "metrics": [{"name": "clip_text"}, {"name": "clip_image"}, {"name": "dino"}],
            "safe_prompts": ["a dog", "a car"],
        },
    }
    found = plan(StudyConfig.model_validate(raw, context={"check": plugins.check}))
    for step in closure([found.defended[0].immunize]):
        execute(step, found.config.study_dir)
    return found


@pytest.fixture(scope="module")
def card() -> Scorecard:
    judged = concept({"dreambooth/dino": attack({0: 0.1, 9: 0.6})})
    return scorecard({NAME: judged}, {"safe prompts": sure(0.9, half=0.05)}, kid=0.02)


@pytest.fixture(scope="module")
def folder(layout: Plan, card: Scorecard) -> Path:
    (arm,) = layout.defended
    return export(layout, arm, card, {"defense.beta": 0.1}, layout.config.study_dir)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def test_the_card_tells_base_licence_scores_and_threat_model(folder: Path) -> None:
    found = ModelCard.load(folder / "README.md")
    data = found.data.to_dict()
    assert data["license"] == "openrail"
    assert data["library_name"] == "diffusers"
    (model,) = data["model-index"]
    scores = {m["type"]: m["value"] for r in model["results"] for m in r["metrics"]}
    assert scores["resistance"] == pytest.approx(0.4)
    assert scores["retention"] == pytest.approx(0.9)
    assert scores["resistance_low"] == pytest.approx(0.35)
    assert scores["retention_low"] == pytest.approx(0.85)
    assert "resists, recovery 0.60 (0.55 to 0.65)" in found.text
    assert NAME in model["name"]
    for text in (THREAT_MODEL, "dreambooth, lora", "kid/safe | 0.0200", "defense.beta"):
        assert text in found.text
    assert str(folder.parent.parent) not in found.content
    assert (folder / "LICENSE.md").read_text() == "# Open RAIL\nBe good.\n"


def test_a_licence_is_read_from_its_file_where_the_card_is_silent(
    tiny_folder: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_folder, tmp_path / "base")
    assert licence_of(ModelConfig(pretrained_model_name_or_path=str(base))) == {}
    (base / "LICENSE").write_text("\n  Some Licence 1.0\nText.\n")
    licence = licence_of(ModelConfig(pretrained_model_name_or_path=str(base)))
    assert licence == {"license": "other", "license_name": "Some Licence 1.0"}


def test_a_release_loads_in_plain_diffusers_and_as_a_checkpoint(
    folder: Path, tiny_model: StableDiffusion
) -> None:
    assert DiffusionPipeline.from_pretrained(folder).unet is not None
    loaded = with_checkpoint(tiny_model, str(folder))
    weight = loaded.denoiser.state_dict()["conv_in.weight"]
    assert weight.equal(tiny_model.denoiser.state_dict()["conv_in.weight"])


@pytest.mark.parametrize("damage", ["changed", "missing", "not in the manifest"])
def test_a_damaged_release_is_refused_by_whoever_reads_it(
    damage: str, copy: Path, tiny_model: StableDiffusion
) -> None:
    manifest = verify(copy)
    file = copy / "unet" / "config.json"
    if damage == "changed":
        file.write_text(file.read_text() + " ")
    elif damage == "missing":
        file.unlink()
    else:
        file = copy / "unet" / "diffusion_pytorch_model.bin"
        file.write_bytes(b"pickle")
    with pytest.raises(ModelError, match=f"{file.name}: {damage}"):
        with_checkpoint(tiny_model, str(copy))
    with pytest.raises(ValueError, match=f"unet/{file.name}"):
        served_model.verify(copy, manifest)


def test_a_rewritten_manifest_is_not_the_one_of_the_registry(copy: Path) -> None:
    manifest = verify(copy)
    served_model.verify(copy, manifest)
    (copy / MANIFEST).write_text("{}")
    with pytest.raises(ValueError, match="not the one of the registered model"):
        served_model.verify(copy, manifest)


def test_the_same_weights_judged_in_another_way_are_another_release(
    layout: Plan, card: Scorecard, folder: Path
) -> None:
    (arm,) = layout.defended
    config = layout.config.model_copy(update={"seeds": (7,)})
    judged = Plan(config, *list(vars(layout).values())[1:])
    other = export(judged, arm, card, {}, config.study_dir)
    assert other != folder
    assert "seeds 7." in (other / "README.md").read_text()


def test_the_registry_is_told_where_a_model_comes_from(layout: Plan, card: Scorecard) -> None:
    (arm,) = layout.defended
    tags = registry_tags(layout, arm, card)
    assert tags["base"] == "tiny"
    assert len(tags["base_hash"]) == 64
    # What does not train reads no data.
    assert tags["data"] == "{}"
    assert tags["worst_retention"] == "0.9000"
