"""A study's configuration: what is immunized, against what, how it is attacked, measured, searched.

Frozen pydantic models; unknown keys are refused. `load_config` reports every mistake at once, one
line each, before anything is started or written. Plug-in options sit beside the plug-in's name
(`defense: {name: gift, beta: 0.1}`) and are checked by the plug-in's own options model.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qs, urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from gift_ray.config.names import each_once, given_words, looks, one_line
from gift_ray.config.searchable import mistake_in_path
from gift_ray.config.yaml_text import read_yaml
from gift_ray.errors import ConfigError

Check = Callable[[str, str, dict[str, Any]], list[tuple[str, str]]]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _several(prompts: tuple[str, ...]) -> tuple[str, ...]:
    if len(prompts) == 1:
        raise ValueError("give at least two different prompts: chance is measured between them")
    return prompts


EachOnce = AfterValidator(each_once)
Prompts = Annotated[
    tuple[str, ...], EachOnce, AfterValidator(given_words), AfterValidator(_several)
]


class Part(BaseModel):
    """A part of the configuration: immutable, and with no room for misspelt keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PluginMistakes(ValueError):
    """Mistakes found inside a plug-in's options: (option, message) pairs."""

    def __init__(self, mistakes: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(message for _, message in mistakes))
        self.mistakes = mistakes


class PluginConfig(BaseModel):
    """A plug-in by its file name, with its options beside the name."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: ClassVar[str]

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})

    def settings(self) -> list[dict[str, Any]]:
        """The options that this stands for: one setting, or several."""
        return [self.options]

    @model_validator(mode="after")
    def _check_options(self, info: ValidationInfo) -> PluginConfig:
        check: Check | None = (info.context or {}).get("check")
        found = (
            [check(self.kind, self.name, options) for options in self.settings()] if check else []
        )
        mistakes = list(dict.fromkeys(m for each in found for m in each))
        if mistakes:
            raise PluginMistakes(mistakes)
        return self


class SourceConfig(PluginConfig):
    """Where images come from: a file of `gift_ray/sources`."""

    kind = "sources"


class DefenseConfig(PluginConfig):
    """How the model is immunized: a file of `gift_ray/defenses`. `label` is its name in tables."""

    kind = "defenses"

    label: Annotated[str, AfterValidator(one_line)] | None = Field(None, max_length=80)

    @property
    def title(self) -> str:
        """What people call it: its label, a chain's members, or its name."""
        members = [DefenseConfig.model_validate(m).title for m in self.options.get("defenses", ())]
        return self.label or " + ".join(members) or self.name


class AttackConfig(PluginConfig):
    """How the attacker fine-tunes: a file of `gift_ray/attacks`.

    `label` is its name in tables and curves. `grid` stands for an attack at each combination of its values
    (`grid: {learning_rate: [5.0e-5, 1.0e-4], rank: [4, 8]}`); their worst case is what counts. Steps need
    no grid: images are drawn along every attack.
    """

    kind = "attacks"

    label: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-][A-Za-z0-9_. -]{0,79}$")
    grid: dict[str, Annotated[tuple[Any, ...], EachOnce, Field(min_length=1)]] = {}

    @property
    def title(self) -> str:
        return self.label or self.name

    def settings(self) -> list[dict[str, Any]]:
        return [member.options for member in self.members()]

    def members(self) -> list[AttackConfig]:
        """The attacks of the grid, each named by its values; one without a grid is its own only member."""
        if not self.grid:
            return [self]
        points = [
            dict(zip(self.grid, values, strict=True)) for values in product(*self.grid.values())
        ]
        return [
            AttackConfig.model_validate({"name": self.name, **self.options, **point, "label":
                " ".join([self.title, *(f"{key} {_in_letters(value)}" for key, value in point.items())])})
            for point in points
        ]  # fmt: skip

    @model_validator(mode="after")
    def _grid_is_of_other_options(self) -> AttackConfig:
        twice = sorted(self.grid.keys() & self.options.keys())
        if twice:
            raise ValueError(f"grid and the attack both set {twice[0]}; leave one of them out")
        return self


