"""Several defenses one after the other, such as [esd, imma] or [gift, post_immunization].

Each is given the model that the one before it made. A study writes

    defense: {name: chain, defenses: [{name: esd, train_method: esd-u}, {name: gift, beta: 0.3}]}

and a search reaches the options of a member by paths such as `defense.defenses.1.beta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field

from gift_ray.config.plugin_choice import DefenseConfig
from gift_ray.models.architecture import Architecture
from gift_ray.models.backbone import Backbone
from gift_ray.plugins import Defense, build
from gift_ray.training.diffusion import Examples, Seeds
from gift_ray.training.footprint import Footprint
from gift_ray.training.loop import Report


class Chain(Defense):
    """Runs its defenses in turn; a chain of one gives the same model as that defense, bit for bit."""

    version: ClassVar[int] = 1

    defenses: tuple[DefenseConfig, ...] = Field(min_length=1)

    def members(self) -> list[Defense]:
        """The defenses in their order."""
        return [build("defenses", member.name, member.options) for member in self.defenses]

    def require(self, base: Architecture) -> None:
        for member in self.members():
            member.require(base)

    def footprint(self, base: Architecture) -> Footprint:
        """The largest of its members', with the model that the one before it left."""
        members = [member.footprint(base) for member in self.members()]
        largest = max(members, key=lambda member: member.total)
        return largest if len(members) == 1 else largest + Footprint(weights=base.weights)

    def identity(self) -> dict[str, Any]:
        # The identities of the members hold their versions and all their options, defaults included.
        return super().identity() | {"defenses": [member.identity() for member in self.members()]}

    def immunize(
        self,
        model: Backbone,
        malicious: Sequence[Examples],
        safe: Examples,
        *,
        seeds: Seeds,
        report: Report,
    ) -> Backbone:
        # Continue within the member that was running, from the model that it had been given.
        saved = report.load() or {"member": 0, "start": 0, "done": 0, "state": None}
        first, start, done = (int(saved[name]) for name in ("member", "start", "done"))
        state = saved["state"]
        if first > 0:
            model = model.clone()
            model.load_weights(saved["given"], origin="checkpoint")
        for index, member in enumerate(self.members()[first:], first):
            view = MemberReport(report, index, model, start, done, state)
            model = member.immunize(
                model, malicious, safe, seeds=_seeds_of(seeds, index), report=view
            )
            start = done = view.done
            state = None
        return model


@dataclass
class MemberReport:
    """The report that a member of the chain gets instead of the chain's own.

    It counts the member's steps on from those of the members before it, and adds the model that the member
    was given to its checkpoints. `start` and `done` are steps of the chain.
    """

    report: Report
    member: int
    given: Backbone
    start: int
    done: int
    state: dict[str, Any] | None

    def log(self, step: int, **values: float) -> None:
        self.done = self.start + step
        self.report.log(self.done, **values)

    def due(self, step: int) -> bool:
        return self.report.due(self.start + step)

    def save(self, step: int, state: dict[str, Any]) -> None:
        # The first member gets the chain's own model, which need not be kept.
        given = self.given.weights() if self.member > 0 else {}
        position = {"member": self.member, "start": self.start, "done": self.done}
        self.report.save(self.done, {**position, "given": given, "state": state})

    def load(self) -> dict[str, Any] | None:
        return self.state


def _seeds_of(seeds: Seeds, index: int) -> Seeds:
    """The random streams of a member. The first one has the chain's, as if it were trained alone."""
    return Seeds(seeds.generator("member", index).initial_seed()) if index > 0 else seeds
