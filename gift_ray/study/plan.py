"""A study as a set of steps. A step is a frozen value; its fingerprint is its identity and names its
folder, so that doing it twice is a no-op and whatever did not change is never computed again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gift_ray import plugins
from gift_ray.config.names import told_apart
from gift_ray.config.schema import (
    AttackConfig,
    ConceptConfig,
    DefenseConfig,
    EvaluationConfig,
    MetricConfig,
    PluginConfig,
    StudyConfig,
)
from gift_ray.models import locate
from gift_ray.models.encoders import locate_encoder
from gift_ray.records.record import digest

# Raised when a stage's meaning changes: every step of the kind is then computed anew.
VERSIONS = {
    "prepare_concept": 1, "prepare_prior": 1, "immunize": 1, "merge": 1, "attack": 1, "sample": 1,
    "evaluate": 1, "evaluate_references": 1,
}  # fmt: skip
# Raised when immunizing against several concepts at once changes its meaning, and against one doesn't.
SEVERAL = 2
# The kinds that are given a journal: a log, and checkpoints.
JOURNALED = ("immunize", "attack")
UNDEFENDED = DefenseConfig(name="none")


@dataclass(frozen=True)
class Step:
    """One unit of work.

    `spec` holds what the stage is called with, `identity` what makes two steps the same (no paths, no
    worker counts), `inputs` the steps it reads. `label` is for people. `trains` marks long training.
    """

    kind: str
    label: str
    spec: Mapping[str, Any]
    identity: Mapping[str, Any]
    inputs: Mapping[str, Step] = field(default_factory=dict)
    trains: bool = False

    @functools.cached_property
    def full_identity(self) -> dict[str, Any]:
        """Kind, version, own identity and the fingerprints of the inputs."""
        return {
            "kind": self.kind,
            "version": VERSIONS[self.kind],
            **self.identity,
            "inputs": {name: step.fingerprint for name, step in sorted(self.inputs.items())},
        }

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the identity."""
        return digest(self.full_identity)

    @property
    def name(self) -> str:
        """Name of the step's folder."""
        return f"{self.kind}-{self.fingerprint[:16]}"

    def folder(self, study_dir: Path) -> Path:
        """Where the finished step lies."""
        return study_dir / "steps" / self.name

    def checkpoint(self, study_dir: Path) -> Path:
        """Where the running step keeps its latest checkpoint."""
        return study_dir / "checkpoints" / f"{self.name}.safetensors"


@dataclass(frozen=True)
class Arm:
    """One released model and everything that is measured on it.

    `immunize` leaves the model: an immunize or a merge step. `malicious` are the concepts that it is
    to resist; an attack on any other than these and the safe ones is for the matrix alone.
    `attacks` maps (concept, attack label, seed) to the evaluate step of its curve; `samples` maps a
    prompt group (`safe`, `neighbors/<concept>`) to the evaluate step of unattacked images.
    """

    label: str
    immunize: Step
    malicious: tuple[str, ...]
    attacks: Mapping[tuple[str, str, int], Step]
    samples: Mapping[str, Step]

    def steps(self) -> list[Step]:
        """Every step of the arm, inputs first."""
        return closure([self.immunize, *self.attacks.values(), *self.samples.values()])


@dataclass(frozen=True)
class Plan:
    """All that a study computes: the undefended arm, the defended ones, the chance levels, and how
    alike each concept's real images are (`references`)."""

    config: StudyConfig
    undefended: Arm
    defended: tuple[Arm, ...]
    chance_similarity: Mapping[str, Step]
    chance_prompt: Mapping[str, Step]
    references: Mapping[str, Step]

    def shared(self) -> list[Step]:
        """What no defense option changes: prepared data, the undefended arm, the levels."""
        ends = [
            *self.undefended.steps(),
            *self.chance_similarity.values(),
            *self.chance_prompt.values(),
            *self.references.values(),
        ]
        reads = closure(arm.immunize for arm in self.defended)
        return closure([*ends, *(step for step in reads if step.kind.startswith("prepare_"))])

    def steps(self) -> list[Step]:
        """Every step, inputs first."""
        return closure([*self.shared(), *(step for arm in self.defended for step in arm.steps())])


def closure(steps: Iterable[Step]) -> list[Step]:
    """The steps and everything they read, each once, inputs before their readers."""
    found: dict[str, Step] = {}

    def visit(step: Step) -> None:
        if step.fingerprint not in found:
            for other in step.inputs.values():
                visit(other)
            found[step.fingerprint] = step

    for step in steps:
        visit(step)
    return list(found.values())


