"""What a search may vary: the defense, and never the attackers, the measures or the seeds that judge it."""

from __future__ import annotations

from functools import partial
from typing import Any

from battery import Case, study

TITLE = "A search that would move the ruler"


def searching(**space: Any) -> Any:
    """Try to search these options, with __ for the dots."""
    options = {path.replace("__", "."): option for path, option in space.items()}
    return partial(study, changes={"search": {"space": options}}, command="sweep")


RATES = {"low": 1e-5, "high": 1e-4}
OUTSIDE = "only the defense is searched"

CASES = [
    Case("`attacks.0.learning_rate`", searching(attacks__0__learning_rate=RATES), says=OUTSIDE),
    Case("`attacks.0.max_train_steps`",
         searching(attacks__0__max_train_steps={"choices": [2, 4]}), says=OUTSIDE),
    Case("`evaluation.seed`", searching(evaluation__seed={"choices": [1, 2]}), says=OUTSIDE),
    Case("`evaluation.guidance_scale`",
         searching(evaluation__guidance_scale={"low": 1, "high": 9}), says=OUTSIDE),
    Case("`scoring.weight`", searching(scoring__weight={"low": 0, "high": 1}), says=OUTSIDE),
    Case("`gate.min_resistance`", searching(gate__min_resistance={"low": 0, "high": 1}), says=OUTSIDE),
    Case("`seed`", searching(seed={"choices": [0, 1, 2]}), says=OUTSIDE),
    Case("`seeds.0`", searching(seeds__0={"choices": [0, 1]}), says=OUTSIDE),
    Case("`output_dir`", searching(output_dir={"choices": ["a", "b"]}), says=OUTSIDE),
    Case("`model.resolution`", searching(model__resolution={"choices": [16, 32]}), says=OUTSIDE),
    Case("`concepts.malicious.0.max_images`",
         searching(concepts__malicious__0__max_images={"choices": [2, 4]}), says=OUTSIDE),
    Case("`prior.source.match`", searching(prior__source__match={"choices": ["CAT", "DOG"]}), says=OUTSIDE),
    Case("`defenses.beta`, misspelt", searching(defenses__beta={"low": 0, "high": 1}), says=OUTSIDE),
    Case("`defense.beta`", searching(defense__beta={"low": 0.1, "high": 0.3}), outcome="searched"),
    Case("`defense` and `concepts.mode`",
         searching(defense={"choices": [{"name": "gift"}, {"name": "none"}]},
                   concepts__mode={"choices": ["joint", "per_concept"]}), outcome="searched"),
    Case("`concepts.merge.ridge`",
         searching(concepts__mode={"choices": ["merge"]}, concepts__merge__ridge=RATES), outcome="searched"),
]  # fmt: skip
