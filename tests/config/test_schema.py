"""A study's configuration: every mistake is told at once, one line each, with what to do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from gift_ray import plugins
from gift_ray.config.read_config import load_config, with_values
from gift_ray.config.schema import StudyConfig, resolve_output_dir
from gift_ray.errors import ConfigError, ModelError
from gift_ray.study.load import load_study
from gift_ray.study.protocol import attack_names

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(ROOT.glob("configs/**/*.yaml"))
# Those in configs/cluster are of Ray and Kubernetes.
CONFIGS = [path for path in CONFIGS if path.parent.name != "cluster"]
STUDY: dict[str, Any] = {
    "name": "test",
    "concepts": {
        "malicious": [
            {
                "name": "cat",
                "source": {"name": "openmoji", "match": "^CAT", "caption": "a cat"},
                "validation_prompts": ["a cat"],
            }
        ]
    },
    "prior": {"source": {"name": "openmoji", "match": "TREE", "caption": "a tree"}},
    "defense": {"name": "gift", "beta": 0.1},
    "attacks": [{"name": "dreambooth", "max_train_steps": 10}],
    "evaluation": {
        "metrics": [{"name": n} for n in ("clip_text", "clip_image", "dino")],
        "safe_prompts": ["a tree", "a house"],
    },
}


@pytest.fixture
def study() -> dict[str, Any]:
    return copy.deepcopy(STUDY)


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(study: dict[str, Any] | str) -> Path:
        path = tmp_path / "study.yaml"
        path.write_text(study if isinstance(study, str) else yaml.safe_dump(study))
        return path

    return write


def load(path: Path, *overrides: str) -> StudyConfig:
    return load_config(path, list(overrides), check=plugins.check)


def mistakes(path: Path, *overrides: str) -> tuple[str, ...]:
    """The lines of a refusal, without the file's name that each begins with."""
    with pytest.raises(ConfigError) as error:
        load(path, *overrides)
    lines = error.value.mistakes
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in lines)
    return tuple(line.removeprefix(f"{path}: ") for line in lines)


def test_a_study_is_read_with_its_defaults(write: Any, study: dict[str, Any]) -> None:
    config = load(write(study))
    assert config.defense.options == {"beta": 0.1}
    assert config.model.pretrained_model_name_or_path == "builtin"
    assert config.concepts.malicious[0].source.options["match"] == "^CAT"


@pytest.mark.parametrize(
    ("override", "field", "near"),
    [
        ("sed=1", "sed", "seed"),
        ("evaluation.guidence_scale=2", "evaluation.guidence_scale", "guidance_scale"),
        ("defense.alpha_iner=1e-5", "defense.alpha_iner", "alpha_inner"),
        ("concepts.malicious.0.class_promt=x", "concepts.malicious.0.class_promt", "class_prompt"),
        ("defense.name=gif", "defense.name", "gift"),
        ("attacks.0.name=dreamboth", "attacks.0.name", "dreambooth"),
    ],
)
def test_a_misspelt_word_is_met_with_the_nearest_valid_one(
    override: str, field: str, near: str, write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study), override)
    assert line.startswith(f"{field}: ")
    assert f"did you mean {near!r}" in line


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("defense.alpha_inner=-1e-5", "defense.alpha_inner"),
        ("defense.alpha_outer=.inf", "defense.alpha_outer"),
        ("defense.beta=.nan", "defense.beta"),
        ("defense.noise_target=fixed", "defense.noise_target"),
        ("attacks.0.max_train_steps=0", "attacks.0.max_train_steps"),
        ("scoring.min_retention=1.5", "scoring.min_retention"),
        ("seeds=[]", "seeds"),
        ("name=../up", "name"),
        ("concepts.malicious.0.max_images=1", "concepts.malicious.0.max_images"),
        ("concepts.malicious.0.neighbors=[a dog]", "concepts.malicious.0.neighbors"),
        ("evaluation.safe_prompts=[a, a]", "evaluation.safe_prompts"),
        ("prior.source.match=(", "prior.source.match"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_in_its_place(
    override: str, field: str, write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study), override)
    assert line.startswith(f"{field}: ")