def plan(config: StudyConfig, *, matrix: bool = False) -> Plan:
    """Lay out a study. Pure but for hashing the model and the sources' files.

    Args:
        matrix: attack every model with every malicious concept, and draw all concepts' neighbours, not
            only with and of those that it is immunized against.
    """
    base = locate.identity(config.model)
    prior = _prior_step(config, base)
    concepts = {
        c.name: _concept_step(config, c, base)
        for c in (*config.concepts.malicious, *config.concepts.safe)
    }
    malicious = tuple(c.name for c in config.concepts.malicious)
    alone = config.concepts.mode == "per_concept"
    groups = [(name,) for name in malicious] if alone else [malicious]

    nothing = _immunize_step(config, "undefended", UNDEFENDED, malicious, concepts, prior)
    undefended = _arm(config, "undefended", nothing, malicious, malicious, concepts, None)
    defended = tuple(
        _arm(
            config, _against(config, group), _released(config, group, concepts, prior), group,
            malicious if matrix else group, concepts, undefended,
        )
        for group in groups
    )  # fmt: skip

    # Chance levels, both from the base's images of the safe prompts: their agreement with a concept
    # that they don't show (its images and its prompts), and with prompts that they weren't drawn from.
    safe = undefended.samples["safe"].inputs["images"]
    chance_similarity = {
        c.name: _evaluate_step(
            config, f"chance {c.name}", safe, concepts[c.name],
            prompts=_fill(c.validation_prompts, len(safe.spec["prompts"])),
        )
        for c in (*config.concepts.malicious, *config.concepts.safe)
    }  # fmt: skip
    chance_prompt = {
        group: _evaluate_step(
            config, f"chance prompts {group}", step.inputs["images"], None,
            prompts=_rolled(step.inputs["images"].spec["prompts"]),
        )
        for group, step in undefended.samples.items()
    }  # fmt: skip
    references = {name: _references_step(config, name, step) for name, step in concepts.items()}
    return Plan(config, undefended, defended, chance_similarity, chance_prompt, references)


def _concept_step(config: StudyConfig, concept: ConceptConfig, base: dict[str, Any]) -> Step:
    sources = {"source": _source_identity(concept.source, base)}
    if concept.attack_source is not None:
        sources["attack_source"] = _source_identity(concept.attack_source, base)
    words = concept.model_dump(
        mode="json", include={"name", "class_prompt", "instance_prompt", "max_images"}
    )
    return Step(
        kind="prepare_concept",
        label=f"prepare {concept.name}",
        spec={
            "concept": concept.model_dump(mode="json"),
            "model": _dump(config.model),
            "seed": config.seed,
        },
        identity={**words, **sources, "model": base, "seed": config.seed},
    )


def _prior_step(config: StudyConfig, base: dict[str, Any]) -> Step:
    return Step(
        kind="prepare_prior",
        label="prepare D_S",
        spec={"prior": _dump(config.prior), "model": _dump(config.model), "seed": config.seed},
        identity={
            "source": _source_identity(config.prior.source, base),
            "model": base,
            "seed": config.seed,
        },
    )


def _source_identity(source: PluginConfig, base: dict[str, Any]) -> dict[str, Any]:
    plugin: plugins.Source = plugins.build("sources", source.name, source.options)
    return {**plugin.identity(), "content": plugin.content()}


def _against(config: StudyConfig, group: Sequence[str]) -> str:
    return f"{config.defense.title} against {', '.join(group)}"


def _released(
    config: StudyConfig, group: tuple[str, ...], concepts: dict[str, Step], prior: Step
) -> Step:
    """The step that leaves the model against a group of concepts."""
    mode = config.concepts.mode
    if len(group) > 1 and _plugin(config.defense).trains:
        if mode == "merge":
            return _merged(config, group, concepts, prior)
        if config.concepts.added:
            return _continued(config, group, concepts, prior)
    label = _against(config, group)
    return _immunize_step(config, label, config.defense, group, concepts, prior)


def _merged(
    config: StudyConfig, group: tuple[str, ...], concepts: dict[str, Step], prior: Step
) -> Step:
    """Merge the models of per_concept mode (by fingerprint: who has them merges in seconds), and polish
    the result if asked for."""
    options = config.concepts.merge
    models = {
        f"model/{name}": _immunize_step(
            config, _against(config, (name,)), config.defense, (name,), concepts, prior
        )
        for name in group
    }
    merged = Step(
        kind="merge",
        label=f"merge {_against(config, group)}",
        spec={"merge": _dump(options), "concepts": list(group), "model": _dump(config.model)},
        identity={
            "merge": options.model_dump(mode="json", exclude={"polish_steps"}),
            "concepts": list(group),
        },
        inputs={
            "prior": prior, **models, **{f"concept/{name}": concepts[name] for name in group},
        },
    )  # fmt: skip
    if options.polish_steps == 0:
        return merged
    defense, label = of_steps(config.defense, options.polish_steps), _against(config, group)
    return _immunize_step(config, f"polish {label}", defense, group, concepts, prior, merged)


