"""A plan: the steps of a study, grouped by model, attack and what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gift_ray import plugins
from gift_ray.config.schema import ConceptConfig, StudyConfig
from gift_ray.study.drawing import repeated
from gift_ray.study.immunization import ReleasedModels
from gift_ray.study.protocol import attack_names
from gift_ray.study.step import Step, closure
from gift_ray.study.steps.attack_model import AttackModel
from gift_ray.study.steps.evaluate_images import EvaluateImages
from gift_ray.study.steps.evaluate_references import EvaluateReferences
from gift_ray.study.steps.judge_concept import CONTROL, JudgeConcept
from gift_ray.study.steps.prepare_concept import PrepareConcept
from gift_ray.study.steps.prepare_prior import PreparePrior
from gift_ray.study.steps.sample_images import SampleImages


@dataclass(frozen=True)
class Arm:
    """One released model and everything that is measured on it.

    Attributes:
        immunize: the step that makes the model, by immunizing or by merging.
        malicious: the concepts that the model is to resist. Attacks with other malicious concepts serve the
            matrix of models and concepts alone.
        attacks: maps (concept, attack label, seed) to the step that evaluates the attacked model's images.
        samples: maps a group of prompts (`safe`, `neighbors/<concept>`) to the step that evaluates the images
            that the model draws before any attack.
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
    """All that a study computes.

    Attributes:
        undefended, defended: the arms.
        chance_similarity: for each concept the step that measures it on the base's images of the safe
            prompts.
        chance_prompt: for each group of prompts the step that measures the base's images against wrong
            prompts.
        controls: for each malicious (concept, attack, seed) and each control the step that measures the
            concept on the images of the undefended model after the same attack with the control.
        judges: for each concept the step that measures real images, by which the metrics are checked.
        references: for each concept the step that measures how alike its real images are.
    """

    config: StudyConfig
    undefended: Arm
    defended: tuple[Arm, ...]
    chance_similarity: Mapping[str, Step]
    chance_prompt: Mapping[str, Step]
    controls: Mapping[tuple[str, str, int], Mapping[str, Step]]
    judges: Mapping[str, Step]
    references: Mapping[str, Step]

    def shared(self) -> list[Step]:
        """The steps that no option of the defense changes: data, the undefended arm, chance levels."""
        ends = [
            *self.undefended.steps(),
            *self.chance_similarity.values(),
            *self.chance_prompt.values(),
            *(step for steps in self.controls.values() for step in steps.values()),
            *self.judges.values(),
            *self.references.values(),
        ]
        reads = closure(arm.immunize for arm in self.defended)
        prepared = (s for s in reads if isinstance(s, PrepareConcept | PreparePrior))
        return closure([*ends, *prepared])

    def steps(self) -> list[Step]:
        """Every step, inputs first."""
        return closure([*self.shared(), *(step for arm in self.defended for step in arm.steps())])


def plan(config: StudyConfig, *, matrix: bool = False) -> Plan:
    """Lay out a study as steps; reads the files of the model and of the sources, to hash them.

    Args:
        matrix: attack every model with every malicious concept and draw the neighbours of all of them,
            instead of only those that the model is immunized against.
    """
    planner = _Planner(config)
    models, malicious = planner.models, planner.malicious
    alone = config.concepts.mode == "per_concept"
    groups = [(name,) for name in malicious] if alone else [malicious]
    undefended = planner.arm("undefended", models.undefended(), malicious, malicious)
    defended = tuple(
        planner.arm(
            models.label(group), models.against(group), group, malicious if matrix else group, undefended
        )
        for group in groups
    )  # fmt: skip
    return Plan(
        config,
        undefended,
        defended,
        planner.chance_similarity(undefended),
        planner.chance_prompt(undefended),
        planner.controls(undefended),
        {c.name: planner.judged(c, undefended) for c in planner.concepts},
        {name: planner.references(name) for name in planner.prepared},
    )