def test_a_missing_folder_is_refused_in_its_place(write: Any, study: dict[str, Any]) -> None:
    study["prior"]["source"] = {"name": "folder", "path": "/no/such/folder"}
    (line,) = mistakes(write(study))
    assert (
        line == "prior.source.path: '/no/such/folder' is not a folder; give one that holds images"
    )


def test_all_mistakes_are_told_at_once(write: Any, study: dict[str, Any]) -> None:
    study["colour"] = "red"
    study["defense"] |= {"alpha_inner": -1, "betta": 0.1}
    study["concepts"]["malicious"][0]["validation_prompts"] = []
    del study["evaluation"]["safe_prompts"]
    lines = mistakes(write(study), "no-equals-sign", "attacks.9.x=1")
    fields = [
        "override 'no-equals-sign'", "override 'attacks.9.x=1'", "colour", "defense.alpha_inner",
        "defense.betta", "concepts.malicious.0.validation_prompts", "evaluation.safe_prompts",
    ]  # fmt: skip
    assert sorted(line.partition(": ")[0] for line in lines) == sorted(fields)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"scoring": {"judges": ["lpips"], "least_auc": 0, "least_rise": 0}},
            "names 'lpips', which evaluation.metrics",
        ),
        ({"evaluation": {"metrics": [{"name": "dino"}], "safe_prompts": ["a", "b"]}}, "clip_text"),
        (
            {"concepts": {"malicious": STUDY["concepts"]["malicious"] * 2}},
            "concept name 'cat' is used twice",
        ),
        ({"gate": {"max_kid": 0.1}}, "gate.max_kid needs kid among evaluation.metrics"),
        (
            {"seeds": [3, 4], "confirm": {"seeds": [7, 4], "attacks": [{"name": "lora"}]}},
            "confirm: seed 4 is one that the search sees; give seeds other than 0, 3, 4",
        ),
        (
            {"seed": 5, "confirm": {"seeds": [7], "seed": 5, "attacks": [{"name": "lora"}]}},
            "confirm: seed 5 is one that the search sees",
        ),
        ({"cluster": {"workers_per_immunization": 2, "under_train": []}}, "add immunize to"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(
    change: dict[str, Any], text: str, write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study | change))
    assert text in line


@pytest.mark.parametrize(
    "uri", ["http://me:s3cret@host:5000", "postgresql://host/runs?user=me&password=s3cret"]
)
def test_a_password_is_refused_and_not_repeated(
    uri: str, write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study), f"tracking.tracking_uri={uri}")
    assert line.startswith("tracking.tracking_uri: holds a password")
    assert "s3cret" not in line


@pytest.mark.parametrize("text", ["", "- a list", "a: [1", "\x00"])
def test_a_file_that_is_not_a_mapping_is_refused(text: str, write: Any) -> None:
    assert len(mistakes(write(text))) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "can't be read" in mistakes(tmp_path / "none.yaml")[0]


def test_exponents_are_numbers_in_the_file_and_in_overrides(write: Any) -> None:
    path = write(yaml.safe_dump(STUDY).replace("beta: 0.1", "beta: 5e-5"))
    assert "5e-5" in path.read_text()
    config = load(path, "attacks.0.learning_rate=2e-4")
    assert config.defense.options["beta"] == 5e-5
    assert config.attacks[0].options["learning_rate"] == 2e-4


def test_overrides_reach_into_parts_lists_and_new_options(
    write: Any, study: dict[str, Any]
) -> None:
    config = load(
        write(study), "defense.beta=0.3", "seeds=[1, 2]", "concepts.malicious.0.kind=style",
        "attacks.0.max_train_steps=7", "cluster.cpus_per_unit=2", "model.revision=null",
    )  # fmt: skip
    assert config.defense.options["beta"] == 0.3
    assert config.seeds == (1, 2)
    assert config.concepts.malicious[0].kind == "style"
    assert config.attacks[0].options == {"max_train_steps": 7}
    assert config.cluster.cpus_per_unit == 2


@pytest.mark.parametrize(
    "override", ["name.x.y=1", "name.x=1", "attacks.5.x=1", "attacks.first.x=1"]
)
def test_an_override_of_no_place_is_refused(
    override: str, write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study), override)
    assert line == f"override {override!r}: no such place in the configuration"