def _continued(
    config: StudyConfig, group: tuple[str, ...], concepts: dict[str, Step], prior: Step
) -> Step:
    """Go on from the joint model of the concepts that were there before `added` ones (by fingerprint), now
    against all of them: the earlier ones are rehearsed, or they would be forgotten."""
    earlier = tuple(name for name in group if name not in config.concepts.added)
    first = _immunize_step(
        config, _against(config, earlier), config.defense, earlier, concepts, prior
    )
    defense = of_steps(config.defense, config.concepts.added_steps)
    label = f"{_against(config, group)}, continued"
    return _immunize_step(config, label, defense, group, concepts, prior, first)


def before_added(config: StudyConfig) -> StudyConfig:
    """The study as it was without the `added` concepts."""
    concepts = config.concepts
    earlier = tuple(c for c in concepts.malicious if c.name not in concepts.added)
    changes = {"malicious": earlier, "added": (), "added_steps": None}
    return config.model_copy(update={"concepts": concepts.model_copy(update=changes)})


def of_steps(defense: DefenseConfig, steps: int | None) -> DefenseConfig:
    """The same defense for another number of steps."""
    changes = {} if steps is None else {"max_train_steps": steps}
    return DefenseConfig.model_validate({**_dump(defense), **changes})


def _immunize_step(
    config: StudyConfig, label: str, defense: DefenseConfig, malicious: tuple[str, ...],
    concepts: dict[str, Step], prior: Step, given: Step | None = None,
) -> Step:  # fmt: skip
    """Immunize the base, or the model that the step `given` leaves, against `malicious` at once."""
    plugin = _plugin(defense)
    # What does not train reads no data: one undefended model serves every concept.
    reads = malicious if plugin.trains else ()
    identity = {"defense": plugin.identity(), "concepts": list(reads), "seed": config.seed}
    inputs = {"prior": prior, **{f"concept/{name}": concepts[name] for name in reads}}
    return Step(
        kind="immunize",
        label=label,
        spec={
            "defense": _plugin_spec(defense), "concepts": list(reads),
            "model": _dump(config.model), "seed": config.seed,
        },
        identity=identity | ({"several": SEVERAL} if len(reads) > 1 else {}),
        inputs=inputs | ({"model": given} if given else {}),
        trains=plugin.trains,
    )  # fmt: skip


def _plugin(defense: DefenseConfig) -> plugins.Defense:
    plugin: plugins.Defense = plugins.build("defenses", defense.name, defense.options)
    return plugin


def _arm(
    config: StudyConfig, label: str, immunize: Step, malicious: tuple[str, ...],
    attacked: tuple[str, ...], concepts: dict[str, Step], undefended: Arm | None,
) -> Arm:  # fmt: skip
    """Attack a model with each of the `attacked` concepts and with every safe one. What it draws
    unattacked is held against what the `undefended` arm draws (None: this is that arm)."""
    blocked = [c for c in config.concepts.malicious if c.name in attacked]
    wanted = [*blocked, *config.concepts.safe]
    attacks = {
        (concept.name, name, seed): _attack_step(
            config, label, immunize, concept, concepts[concept.name], attack, seed
        )
        for concept in wanted
        for name, attack in attack_names(config).items()
        for seed in config.seeds
    }
    groups = {"safe": config.evaluation.safe_prompts} | {
        f"neighbors/{c.name}": c.neighbors for c in blocked if c.neighbors
    }
    samples = {
        group: _sample_step(
            config, f"{label} {group}", immunize, prompts,
            undefended.samples[group].inputs["images"] if undefended else None,
        )
        for group, prompts in groups.items()
    }  # fmt: skip
    return Arm(label, immunize, malicious, attacks, samples)


def attack_names(config: StudyConfig) -> dict[str, AttackConfig]:
    """The attacks, grids laid out, by a name of their own: `dreambooth`, `dreambooth-2`, ... for one used
    again."""
    attacks = [member for each in config.attacks for member in each.members()]
    names = told_apart([attack.title for attack in attacks])
    return dict(zip(names, attacks, strict=True))


def _attack_step(
    config: StudyConfig, label: str, immunize: Step, concept: ConceptConfig, prepared: Step,
    attack: AttackConfig, seed: int,
) -> Step:  # fmt: skip
    plugin: plugins.Attack = plugins.build("attacks", attack.name, attack.options)
    prompts = list(concept.validation_prompts)
    label = f"{label}: {attack.name} on {concept.name}, seed {seed}"
    step = Step(
        kind="attack",
        label=label,
        spec={
            "attack": _plugin_spec(attack), "prompts": prompts, "seed": seed,
            "evaluation": _dump(config.evaluation), "model": _dump(config.model),
        },
        identity={
            "attack": plugin.identity(), "prompts": prompts, "seed": seed,
            "drawing": _drawing(config.evaluation),
        },
        inputs={"model": immunize, "concept": prepared},
        trains=True,
    )  # fmt: skip
    return _evaluate_step(config, label, step, prepared)


