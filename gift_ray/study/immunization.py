"""The steps that make a study's models, as `concepts.mode` says.

That is a model for each concept, one trained against all of them, one merged from the models for each, or
one that continues from an earlier joint model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gift_ray import plugins
from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.config.schema import StudyConfig
from gift_ray.study.step import Step
from gift_ray.study.steps.immunize_model import ImmunizeModel
from gift_ray.study.steps.merge_models import MergeModels

NO_DEFENSE = DefenseConfig(name="none")


@dataclass(frozen=True)
class ReleasedModels:
    """The steps that make the models of one study.

    Args:
        concepts: for each concept's name the step that prepares its images.
        prior: the step that prepares D_S.
    """

    config: StudyConfig
    concepts: Mapping[str, Step]
    prior: Step

    def undefended(self) -> Step:
        """The step of the undefended model, which is the base as it is."""
        return self._immunize("undefended", NO_DEFENSE, ())

    def against(self, group: tuple[str, ...]) -> Step:
        """The step that makes the model against a group of concepts."""
        defense = plugins.resolve("defenses", self.config.defense.name)
        if len(group) > 1 and defense.trains:
            if self.config.concepts.mode == "merge":
                return self._merged(group)
            if self.config.concepts.added:
                return self._continued(group)
        return self._immunize(self.label(group), self.config.defense, group)

    def label(self, group: tuple[str, ...]) -> str:
        """The label of the model against a group of concepts."""
        return f"{self.config.defense.title} against {', '.join(group)}"

    def _merged(self, group: tuple[str, ...]) -> Step:
        """Merge the models of per_concept mode, and polish the result if the study asks for it.

        They are the same steps as in that mode, so that a study that has done them merges in seconds.
        """
        options, label = self.config.concepts.merge, self.label(group)
        models = {
            f"model/{name}": self._immunize(self.label((name,)), self.config.defense, (name,))
            for name in group
        }
        merged = MergeModels(
            label=f"merge {label}",
            inputs={**self._data(group), **models},
            merge=options,
            concepts=group,
            names=self._names(group),
            model=self.config.model,
        )
        if options.polish_steps == 0:
            return merged
        defense = of_steps(self.config.defense, options.polish_steps)
        return self._immunize(f"polish {label}", defense, group, merged)

    def _continued(self, group: tuple[str, ...]) -> Step:
        """Continue from the joint model of the concepts that were there before the `added` ones.

        It is trained against all concepts, since a model that no longer trains on the earlier ones loses its
        resistance to them. The step of the earlier model is the same as in the study without the added
        concepts.
        """
        earlier = tuple(name for name in group if name not in self.config.concepts.added)
        first = self._immunize(self.label(earlier), self.config.defense, earlier)
        defense = of_steps(self.config.defense, self.config.concepts.added_steps)
        return self._immunize(f"{self.label(group)}, continued", defense, group, first)

    def _immunize(
        self, label: str, defense: DefenseConfig, group: tuple[str, ...], given: Step | None = None
    ) -> Step:
        """Immunize the base, or the model that the step `given` makes, against a group of concepts."""
        # A defense that does not train reads no data, so one undefended model serves every concept and D_S.
        plugin: plugins.Defense = plugins.build("defenses", defense.name, defense.options)
        data = self._data(group) if plugin.trains else {}
        return ImmunizeModel(
            label=label,
            inputs={**data, **({"model": given} if given else {})},
            defense=plugin,
            concepts=group if plugin.trains else (),
            names=self._names(group) if plugin.trains else (),
            model=self.config.model,
            seed=self.config.seed,
        )

    def _names(self, group: tuple[str, ...]) -> tuple[str, ...]:
        """What the concepts of a group may be called."""
        return tuple(n for c in self.config.concepts.malicious if c.name in group for n in c.names)

    def _data(self, group: tuple[str, ...]) -> dict[str, Step]:
        return {"prior": self.prior, **{f"concept/{name}": self.concepts[name] for name in group}}


def of_steps(defense: DefenseConfig, steps: int | None) -> DefenseConfig:
    """The same defense with another number of steps; None keeps its own."""
    changes = {} if steps is None else {"max_train_steps": steps}
    return DefenseConfig.model_validate({**defense.model_dump(mode="json"), **changes})


def before_added(config: StudyConfig) -> StudyConfig:
    """The same study without the `added` concepts."""
    concepts = config.concepts
    earlier = tuple(c for c in concepts.malicious if c.name not in concepts.added)
    changes = {"malicious": earlier, "added": (), "added_steps": None}
    return config.model_copy(update={"concepts": concepts.model_copy(update=changes)})
