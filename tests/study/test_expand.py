"""One entry for every concept of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import make_custom_concept_101

from gift_ray import plugins
from gift_ray.cli.command import main
from gift_ray.config.read_config import load_config
from gift_ray.config.schema import StudyConfig
from gift_ray.errors import ConfigError, DataError
from gift_ray.study.expand import each_concept

PAPER = Path(__file__).parents[2] / "configs" / "paper" / "objects.yaml"
SOURCE = "concepts.malicious.0.source"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return make_custom_concept_101(tmp_path / "customconcept101")


def study(*overrides: str) -> StudyConfig:
    return each_concept(load_config(PAPER, list(overrides), check=plugins.check))


def test_the_papers_objects_are_those_with_more_than_eight_images() -> None:
    (tortoise,) = study().concepts.malicious
    assert tortoise.name == "plushie_tortoise"
    assert tortoise.source.options["concept"] == "plushie_tortoise"
    assert tortoise.instance_prompt == "a photo of a sks tortoise plushie"
    assert tortoise.validation_prompts[0] == "a photo of a sks tortoise plushie on the beach"


def test_the_filter_is_an_option() -> None:
    concepts = study(f"{SOURCE}.min_images=3").concepts.malicious
    assert [c.name for c in concepts] == ["plushie_tortoise", "transport_car1"]
    source = plugins.build("sources", "custom_concept_101", concepts[1].source.options)
    assert len(source.images(None, None)) == 3


def test_a_dry_run_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    here = [
        "model={pretrained_model_name_or_path: builtin}",
        "evaluation.encoders={}",
        "cluster={}",
    ]
    assert main(["benchmark", str(PAPER), *here, f"{SOURCE}.min_images=3", "--dry-run"]) == 0
    assert "concepts: plushie_tortoise, transport_car1\n" in capsys.readouterr().out


def test_entries_beside_it_stay_as_they_are() -> None:
    written = load_config(PAPER, [], check=plugins.check)
    assert study().concepts.safe == written.concepts.safe
    assert study() == each_concept(study())


def test_one_name_for_several_is_refused() -> None:
    with pytest.raises(ConfigError, match="'thing' is used twice"):
        study("concepts.malicious.0.name=thing", f"{SOURCE}.min_images=2")


def test_a_data_set_without_any_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no concept has min_images 12; lower it"):
        study(f"{SOURCE}.min_images=12")
    (folder / "benchmark_dataset").rename(folder / "elsewhere")
    with pytest.raises(DataError, match=r"extract benchmark_dataset\.zip"):
        study()
