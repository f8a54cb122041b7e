"""The models that a report shows: the undefended one, and those of a search's trials or of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gift_ray.config.schema import StudyConfig

UNDEFENDED = "undefended"


@dataclass(frozen=True)
class ReportArm:
    """One model that was immunized with one setting of a defense, or the undefended model.

    Attributes:
        key, label: its name in all tables, and on the page.
        group: the models that are shown as one: those of a defense in a comparison; in a search each is
            alone.
        chosen: whether it is the best setting of its search, or there was no search.
        outline: the names of its steps' folders, as `report/outline.py` wrote them.
    """

    key: str
    label: str
    group: str
    trial_id: str | None
    malicious: tuple[str, ...]
    chosen: bool
    outline: dict[str, Any]
    scorecard: dict[str, Any] | None


def undefended(outline: dict[str, Any]) -> ReportArm:
    """The undefended model; the steps that all models share count as its own."""
    base = outline["undefended"]
    steps = outline["shared"] | base["steps"]
    return ReportArm(
        UNDEFENDED, UNDEFENDED, UNDEFENDED, None, (), True, base | {"steps": steps}, None
    )


def searched(
    config: StudyConfig, trials: list[dict[str, Any]], summary: dict[str, Any] | None
) -> list[ReportArm]:
    """The models of every trial of a search, the chosen ones first."""
    arms = []
    best = _best(trials, summary)
    for number, trial in enumerate(trials, 1):
        for model in trial["models"]:
            malicious = ", ".join(model["malicious"])
            arms.append(
                ReportArm(
                    key=f"{trial['trial_id']}/{malicious}",
                    label=f"{config.defense.title} against {malicious}, trial {number}",
                    group=f"{trial['trial_id']}/{malicious}",
                    trial_id=trial["trial_id"],
                    malicious=tuple(model["malicious"]),
                    chosen=best.get(tuple(model["malicious"])) == trial["trial_id"],
                    outline=model,
                    scorecard=model["scorecard"],
                )
            )
    return sorted(arms, key=lambda arm: not arm.chosen)


def _best(
    trials: list[dict[str, Any]], summary: dict[str, Any] | None
) -> dict[tuple[str, ...], str]:
    """Malicious concepts of a model -> the trial that the job chose, or the best so far."""
    best: dict[tuple[str, ...], tuple[float, str]] = {}
    for trial in trials:
        for verdict in trial["arms"]:
            name, objective = tuple(verdict["malicious"]), verdict["objective"]
            if name not in best or objective > best[name][0]:
                best[name] = (objective, trial["trial_id"])
    chosen = summary["chosen"] if summary else []
    return {name: trial_id for name, (_, trial_id) in best.items()} | {
        tuple(model["malicious"]): model["trial_id"] for model in chosen if "trial_id" in model
    }


def compared(
    rivals: dict[str, list[dict[str, Any]]], summary: dict[str, Any] | None
) -> list[ReportArm]:
    """The models of every defense of a comparison, in the study's order."""
    cards = summary["scorecards"] if summary else {}
    arms = []
    for defense, models in rivals.items():
        for model in models:
            malicious = ", ".join(model["malicious"])
            arms.append(
                ReportArm(
                    key=f"{defense}/{malicious}",
                    label=f"{defense} against {malicious}",
                    group=defense,
                    trial_id=None,
                    malicious=tuple(model["malicious"]),
                    chosen=True,
                    outline=model,
                    scorecard=_card(cards.get(defense, []), model["malicious"]),
                )
            )
    return arms


def _card(cards: list[dict[str, Any]], malicious: list[str]) -> dict[str, Any] | None:
    """The scorecard of the model against these concepts, if it has one."""
    return next((card for card in cards if card["malicious"] == malicious), None)