class _Planner:
    """Lays out one study. The steps that prepare data, and the attacks, are made once for all arms."""

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.attacks = config, attack_names(config)
        self.concepts = (*config.concepts.malicious, *config.concepts.safe)
        self.malicious = tuple(c.name for c in config.concepts.malicious)
        self.prepared = {
            c.name: PrepareConcept(
                label=f"prepare {c.name}", concept=c, model=config.model, seed=config.seed
            )
            for c in self.concepts
        }
        prior = PreparePrior(
            label="prepare D_S", prior=config.prior, model=config.model, seed=config.seed
        )
        self.models = ReleasedModels(config, self.prepared, prior)

    def arm(
        self, label: str, immunize: Step, malicious: tuple[str, ...], attacked: tuple[str, ...],
        undefended: Arm | None = None,
    ) -> Arm:  # fmt: skip
        """One model, attacked with each of the `attacked` concepts and with every safe one.

        The images that it draws before any attack are compared with those of the `undefended` arm (None: this
        is the undefended arm itself).
        """
        concepts = self.config.concepts
        blocked = [c for c in concepts.malicious if c.name in attacked]
        attacks = {
            (concept.name, name, seed): self._attacked(label, immunize, concept, name, seed)
            for concept in (*blocked, *concepts.safe)
            for name in self.attacks
            for seed in self.config.seeds
        }
        samples = {
            group: self._sampled(
                f"{label} {group}", immunize, prompts,
                undefended.samples[group].inputs["images"] if undefended else None,
            )
            for group, prompts in self._prompt_groups(blocked).items()
        }  # fmt: skip
        return Arm(label, immunize, malicious, attacks, samples)

    def _prompt_groups(self, blocked: Iterable[ConceptConfig]) -> dict[str, tuple[str, ...]]:
        """The prompts for the unattacked model: safe ones, and the neighbours of each malicious concept."""
        return {"safe": self.config.evaluation.safe_prompts} | {
            f"neighbors/{c.name}": c.neighbors for c in blocked if c.neighbors
        }

    def _attacked(
        self, label: str, immunize: Step, concept: ConceptConfig, name: str, seed: int
    ) -> Step:
        """Attack a model with a concept, and measure the images."""
        attack, prepared = self.attacks[name], self.prepared[concept.name]
        label = f"{label}: {attack.name} on {concept.name}, seed {seed}"
        images = AttackModel(
            label=label,
            inputs={"model": immunize, "concept": prepared},
            attack=plugins.build("attacks", attack.name, attack.options),
            prompts=concept.validation_prompts,
            evaluation=self.config.evaluation,
            model=self.config.model,
            seed=seed,
        )
        return self._evaluated(label, concept.validation_prompts, images=images, concept=concept)

    def _sampled(
        self, label: str, immunize: Step, prompts: tuple[str, ...], base: Step | None
    ) -> Step:
        """Draw images from a model before any attack, and measure them.

        Args:
            base: the step that drew the base's images of the same prompts; None if this model is the base.
        """
        evaluation = self.config.evaluation
        images = SampleImages(
            label=f"sample {label}",
            inputs={"model": immunize},
            prompts=prompts,
            evaluation=evaluation,
            model=self.config.model,
            seed=self.config.seed if evaluation.seed is None else evaluation.seed,
        )
        return self._evaluated(label, prompts, images=images, base=base or images)

    def chance_similarity(self, undefended: Arm) -> dict[str, Step]:
        """Measure each concept on images that don't show it: the base's images of the safe prompts."""
        count = len(self.config.evaluation.safe_prompts)
        return {
            c.name: self._evaluated(
                f"chance {c.name}", _filled(c.validation_prompts, count),
                images=undefended.samples["safe"].inputs["images"], concept=c,
            )
            for c in self.concepts
        }  # fmt: skip

    def controls(self, undefended: Arm) -> dict[tuple[str, str, int], dict[str, Step]]:
        """Measure each malicious concept on images of the undefended model after an attack with a control."""
        concepts = self.config.concepts
        controls = {c.name: c for c in concepts.safe}
        return {
            (c.name, attack, seed): {
                name: self._evaluated(
                    f"control {name} for {c.name}: {attack}, seed {seed}",
                    controls[name].validation_prompts,
                    images=undefended.attacks[name, attack, seed].inputs["images"], concept=c,
                )
                for name in concepts.controls_of(c)
            }
            for c in concepts.malicious
            for attack in attack_names(self.config)
            for seed in self.config.seeds
        }  # fmt: skip

    def judged(self, concept: ConceptConfig, undefended: Arm) -> Step:
        """Measure a concept on real images of it and of others, by which the metrics are checked.

        For a malicious concept the others are its controls and the base's images of safe prompts. These
        prompts may well ask for a safe concept, so for that the others are the real images of all other
        concepts alone.
        """
        malicious = concept.name in self.malicious
        others = (
            self.config.concepts.controls_of(concept)
            if malicious
            else tuple(c.name for c in self.concepts if c != concept)
        )
        safe = undefended.samples["safe"].inputs["images"]
        return JudgeConcept(
            label=f"judge the measures of {concept.name}",
            inputs={
                "concept": self.prepared[concept.name],
                **{f"{CONTROL}{name}": self.prepared[name] for name in others},
                **({"safe": safe} if malicious else {}),
            },
            evaluation=self.config.evaluation,
            names=concept.names,
        )

    def chance_prompt(self, undefended: Arm) -> dict[str, Step]:
        """Measure how well the base's images agree with prompts that they were not drawn from."""
        groups = self._prompt_groups(self.config.concepts.malicious)
        return {
            group: self._evaluated(
                f"chance prompts {group}", _rolled(prompts),
                images=undefended.samples[group].inputs["images"], halves=True,
            )
            for group, prompts in groups.items()
        }  # fmt: skip

    def _evaluated(
        self, label: str, prompts: Sequence[str], *,
        images: Step, concept: ConceptConfig | None = None, base: Step | None = None,
        halves: bool = False,
    ) -> Step:  # fmt: skip
        """Measure the images of a step against these prompts, which are as many as it drew images from."""
        prepared = self.prepared[concept.name] if concept else None
        inputs = {"images": images, "concept": prepared, "base": base}
        return EvaluateImages(
            label=f"evaluate {label}",
            inputs={name: step for name, step in inputs.items() if step},
            evaluation=self.config.evaluation,
            asked=repeated(prompts, self.config.evaluation),
            names=concept.names if concept else (),
            halves=halves,
        )

    def references(self, name: str) -> Step:
        return EvaluateReferences(
            label=f"evaluate real images of {name}",
            inputs={"concept": self.prepared[name]},
            evaluation=self.config.evaluation,
        )


def _rolled(prompts: Sequence[str]) -> list[str]:
    """The prompts shifted by one place, so that each image meets a prompt that it was not drawn from."""
    return [*prompts[1:], *prompts[:1]]


def _filled(prompts: Sequence[str], count: int) -> list[str]:
    """The prompts one after the other, repeated from the beginning until there are `count`."""
    return [prompts[i % len(prompts)] for i in range(count)]