def test_values_can_be_set_without_touching_the_original(write: Any, study: dict[str, Any]) -> None:
    config = load(write(study))
    changed = with_values(
        config, {"defense.beta": 0.7, "attacks.0.learning_rate": 1e-3}, check=plugins.check
    )
    assert changed.defense.options == {"beta": 0.7}
    assert config.defense.options == {"beta": 0.1}
    assert with_values(config, {}, check=plugins.check) == config
    with pytest.raises(ConfigError, match="did you mean 'beta'"):
        with_values(config, {"defense.betta": 1}, check=plugins.check)


def search(path: str, **ends: Any) -> dict[str, Any]:
    return {"search": {"space": {path: ends}}}


@pytest.mark.parametrize(
    "path", ["defense.betta", "defense.colour.red", "concepts.merge.rigde", "defense.name.x"]
)
def test_a_search_of_an_option_that_is_not_there_is_refused(
    path: str, write: Any, study: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as error:
        load_study(write(study | search(path, low=0.1, high=0.2)), [])
    assert len(error.value.mistakes) == 2
    assert all(f"search.space: {path} = " in line for line in error.value.mistakes)


@pytest.mark.parametrize(
    ("ends", "bad"),
    [({"low": -1, "high": 1}, "-1"), ({"choices": ["alternate", "both"]}, "both")],
)
def test_a_search_whose_end_is_not_allowed_is_refused(
    ends: dict[str, Any], bad: str, write: Any, study: dict[str, Any]
) -> None:
    path = "defense.coordination" if "choices" in ends else "defense.beta"
    with pytest.raises(ConfigError) as error:
        load_study(write(study | search(path, **ends)), [])
    (line,) = error.value.mistakes
    assert line.startswith(f"search.space: {path} = {bad}")


@pytest.mark.parametrize(
    "ends",
    [{}, {"low": 1}, {"low": 2, "high": 1}, {"low": 0, "high": 1, "log": True},
     {"low": 0, "high": 1, "choices": [1]}],
)  # fmt: skip
def test_a_search_needs_a_range_or_choices(
    ends: dict[str, Any], write: Any, study: dict[str, Any]
) -> None:
    (line,) = mistakes(write(study | search("defense.beta", **ends)))
    assert line.startswith("search.space.defense.beta: ")


@pytest.mark.parametrize("model", ["/no/such/folder", "./nowhere", "not a model"])
def test_a_model_that_is_not_there_is_refused(
    model: str, write: Any, study: dict[str, Any]
) -> None:
    path = write(study | {"model": {"pretrained_model_name_or_path": model}})
    with pytest.raises(ModelError, match=r"^model\.pretrained_model_name_or_path: .* not a folder"):
        load_study(path, [])


def test_a_hub_model_without_a_network_is_refused(write: Any, study: dict[str, Any]) -> None:
    path = write(study | {"model": {"pretrained_model_name_or_path": "nobody/nothing"}})
    with pytest.raises(ModelError, match="neither in the local cache nor reachable") as error:
        load_study(path, [])
    assert len(error.value.mistakes) == 1
    assert "\n" not in str(error.value)


def test_a_relative_output_lies_under_home_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIFT_RAY_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_output_dir("runs") == tmp_path / "runs"
    monkeypatch.setenv("GIFT_RAY_HOME", str(tmp_path / "home"))
    assert resolve_output_dir("runs") == tmp_path / "home" / "runs"
    assert resolve_output_dir("/elsewhere") == Path("/elsewhere")


def test_a_throw_away_working_directory_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "_ray_pkg_0123"
    copy.mkdir()
    monkeypatch.delenv("GIFT_RAY_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.chdir(copy)
    assert resolve_output_dir("runs") == tmp_path / "user" / "gift-ray" / "runs"


def test_there_are_studies_to_start_from() -> None:
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_study_that_we_ship_can_be_read(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one data set that a study expects beside it: it may not be shipped.
    (tmp_path / "customconcept101").mkdir()
    (tmp_path / "customconcept101" / "dataset.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    config = load_config(path, [], check=plugins.check)
    # What the file's own header says to run needs a space to search.
    if "sweep" in next(line for line in path.read_text().splitlines() if line.startswith("# Run:")):
        assert config.search is not None


def test_a_grid_stands_for_an_attack_at_each_combination(write: Any, study: dict[str, Any]) -> None:
    study["attacks"] = [
        {"name": "lora", "max_train_steps": 9, "grid": {"rank": [4, 8], "learning_rate": ["1e-3"]}},
        {"name": "dreambooth"},
    ]
    config = load(write(study))
    assert {name: attack.options for name, attack in attack_names(config).items()} == {
        "lora learning_rate 0.001 rank 4": {"max_train_steps": 9, "rank": 4, "learning_rate": 1e-3},
        "lora learning_rate 0.001 rank 8": {"max_train_steps": 9, "rank": 8, "learning_rate": 1e-3},
        "dreambooth": {},
    }


def test_every_point_of_a_grid_is_checked(write: Any, study: dict[str, Any]) -> None:
    study["attacks"] = [
        {"name": "lora", "grid": {"rank": [4, 0], "learning_rat": [1e-3]}},
        {"name": "lora", "rank": 4, "grid": {"rank": [8]}},
        {"name": "dreambooth", "grid": {"learning_rate": []}},
    ]
    found = "\n".join(mistakes(write(study)))
    assert "attacks.0.rank: 0 is not allowed: input should be greater than 0" in found
    assert "attacks.0.learning_rat: unknown key; did you mean 'learning_rate'?" in found
    assert "grid and the attack both set rank" in found
    assert "attacks.2.grid.learning_rate" in found


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"algorithm": "grid"}, "a grid needs choices, or num points, for defense.beta"),
        ({"num": 3}, "num is for algorithm grid"),
        ({"integer": True, "low": 0.5}, "integer needs whole ends"),
        ({"pareto": True, "pruner": "asha"}, "a pruner compares one objective"),
        ({"algorithm": "grid", "num": 3, "when": {"seed": 0}}, "a grid has no conditions"),
    ],
)
def test_a_search_that_does_not_fit_together_is_refused(
    changes: dict[str, Any], part: str, write: Any, study: dict[str, Any]
) -> None:
    names = ("algorithm", "pareto", "pruner")
    ends = {"low": 0.0, "high": 1.0} | {k: v for k, v in changes.items() if k not in names}
    search = {"space": {"defense.beta": ends}} | {k: v for k, v in changes.items() if k in names}
    (line,) = mistakes(write(study | {"search": search}))
    assert part in line