def _sample_step(
    config: StudyConfig, label: str, immunize: Step, prompts: tuple[str, ...], base: Step | None
) -> Step:
    seed = config.seed if config.evaluation.seed is None else config.evaluation.seed
    step = Step(
        kind="sample",
        label=f"sample {label}",
        spec={
            "prompts": list(prompts), "seed": seed,
            "evaluation": _dump(config.evaluation), "model": _dump(config.model),
        },
        identity={"prompts": list(prompts), "seed": seed, "drawing": _drawing(config.evaluation)},
        inputs={"model": immunize},
    )  # fmt: skip
    return _evaluate_step(config, label, step, None, base=base or step)


def _evaluate_step(
    config: StudyConfig, label: str, images: Step, concept: Step | None, *,
    prompts: Sequence[str] | None = None, base: Step | None = None,
) -> Step:  # fmt: skip
    """Measure the images of an attack or sample step.

    Args:
        prompts: what the images are held against; default: what they were drawn from.
        base: the step of the base's images of the same prompts, for metrics of whole sets.
    """
    asked = [
        prompt
        for prompt in prompts or images.spec["prompts"]
        for _ in range(config.evaluation.num_images_per_prompt)
    ]
    others = {"concept": concept, "base": base}
    return Step(
        kind="evaluate",
        label=f"evaluate {label}",
        spec={"evaluation": _dump(config.evaluation), "asked": asked},
        identity={**_measuring(config.evaluation), "asked": asked},
        inputs={"images": images} | {name: step for name, step in others.items() if step},
    )


def _references_step(config: StudyConfig, name: str, concept: Step) -> Step:
    return Step(
        kind="evaluate_references",
        label=f"evaluate real images of {name}",
        spec={"evaluation": _dump(config.evaluation)},
        identity=_measuring(config.evaluation),
        inputs={"concept": concept},
    )


def _rolled(prompts: Sequence[str]) -> list[str]:
    """Each prompt in the place of the one before."""
    return [*prompts[1:], *prompts[:1]]


def _fill(prompts: Sequence[str], count: int) -> list[str]:
    """The prompts in turn, `count` in all."""
    return [prompts[i % len(prompts)] for i in range(count)]


def _measuring(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What makes two measurements of the same images the same."""
    encoders = {
        role: locate.folder_hash(locate_encoder(role, name))
        if locate_is_folder(role, name)
        else name
        for role, name in evaluation.encoders.model_dump().items()
    }
    return {
        "metrics": [_metric_identity(m) for m in evaluation.metrics],
        "encoders": encoders,
        "protocol": evaluation.protocol,
    }


def protocol_id(config: StudyConfig) -> str:
    """Hex SHA-256 of how a study measures: encoders (by content), preprocessing, metrics, how images
    are drawn, the prompts of all sides, and what scores are made of. Scores compare under one id."""
    concepts = (*config.concepts.malicious, *config.concepts.safe)
    return digest(
        {
            "measuring": _measuring(config.evaluation),
            "drawing": _drawing(config.evaluation),
            "safe_prompts": config.evaluation.safe_prompts,
            "prompts": {c.name: [c.validation_prompts, c.neighbors] for c in concepts},
            "scoring": _dump(config.scoring),
        }
    )


def verdict_id(config: StudyConfig) -> str:
    """Hex SHA-256 of how a verdict comes about: the protocol, the attacks and their seeds. Only under one
    id does a model beat another."""
    attacks = attack_names(config).values()
    built = [plugins.build("attacks", a.name, a.options) for a in attacks]
    return digest(
        {
            "protocol": protocol_id(config),
            "attacks": [attack.identity() for attack in built],
            "seeds": config.seeds,
        }
    )


def locate_is_folder(role: str, name: str) -> bool:
    """Whether an encoder's name stands for a folder or hub id (not for a published LPIPS network)."""
    return not (role == "lpips" and name in ("alex", "vgg", "squeeze"))


def _metric_identity(metric: MetricConfig) -> dict[str, Any]:
    plugin: plugins.Metric = plugins.build("metrics", metric.name, metric.options)
    return plugin.identity()


def _drawing(evaluation: EvaluationConfig) -> dict[str, Any]:
    """What changes the images (the batch size does not)."""
    return evaluation.model_dump(
        mode="json", include={"num_images_per_prompt", "num_inference_steps", "guidance_scale"}
    )


def _dump(part: Any) -> dict[str, Any]:
    return part.model_dump(mode="json")


def _plugin_spec(plugin: PluginConfig) -> dict[str, Any]:
    return {"name": plugin.name, **plugin.options}