def _in_letters(value: Any) -> str:
    """A grid's value as part of a label."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", str(value))


def _attacks_differ(attacks: tuple[AttackConfig, ...]) -> tuple[AttackConfig, ...]:
    members = [member for attack in attacks for member in attack.members()]
    seen: list[tuple[str, dict[str, Any]]] = []
    for member in members:
        if (member.name, member.options) in seen:
            raise ValueError(f"{member.title!r} is there twice with the same options; remove one")
        seen.append((member.name, member.options))
    return attacks


Attacks = Annotated[tuple[AttackConfig, ...], AfterValidator(_attacks_differ), Field(min_length=1)]


class MetricConfig(PluginConfig):
    """What is measured on images: a file of `gift_ray/metrics`."""

    kind = "metrics"


def _metrics_differ(metrics: tuple[MetricConfig, ...]) -> tuple[MetricConfig, ...]:
    each_once(tuple(metric.name for metric in metrics))
    return metrics


class ModelConfig(Part):
    """The base model handed in. `builtin`, a local diffusers folder, or a hub id."""

    pretrained_model_name_or_path: str = "builtin"
    revision: str | None = None
    variant: str | None = None
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    gradient_checkpointing: bool = False
    resolution: Positive | None = Field(None, description="pixels; None: the model's own")


class ConceptConfig(Part):
    """One concept: where its images are, and the words for it on either side.

    `class_prompt` is the defender's caption of D_M, `instance_prompt` the attacker's of D_A (with a
    rare token, as DreamBooth does); None keeps each image's own caption. `validation_prompts` are
    what the attacked model is asked for, `neighbors` what must survive beside the concept.
    """

    name: Annotated[str, AfterValidator(one_line)] = Field(max_length=300)
    kind: Literal["object", "style", "unsafe"] = "object"
    source: SourceConfig
    attack_source: SourceConfig | None = Field(None, description="D_A; None: a split of source")
    class_prompt: str | None = None
    instance_prompt: str | None = None
    validation_prompts: Annotated[tuple[str, ...], EachOnce] = Field(min_length=1)
    neighbors: Prompts = ()
    max_images: int = Field(40, ge=2, description="in all, shared between D_M and D_A")


class MergeConfig(Part):
    """How models against one concept each become one (`concepts.mode: merge`); gift_ray/models/merge.py."""

    keys_and_values: Literal["solve", "average"] = "solve"
    ridge: float = Field(1e-3, gt=0, description="relative to the system's mean eigenvalue")
    preserve: float = Field(1.0, ge=0, description="weight of D_S's tokens beside each concept's")
    max_condition: float = Field(1e8, gt=1, description="the system is refused above it")
    scale: float = Field(1.0, gt=0, description="of the mean of changes; n concepts: n sums them")
    polish_steps: int = Field(
        0, ge=0, description="the defense's max_train_steps on all concepts, after merging; 0: none"
    )


class ConceptsConfig(Part):
    """What to block, what must stay learnable, and how many models: one for each malicious concept, one
    trained against all (`joint`), or one merged from those for each (`merge`)."""

    mode: Literal["joint", "per_concept", "merge"] = "per_concept"
    malicious: tuple[ConceptConfig, ...] = Field(min_length=1)
    safe: tuple[ConceptConfig, ...] = ()
    merge: MergeConfig = MergeConfig()
    added: Annotated[tuple[str, ...], EachOnce] = Field(
        (),
        description="malicious ones that the joint model of the others learns to resist afterwards",
    )
    added_steps: Positive | None = Field(None, description="for that; None: the defense's own")

    @model_validator(mode="after")
    def _names_are_unique(self) -> ConceptsConfig:
        names = [c.name for c in (*self.malicious, *self.safe)]
        alike = [looks(name) for name in names]
        for place, name in enumerate(names):
            other = names[alike.index(alike[place])]
            if other != name:
                raise ValueError(f"concept names {other!r} and {name!r} look alike; rename one")
            if names.index(name) < place:
                raise ValueError(f"concept name {name!r} is used twice; give each its own")
        malicious = {c.name for c in self.malicious}
        if self.added and (self.mode != "joint" or not set(self.added) < malicious):
            raise ValueError(
                f"added {list(self.added)} continues from a joint model: it needs mode joint, and some "
                f"but not all of the malicious concepts ({', '.join(sorted(malicious))})"
            )
        return self


class PriorConfig(Part):
    """D_S: the safe images of the prior-preservation loss."""

    source: SourceConfig


class EncodersConfig(Part):
    """What the metrics measure with: `builtin`, a folder, or a hub id (lpips: also alex, vgg, squeeze)."""

    clip: str = "builtin"
    dino: str = "builtin"
    lpips: str = "builtin"


class EvaluationConfig(Part):
    """How images are drawn for measuring, and with which encoders and metrics they are measured.

    `protocol: imma_legacy` shrinks all images to 64 px before they are measured, as IMMA's evaluation
    does (its mis-scaled inputs are not imitated); `standard` leaves them as they are.
    """

    protocol: Literal["standard", "imma_legacy"] = "standard"
    metrics: Annotated[tuple[MetricConfig, ...], AfterValidator(_metrics_differ)] = Field(
        min_length=1
    )
    encoders: EncodersConfig = EncodersConfig()
    safe_prompts: Prompts = Field(min_length=2)
    num_images_per_prompt: Positive = 4
    num_inference_steps: Positive = 25
    guidance_scale: float = Field(7.5, ge=1)
    batch_size: Positive = 16
    seed: int | None = Field(
        None, ge=0, description="of the images of models as they are; None: the study's"
    )


class ScoringConfig(Part):
    """From curves to (resistance, retention) to one objective; DESIGN section 7."""

    similarities: Annotated[tuple[str, ...], EachOnce] = Field(("clip_image", "dino"), min_length=1)
    objective: Literal["harmonic", "weighted_sum", "chebyshev"] = "harmonic"
    weight: Fraction = Field(0.5, description="of resistance; retention gets the rest")
    min_retention: Fraction = Field(0.8, description="the utility floor: below it, infeasible")


class Range(Part):
    """One searched option: a range (`low`, `high`, `log`, `integer`) or a list of `choices`.

    `num` is how many points of the range a grid takes. With `when` the option is searched only where
    the setting has these values: `when: {defense.name: gift}`, or a list of values.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    integer: bool = False
    num: int | None = Field(None, ge=2)
    choices: Annotated[tuple[Any, ...], EachOnce, Field(min_length=1)] | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Range:
        if (self.choices is None) == (self.low is None and self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.choices is None:
            if self.low is None or self.high is None or not self.low < self.high:
                raise ValueError(f"low must be below high (low={self.low}, high={self.high})")
            if self.log and self.low <= 0:
                raise ValueError(f"a log range needs low above 0 (low={self.low})")
            if self.integer and (self.low % 1 or self.high % 1):
                raise ValueError(f"integer needs whole ends (low={self.low}, high={self.high})")
        elif self.log or self.integer or self.num:
            raise ValueError("log, integer and num belong to a range, not to choices")
        return self

    def points(self) -> list[Any]:
        """What a grid tries: the choices, or `num` points from low to high."""
        if self.choices is not None:
            return list(self.choices)
        assert self.low is not None
        assert self.high is not None
        assert self.num is not None
        shares = [i / (self.num - 1) for i in range(self.num)]
        if self.log:
            # Both ends are met exactly.
            found = [self.low ** (1 - share) * self.high**share for share in shares]
        else:
            found = [self.low * (1 - share) + self.high * share for share in shares]
        return list(dict.fromkeys(round(x) for x in found)) if self.integer else found


class SearchConfig(Part):
    """What `jobs/sweep.py` searches; keys of `space` are dotted config paths (`defense.beta`).

    `pruner` ends trials whose partial score is hopeless: `bound` those that can't beat the best any
    more, `median` the worse half and `asha` all but the best third of those that came as far.
    `pareto` searches retention and resistance as two objectives instead of `scoring.objective`.
    `warm_start` names folders of earlier studies, whose trials the sampler is told first.
    """

    space: dict[str, Range] = Field(min_length=1)
    algorithm: Literal["tpe", "random", "grid"] = "tpe"
    num_samples: Positive = Field(8, description="trials; a grid is always run whole")
    max_concurrent_trials: Positive = 1
    pruner: Literal["none", "bound", "median", "asha"] = "none"
    pareto: bool = False
    warm_start: Annotated[tuple[str, ...], EachOnce] = ()
    budget_hours: float | None = Field(
        None, gt=0, description="of GPU where units have one, else of units: then no trial begins"
    )

    @field_validator("space")
    @classmethod
    def _is_of_the_defense(cls, space: dict[str, Range]) -> dict[str, Range]:
        mistakes = [(path, found) for path in space if (found := mistake_in_path(path))]
        if mistakes:
            raise PluginMistakes(mistakes)
        return space

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        bare = [path for path, option in self.space.items() if not (option.choices or option.num)]
        if self.algorithm == "grid":
            if bare:
                raise ValueError(f"a grid needs choices, or num points, for {', '.join(bare)}")
            if any(option.when for option in self.space.values()):
                raise ValueError("a grid has no conditions: remove when, or search with tpe")
            size = math.prod(len(option.points()) for option in self.space.values())
            self.__dict__["num_samples"] = size
        elif any(option.num for option in self.space.values()):
            raise ValueError(f"num is for algorithm grid, and this is {self.algorithm}")
        if self.pareto and self.pruner != "none":
            raise ValueError("a pruner compares one objective: set pruner: none, or pareto: false")
        return self


class ConfirmConfig(Part):
    """The best settings again, under attacks and seeds that the search never saw; the gate reads this.

    `seeds` are those of the attacks; the first also draws the images of the models as they are. `seed`
    gives the data split and the immunization another draw, and so releases another model; None keeps
    the weights that were found.
    """

    attacks: Attacks
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], EachOnce] = Field(min_length=1)
    seed: int | None = Field(None, ge=0)
    top_k: Positive = Field(
        1, description="settings of each released model; the best that passes wins"
    )


