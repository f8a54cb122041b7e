"""Judges the best settings of each model once more, with attacks and seeds that the search never saw.

The score by which a search chose its best setting is too high: the best of many is partly the luckiest, and a
defense may have been fitted to the one attack that it met. The gate reads the score that is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gift_ray.config.schema import StudyConfig
from gift_ray.errors import UnitFailed
from gift_ray.study.load import configure
from gift_ray.study.plan import Arm, Plan, plan
from gift_ray.study.step import Step
from gift_ray.verdict import gate
from gift_ray.verdict.scorecard import scorecard
from gift_ray.verdict.scoring import Scorecard
from gift_ray.verdict.verdict import images_for
from gift_ray.verdict.yardstick import Yardstick

COORDINATES = ("objective", "resistance", "retention")


@dataclass(frozen=True)
class Finalist:
    """One setting of one released model that the search found good.

    `searched` is the search's verdict on it; `plan` and `arm` are what the gate's score is made of.
    """

    trial_id: str
    values: Mapping[str, Any]
    searched: Mapping[str, Any]
    plan: Plan
    arm: Arm


@dataclass(frozen=True)
class Judgement:
    """A finalist, its score (None: a step of it failed), and why the gate refuses it ([]: it passes)."""

    finalist: Finalist
    card: Scorecard | None
    refusals: list[str]

    @property
    def rank(self) -> tuple[bool, float, float]:
        """What to compare models by, larger is better: whether it passes, its objective, its retention.

        Where no model resists at all their objectives are equal, and the one that lost least comes first.
        """
        if self.card is None:
            return False, float("-inf"), float("-inf")
        return not self.refusals, self.card.objective, self.card.retention

    def confirmed(self) -> dict[str, float]:
        """The score under attacks that the search never saw; {} without one."""
        if self.card is None or self.finalist.plan.config.confirm is None:
            return {}
        return {name: getattr(self.card, name) for name in (*COORDINATES, "worst_retention")}

    def bias(self) -> dict[str, float]:
        """Selection bias: the search's score minus the confirmed one."""
        confirmed = self.confirmed()
        return {n: self.finalist.searched[n] - confirmed[n] for n in COORDINATES if confirmed}

    def summary(self) -> dict[str, Any]:
        """As JSON values for summary.json."""
        return {
            "malicious": list(self.finalist.arm.malicious),
            "trial_id": self.finalist.trial_id,
            "values": dict(self.finalist.values),
            **self.finalist.searched,
            "concepts": {} if self.card is None else self.card.verdicts(),
            "confirmed": self.confirmed(),
            "selection_bias": self.bias(),
            "refused": "; ".join(self.refusals),
        }

    def __str__(self) -> str:
        """In words: the score that the gate read, how far the search's score was off, and the outcome."""
        bias, score = self.bias(), self.confirmed() or self.finalist.searched
        numbers = [
            f"{n} {score[n]:.3f}" + (f" (search {bias[n]:+.3f})" if bias else "")
            for n in COORDINATES
        ]
        outcome = f"refused: {'; '.join(self.refusals)}" if self.refusals else "passed"
        return f"trial {self.finalist.trial_id}: {', '.join(numbers)}: {outcome}"


def held_out(config: StudyConfig) -> StudyConfig:
    """The study under its confirmation's attacks and seeds; without a confirmation, the study itself."""
    confirm = config.confirm
    if confirm is None:
        return config
    # The released weights are those that the search found, unless `confirm.seed` asks for another draw.
    seed = config.seed if confirm.seed is None else confirm.seed
    evaluation = config.evaluation.model_copy(
        update={"seed": confirm.seeds[0], "num_images_per_prompt": confirmed_images(config)}
    )
    return config.model_copy(
        update={
            "seed": seed, "seeds": confirm.seeds, "attacks": confirm.attacks, "evaluation": evaluation,
        }
    )  # fmt: skip


def confirmed_images(config: StudyConfig) -> int:
    """Images of each prompt.

    As asked for, or as many as the gate's margin needs, over all seeds, of the concept with the fewest
    prompts.
    """
    confirm, drawn = config.confirm, config.evaluation.num_images_per_prompt
    if confirm is None:
        return drawn
    if confirm.num_images_per_prompt is not None:
        return confirm.num_images_per_prompt
    prompts = min(len(c.validation_prompts) for c in config.concepts.malicious)
    # What no number of images shows takes no more of them.
    wanted = images_for(1 - config.gate.min_resistance) or 0
    return max(drawn, -(-wanted // (prompts * len(confirm.seeds))))


def finalists(config: StudyConfig, trials: Sequence[Mapping[str, Any]]) -> list[Finalist]:
    """The `confirm.top_k` best settings of each released model (1 without a confirmation).

    Args:
        trials: finished ones, as dicts; their `arms` are the verdicts on each released model.
    """
    found: list[Finalist] = []
    top_k = config.confirm.top_k if config.confirm else 1
    for arm in plan(config).defended:
        verdicts = [
            (verdict, trial)
            for trial in trials
            for verdict in trial["arms"]
            if verdict["malicious"] == list(arm.malicious)
        ]
        verdicts.sort(key=lambda pair: (-pair[0]["objective"], -pair[0]["retention"]))
        for verdict, trial in verdicts[:top_k]:
            layout = plan(held_out(configure(config, trial["values"])))
            own = next(other for other in layout.defended if other.malicious == arm.malicious)
            found.append(Finalist(trial["trial_id"], trial["values"], verdict, layout, own))
    return found


def judge(candidates: Sequence[Finalist], run: Callable[[Iterable[Step]], None]) -> list[Judgement]:
    """Measure the finalists and put them to the gate.

    Args:
        run: computes steps; those of all finalists are asked for at once, as wide as the cluster is.
    """
    # A step that fails fails its own finalist only: below, the steps of each are asked for alone.
    with suppress(UnitFailed):
        run([step for finalist in candidates for step in finalist.arm.steps()])
    return [_judge(finalist, run) for finalist in candidates]


def _judge(finalist: Finalist, run: Callable[[Iterable[Step]], None]) -> Judgement:
    config = finalist.plan.config
    try:
        run(finalist.arm.steps())
    except UnitFailed as error:
        return Judgement(finalist, None, [str(error)])
    card = scorecard(Yardstick.of(finalist.plan, config.study_dir), finalist.arm)
    return Judgement(finalist, card, gate.refusals(card, config.gate))
