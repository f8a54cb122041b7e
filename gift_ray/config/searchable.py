"""Which options a search may vary: those of the defense, and how models of several concepts are combined.

The options of attacks, measures and verdicts must stay as they are, since trials are compared by them.
"""

from __future__ import annotations

SEARCHED = ("defense", "concepts.mode", "concepts.merge")
# Why no other part may be searched: what such a search would find instead of the best defense.
WOULD_WIN = {
    "attacks": "the weakest attacker",
    "evaluation": "the measure that tells least",
    "scoring": "the rule that is easiest to please",
    "gate": "the lowest gate",
    "confirm": "the weakest examination",
    "seed": "the luckiest draw",
    "seeds": "the luckiest draw",
    "model": "the model that learns least",
    "concepts": "the easiest concept",
}


def mistake_in_path(path: str) -> str | None:
    """Why an option, given as its dotted path, can't be searched; None if it can."""
    if any(path == part or path.startswith(f"{part}.") for part in SEARCHED):
        return None
    winner = WOULD_WIN.get(path.partition(".")[0])
    why = f": a search over this would find {winner}, not the best defense" if winner else ""
    return f"only the defense is searched (defense.*, concepts.mode, concepts.merge.*){why}"