def _object_store(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(
            "is not an object store: give s3://bucket/folder, or leave it out and give output_dir a folder "
            "that all nodes mount"
        )
    if "@" in parts.netloc:
        raise ValueError(
            "holds a key, which every log would show; give it to the nodes' environment, as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return url


class ClusterConfig(Part):
    """What a unit asks of the cluster. Not part of any step's identity."""

    cpus_per_unit: float = Field(1, gt=0)
    gpus_per_unit: float = Field(0, ge=0)
    under_train: tuple[Literal["immunize", "attack"], ...] = ("immunize", "attack")
    workers_per_immunization: Positive = Field(
        1, description="data-parallel, each with a unit's resources; under Ray Train"
    )
    max_failures: int = Field(2, ge=0)
    checkpoint_every: Positive = Field(100, description="training steps between checkpoints")
    storage_path: Annotated[str, AfterValidator(_object_store)] | None = Field(
        None,
        description="where nodes that share no disk leave what they finish: s3://bucket/folder",
    )

    @model_validator(mode="after")
    def _workers_are_under_train(self) -> ClusterConfig:
        if self.workers_per_immunization > 1 and "immunize" not in self.under_train:
            raise ValueError(
                f"workers_per_immunization is {self.workers_per_immunization}, and only Ray Train runs "
                "several: add immunize to cluster.under_train"
            )
        return self


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    if parts.password or "password" in parse_qs(parts.query):
        raise ValueError(
            "holds a password, which every record and log would show; give it to MLflow alone, in "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a database: as PGPASSWORD)"
        )
    return uri


class TrackingConfig(Part):
    """Where MLflow keeps runs and models. None: an SQLite file inside the study's folder."""

    tracking_uri: Annotated[str, AfterValidator(_without_password)] | None = None
    experiment_name: str | None = Field(None, description="None: the study's name")
    registered_model_name: str | None = Field(None, description="None: gift-ray-<study>")


class GateConfig(Part):
    """The rule that a model must pass to be registered.

    At `min_resistance` 0 a model that was never immunized passes. `min_worst_retention` is of the worst
    probe: safe prompts, each concept's neighbors, each safe fine-tuning.
    """

    min_resistance: Fraction = 0.1
    min_retention: Fraction = 0.8
    min_worst_retention: Fraction = 0.0
    max_kid: float | None = Field(
        None, ge=0, description="of the images of safe prompts; needs kid"
    )


class ReportConfig(Part):
    """What the report shows. Images of concepts of kind `unsafe` are blurred until clicked."""

    images: Literal["all", "safe_only", "none"] = "all"


class StudyConfig(Part):
    """A whole study. `seeds` are those of the attacks; `seed` that of everything else."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    seed: int = Field(0, ge=0)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], EachOnce] = Field((0,), min_length=1)
    output_dir: str = "runs"
    model: ModelConfig = ModelConfig()
    concepts: ConceptsConfig
    prior: PriorConfig
    defense: DefenseConfig
    rivals: tuple[DefenseConfig, ...] = Field((), description="beside it in jobs/benchmark.py")
    attacks: Attacks
    evaluation: EvaluationConfig
    scoring: ScoringConfig = ScoringConfig()
    search: SearchConfig | None = None
    confirm: ConfirmConfig | None = None
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()
    gate: GateConfig = GateConfig()
    report: ReportConfig = ReportConfig()

    @model_validator(mode="after")
    def _references_resolve(self) -> StudyConfig:
        measured = [m.name for m in self.evaluation.metrics]
        if "clip_text" not in measured:
            raise ValueError(
                "evaluation.metrics needs clip_text: retention of safe prompts is measured by it"
            )
        for name in self.scoring.similarities:
            if name not in measured:
                raise ValueError(
                    f"scoring.similarities names {name!r}, which evaluation.metrics does not "
                    f"measure; measured: {', '.join(measured)}"
                )
        return self

    @model_validator(mode="after")
    def _gate_is_measured(self) -> StudyConfig:
        if self.gate.max_kid is not None and all(m.name != "kid" for m in self.evaluation.metrics):
            raise ValueError("gate.max_kid needs kid among evaluation.metrics; add {name: kid}")
        return self

    @model_validator(mode="after")
    def _confirmation_is_fresh(self) -> StudyConfig:
        if self.confirm is None:
            return self
        seen = {s for s in (self.seed, *self.seeds, self.evaluation.seed) if s is not None}
        stale = seen & {*self.confirm.seeds, self.confirm.seed}
        if stale:
            raise ValueError(
                f"confirm: seed {min(stale)} is one that the search sees; give seeds other than "
                f"{', '.join(map(str, sorted(seen)))}"
            )
        return self

    @property
    def study_dir(self) -> Path:
        """Absolute folder of this study (Ray changes the working directory of workers)."""
        return resolve_output_dir(self.output_dir) / self.name


def resolve_output_dir(output_dir: str) -> Path:
    """Absolute output folder; a relative one lies under $GIFT_RAY_HOME, else the working directory.

    Under `ray job submit --working-dir .` the working directory is a throw-away copy: there, a
    relative folder lies in the user's home instead.
    """
    home = os.environ.get("GIFT_RAY_HOME")
    base = Path(home) if home else Path.cwd()
    if not home and "_ray_pkg_" in str(base):
        base = Path.home() / "gift-ray"
    return (base / Path(output_dir).expanduser()).resolve()


def load_config(path: str | Path, overrides: list[str], *, check: Check) -> StudyConfig:
    """Read a YAML study and apply dotted overrides (`defense.beta=0.3`).

    Args:
        check: checks a plug-in's options; (kind, name, options) -> [(option, message)].

    Raises:
        ConfigError: every mistake of the file and the overrides, one line each.
    """
    raw = _read_yaml(Path(path))
    mistakes = [m for o in overrides if (m := apply_override(raw, o))]
    config, more = _validate(raw, check)
    if mistakes or more or config is None:
        raise ConfigError(*(f"{path}: {line}" for line in (*mistakes, *more)))
    # Absolute from here on: Ray changes the working directory of its workers.
    return config.model_copy(update={"output_dir": str(resolve_output_dir(config.output_dir))})


def with_values(config: StudyConfig, values: dict[str, Any], *, check: Check) -> StudyConfig:
    """The same study with some dotted paths set, as a search trial does."""
    changed, mistakes = _validate(settings(config, values), check)
    if changed is None:
        raise ConfigError(*mistakes)
    return changed


def settings(config: StudyConfig, values: dict[str, Any]) -> dict[str, Any]:
    """The study as plain JSON values with some dotted paths set, not validated."""
    raw = config.model_dump(mode="json")
    for path, value in values.items():
        _set_path(raw, path.split("."), value)
    return raw


def value_at(raw: Any, path: str) -> Any:
    """What stands at a dotted path; None if there is no such place."""
    for key in path.split("."):
        try:
            raw = raw[int(key)] if isinstance(raw, list) else raw[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return raw


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); give a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML: {detail}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must be a mapping of settings, got {type(raw).__name__}")
    return raw


def apply_override(raw: dict[str, Any], override: str) -> str | None:
    """Set one `dotted.path=YAML value` in place; returns the mistake, if it is one."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        return f"override {override!r}: write it as dotted.path=value, as defense.beta=0.3"
    try:
        value = read_yaml(text)
    except (yaml.YAMLError, ValueError):
        return f"override {override!r}: the value is not valid YAML"
    try:
        _set_path(raw, path.split("."), value)
    except (AttributeError, KeyError, IndexError, ValueError, TypeError):
        return f"override {override!r}: no such place in the configuration"
    return None


def _set_path(raw: Any, keys: list[str], value: Any) -> None:
    *parents, last = keys
    for key in parents:
        raw = raw[int(key)] if isinstance(raw, list) else raw.setdefault(key, {})
    if isinstance(raw, list):
        raw[int(last)] = value
    else:
        raw[last] = value


def _validate(raw: dict[str, Any], check: Check) -> tuple[StudyConfig | None, list[str]]:
    try:
        return StudyConfig.model_validate(raw, context={"check": check}), []
    except ValidationError as error:
        return None, list(_lines(error))


def _lines(error: ValidationError) -> Iterator[str]:
    """One line a mistake: the field, the value, what is allowed, what to do."""
    for field, message in mistakes_of(error, _fields_at):
        yield f"{field or 'study'}: {message}"


def mistakes_of(
    error: ValidationError, fields_at: Callable[[tuple[int | str, ...]], list[str]]
) -> Iterator[tuple[str, str]]:
    """(dotted field, message) of each mistake, those inside plug-ins' options included.

    Args:
        fields_at: the names that are valid where the last key of a location stands.
    """
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(
            _inside(other["loc"], item["loc"]) for other in items
        ):
            # Its entries are there but wrong: their own lines say so.
            continue
        field = ".".join(str(key) for key in item["loc"])
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, PluginMistakes):
            for option, message in cause.mistakes:
                yield f"{field}.{option}" if option else field, message
        else:
            yield field, explain(item, fields_at(item["loc"]))


def _inside(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def explain(item: Any, fields: list[str]) -> str:
    """A pydantic error item as one plain sentence with the value and the nearest valid key."""
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        near = difflib.get_close_matches(key, fields, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key; {hint}allowed: {', '.join(fields)}"
    if item["type"] == "missing":
        return "is missing; add it"
    if item["type"] == "string_type" and isinstance(item["input"], str | int | float | None):
        return f"{item['input']!r} is read as no text; put it in quotes"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return message
    return f"{item['input']!r} is not allowed: {message[0].lower()}{message[1:]}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields that are valid where the last key of `location` stands."""
    model: Any = StudyConfig
    for key in location[:-1]:
        if isinstance(key, int):
            continue
        field = model.model_fields.get(key) if hasattr(model, "model_fields") else None
        if field is None:
            return []
        model = part_of(field.annotation)
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def part_of(annotation: Any) -> Any:
    """The model inside `tuple[Model, ...]`, `Model | None`, `dict[str, Model]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = part_of(inner)
        if found is not None:
            return found
    return None