def test_a_range_over_a_number_of_steps_must_be_whole(write: Any, study: dict[str, Any]) -> None:
    path = write(study | search("defense.max_train_steps", low=10, high=90))
    with pytest.raises(ConfigError, match=r"search.space: defense.max_train_steps = 56\.18"):
        load_study(path, [])
    load_study(path, ["search.space={defense.max_train_steps: {low: 10, high: 90, integer: true}}"])


def test_a_condition_that_never_holds_is_refused(write: Any, study: dict[str, Any]) -> None:
    ends = {"low": 0.1, "high": 0.2, "when": {"defense.name": "imma"}}
    with pytest.raises(ConfigError, match="holds in no setting"):
        load_study(write(study | search("defense.beta", **ends)), [])


def test_an_option_that_a_choice_does_not_have_needs_a_condition(
    write: Any, study: dict[str, Any]
) -> None:
    defenses = {"choices": [{"name": "gift"}, {"name": "esd"}]}
    beta = {"low": 0.1, "high": 0.2}
    with pytest.raises(ConfigError, match=r"defense.beta = 0.1 is not possible"):
        load_study(
            write(study | {"search": {"space": {"defense": defenses, "defense.beta": beta}}}), []
        )
    beta |= {"when": {"defense.name": "gift"}}
    load_study(
        write(study | {"search": {"space": {"defense": defenses, "defense.beta": beta}}}), []
    )


def test_a_search_over_beta_is_one_line(write: Any, study: dict[str, Any]) -> None:
    line = "search={algorithm: grid, space: {defense.beta: {low: 0.05, high: 0.3, num: 5}}}"
    config = load_study(write(study), [line])
    assert config.search is not None
    assert config.search.num_samples == 5
